//! Who a clone is to be.

use std::ffi::OsString;
use std::time::{Duration, Instant, SystemTime};

use ember_guest::host::Identity;

use crate::error::{Error, ErrorKind};
use crate::placement::Placement;
use crate::size::ByteSize;

/// What is particular to one clone. What is not said here is drawn at random (its machine id, boot
/// id, generation id and entropy), is this host's (the wall clock), or the template's.
#[derive(Debug, Clone, Default)]
pub struct ForkOptions {
    hostname: Option<String>,
    environment: Vec<(OsString, OsString)>,
    secrets: Vec<(OsString, Secret)>,
    realtime: Option<SystemTime>,
    pub(super) timeout: Option<Duration>,
    pub(super) output_limit: Option<ByteSize>,
    pub(super) memory_cap: Option<ByteSize>,
    pub(super) placement: Option<Placement>,
}

/// A value that is shown to nobody.
#[derive(Clone)]
struct Secret(OsString);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl ForkOptions {
    /// Nothing in particular.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its host name. A name with random letters if not said.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// Sets an environment variable for everything that is started in it.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets an environment variable whose value is never shown in messages, and never handed on to
    /// clones of this clone.
    #[must_use]
    pub fn secret(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.secrets.push((name.into(), Secret(value.into())));
        self
    }

    /// Sets its wall clock to this time in place of the host's, at the moment of the call that makes the
    /// clone.
    #[must_use]
    pub fn realtime(mut self, time: SystemTime) -> Self {
        self.realtime = Some(time);
        self
    }

    /// How long a command or program may take that does not say so itself.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How much is kept of what is written where it is collected: of a command, that is each of its
    /// outputs; of a program, both together, as
    /// [`SandboxBuilder::output_limit`](crate::SandboxBuilder::output_limit) says.
    #[must_use]
    pub fn output_limit(mut self, limit: ByteSize) -> Self {
        self.output_limit = Some(limit);
        self
    }

    /// How much of its memory it may copy, if not what its template's clones may: a clone copies what
    /// it writes to, and of a template whose pages are brought in [on demand](crate::Backing::OnDemand)
    /// also what it reads. Its own clones are held to the same, each by itself.
    ///
    /// It is counted on the host every 100 ms (more rarely if there are so many clones that counting
    /// would take more than a tenth of a processor), and a clone that has more is ended, whatever runs
    /// in it: [`ErrorKind::MemoryExceeded`]. So a guest that writes fast is beyond its cap by what it
    /// writes in that time, though never beyond the size of its memory. The limit of a program
    /// ([`Limits::memory`](crate::Limits)) is kept by the guest's kernel, to the page, and ends the
    /// program alone: this one is for guests whose kernel cannot be relied on.
    #[must_use]
    pub fn memory_cap(mut self, cap: ByteSize) -> Self {
        self.memory_cap = Some(cap);
        self
    }

    /// Where it runs, if not where its template's clones do: see [`Placement`]. Clones that are kept
    /// ready run there.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(placement);
        self
    }

    /// The wall clock of a clone that gets it now.
    pub(super) fn clock(&self) -> WallClock {
        WallClock {
            fixed: self.realtime.map(|time| (time, Instant::now())),
        }
    }

    /// The identity of one clone, but for its wall clock.
    pub(super) fn identity(&self) -> Result<Identity, Error> {
        let mut identity = Identity::random().map_err(|error| {
            let message = "this host has no random numbers to make a clone unique";
            Error::because(ErrorKind::HostUnsupported, message, error)
        })?;
        let hostname = match &self.hostname {
            Some(name) => name.clone(),
            None => {
                let suffix: [u8; 4] = crate::sandbox::builder::random()?;
                format!("ember-{:08x}", u32::from_ne_bytes(suffix))
            }
        };
        identity = identity.hostname(hostname);
        for (name, value) in &self.environment {
            identity = identity.env(name, value);
        }
        for (name, Secret(value)) in &self.secrets {
            identity = identity.secret(name, value);
        }
        Ok(identity)
    }
}

/// What time it is in a clone.
#[derive(Clone, Copy, Debug)]
pub(super) struct WallClock {
    /// A time of the caller's choice, and when it was that. This host's if there is none.
    fixed: Option<(SystemTime, Instant)>,
}

impl WallClock {
    pub(super) fn now(self) -> SystemTime {
        match self.fixed {
            // A time at the end of all that can be said stays there.
            Some((time, since)) => time.checked_add(since.elapsed()).unwrap_or(time),
            None => SystemTime::now(),
        }
    }
}
