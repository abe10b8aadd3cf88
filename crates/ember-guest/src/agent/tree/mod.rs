//! A command and everything it has started, as one thing that can be ended.
//!
//! In a guest that is a cgroup: whatever a process does, its children stay in it, and writing to
//! `cgroup.kill` ends all of them at once. Without cgroups (the agent's tests on a machine that
//! offers none) it is found in `/proc`, by session and parent, which a process that works at it
//! can escape.

mod cgroup;
mod session;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::protocol::{ErrorCode, Failure, Limits};

use cgroup::{Cgroup, Cgroups};
use session::{Session, Sessions};

/// Refuses limits that nothing here would hold a command to.
pub(crate) fn can_hold(limits: &Limits) -> Result<(), Failure> {
    if limits.output.is_none() && limits.disk.is_none() {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::Unsupported,
        "cannot limit what a command writes: this version of the agent does not count it; \
         output can be cut where it is collected",
    ))
}

/// Where trees come from.
#[derive(Debug)]
pub(crate) enum Trees {
    Cgroups(Cgroups),
    Sessions(Sessions),
}

impl Trees {
    /// A cgroup a command, in `directory` of a cgroup2 file system.
    pub(crate) fn cgroups(directory: &Path) -> io::Result<Self> {
        Cgroups::new(directory).map(Self::Cgroups)
    }

    /// What `/proc` shows.
    pub(crate) fn by_session() -> Self {
        Self::Sessions(Sessions::default())
    }

    pub(crate) fn has_cgroups(&self) -> bool {
        matches!(self, Self::Cgroups(_))
    }

    /// A tree for a command that is about to start.
    pub(crate) fn plant(&mut self, limits: &Limits) -> Result<Tree, Failure> {
        can_hold(limits)?;
        match self {
            Self::Cgroups(cgroups) => cgroups.create(limits).map(Tree::Cgroup),
            Self::Sessions(_) if limits.memory.is_some() || limits.processes.is_some() => {
                Err(Failure::new(
                    ErrorCode::Unsupported,
                    "cannot limit the memory or processes of a command: \
                     the guest's kernel has no cgroup2",
                ))
            }
            Self::Sessions(sessions) => Ok(Tree::Session(sessions.create())),
        }
    }

    /// Does ahead of time what the next command needs.
    pub(crate) fn prepare(&mut self) {
        if let Self::Cgroups(cgroups) = self {
            cgroups.prepare();
        }
    }
}

/// A command and everything it has started.
#[derive(Debug)]
pub(crate) enum Tree {
    Cgroup(Cgroup),
    Session(Session),
}

impl Tree {
    /// The cgroup to start the command in.
    pub(crate) fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Cgroup(cgroup) => Some(cgroup.directory()),
            Self::Session(_) => None,
        }
    }

    /// The command has started as this process, a session leader.
    pub(crate) fn started(&mut self, pid: i32) {
        if let Self::Session(session) = self {
            session.started(pid);
        }
    }

    /// A process that was started elsewhere, a session leader, belongs to it from now on.
    pub(crate) fn adopt(&mut self, pid: i32) -> io::Result<()> {
        match self {
            Self::Cgroup(cgroup) => cgroup.adopt(pid),
            Self::Session(session) => {
                session.started(pid);
                Ok(())
            }
        }
    }

    /// Ends all of it. Processes may take a moment to be gone.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Cgroup(cgroup) => cgroup.kill(),
            Self::Session(session) => session.kill(),
        }
    }

    /// Whether none of it is left.
    pub(crate) fn is_empty(&mut self) -> bool {
        match self {
            Self::Cgroup(cgroup) => cgroup.is_empty(),
            Self::Session(session) => session.is_empty(),
        }
    }

    /// Whether the kernel killed some of it for want of memory within its limit.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        match self {
            Self::Cgroup(cgroup) => cgroup.ran_out_of_memory(),
            Self::Session(_) => false,
        }
    }

    /// Forgets it if nothing of it is left.
    pub(crate) fn clear(&mut self) -> bool {
        match self {
            Self::Cgroup(cgroup) => cgroup.remove(),
            Self::Session(session) => session.is_empty(),
        }
    }
}
