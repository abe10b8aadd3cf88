//! A gate for tests: what a test took from the system, it has to give back.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gate = ember_leak::LeakGate::arm()?;
//! // … boot, run, close …
//! gate.check()?;
//! # Ok(())
//! # }
//! ```
//!
//! The gate counts what the process and the system around it hold, twice, and says exactly what
//! is there the second time and was not the first:
//!
//! - **descriptors** (`/proc/self/fd`), by what they refer to;
//! - **threads** (`/proc/self/task`), by name;
//! - **mappings** (`/proc/self/maps`): those of files, memfds and device files exactly. Anonymous
//!   memory is an allocator's as well, which keeps what was freed, so it may grow by
//!   [`ANONYMOUS_BYTES_TOLERANCE`] and [`ANONYMOUS_COUNT_TOLERANCE`]. Shared libraries are left
//!   out, because one that was loaded stays;
//! - **processes**: descendants of this one, and those of its process group, dead ones that nobody
//!   waited for included;
//! - **mounts** of the mount namespace, **network interfaces** of the network namespace;
//! - **cgroups** below the process's own, and those called `ember…` anywhere;
//! - **files** in `/run/netns` and in the directories that it is told.
//!
//! What is replaced by its like is no leak: a thread pool may end one thread and start another. The
//! kernel takes some things apart after their last user is gone, so a check that finds something
//! looks again until the [settling time](GateBuilder::settle) is over.
//!
//! Nothing else may run in the process meanwhile. A test of a test binary that has others runs
//! itself in a process of its own with [`isolated!`] or [`isolated_namespaces!`].

#![forbid(unsafe_code)]

mod census;
mod isolate;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

pub use census::{ANONYMOUS_BYTES_TOLERANCE, ANONYMOUS_COUNT_TOLERANCE, Kind};
use census::{Census, Places};
pub use isolate::progress;
#[doc(hidden)]
pub use isolate::run_isolated;

/// How long a check waits for the kernel to take things apart, unless told otherwise.
pub const DEFAULT_SETTLE: Duration = Duration::from_secs(5);

/// How long a check waits before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What was there when the gate was armed.
#[derive(Debug)]
#[must_use = "a gate that is not checked finds nothing"]
pub struct LeakGate {
    before: Census,
    places: Places,
    settle: Duration,
}

impl LeakGate {
    /// Counts what is there now.
    pub fn arm() -> io::Result<Self> {
        Self::builder().arm()
    }

    /// A gate that watches more, or waits longer.
    pub fn builder() -> GateBuilder {
        GateBuilder {
            places: Places::default(),
            settle: DEFAULT_SETTLE,
        }
    }

    /// Counts again, and fails if there is more than before. Can be called any number of times:
    /// each compares with when the gate was armed.
    pub fn check(&self) -> Result<(), CheckError> {
        let end = Instant::now() + self.settle;
        loop {
            let leaks = Census::take(&self.places)?.beyond(&self.before);
            if leaks.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(CheckError::Leaked(Leaks(leaks)));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
}

/// What a gate is to watch.
#[derive(Clone, Debug)]
pub struct GateBuilder {
    places: Places,
    settle: Duration,
}

impl GateBuilder {
    /// Watches the files and directories in `directory`, at any depth. It need not exist yet.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.places.directories.insert(directory.into());
        self
    }

    /// How long a check may take before what it finds counts as leaked.
    #[must_use]
    pub fn settle(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }

    /// Counts what is there now.
    pub fn arm(self) -> io::Result<LeakGate> {
        let before = Census::take(&self.places)?;
        Ok(LeakGate {
            before,
            places: self.places,
            settle: self.settle,
        })
    }
}

/// Why a check did not pass.
#[derive(thiserror::Error)]
pub enum CheckError {
    /// Something was left behind.
    #[error(transparent)]
    Leaked(Leaks),
    /// What is there cannot be counted.
    #[error("what the process holds cannot be counted")]
    Count(#[from] io::Error),
}

/// The same as the message, because it is what `unwrap` shows.
impl fmt::Debug for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaked(leaks) => fmt::Display::fmt(leaks, f),
            Self::Count(error) => f.debug_tuple("Count").field(error).finish(),
        }
    }
}

/// What was left behind, one entry for each class of things.
#[derive(Clone, Debug)]
pub struct Leaks(Vec<Leak>);

impl Leaks {
    /// The kinds of things that were left behind.
    pub fn kinds(&self) -> BTreeSet<Kind> {
        self.0.iter().map(|leak| leak.kind).collect()
    }

    /// All of it.
    pub fn iter(&self) -> impl Iterator<Item = &Leak> {
        self.0.iter()
    }
}

impl std::error::Error for Leaks {}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("left behind:")?;
        for leak in &self.0 {
            write!(f, "\n  {leak}")?;
        }
        Ok(())
    }
}

/// Things of one class that were left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// What kind of thing.
    pub kind: Kind,
    /// What they have in common.
    pub class: String,
    /// How many there were, and are.
    pub count: (usize, usize),
    /// Those that are new.
    pub new: Vec<String>,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Of many alike, the first few say it all.
        const SHOWN: usize = 8;
        let (before, after) = self.count;
        write!(
            f,
            "{}: {}: {before} before, {after} now",
            self.kind, self.class
        )?;
        for new in self.new.iter().take(SHOWN) {
            write!(f, "\n    {new}")?;
        }
        if self.new.len() > SHOWN {
            write!(f, "\n    and {} more", self.new.len() - SHOWN)?;
        }
        Ok(())
    }
}
