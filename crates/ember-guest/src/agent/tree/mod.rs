//! A command and everything it has started, as one thing that can be ended.
//!
//! In a guest that is a cgroup: whatever a process does, its children stay in it, and writing to
//! `cgroup.kill` ends all of them at once. Without cgroups (the agent's tests on a machine that
//! offers none) it is found in `/proc`, by session and parent, which a process that works at it
//! can escape.

mod cgroup;
mod memory;
mod session;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use super::room::Room;
use crate::protocol::{ErrorCode, Failure, Limits, Spawn};

use cgroup::{Cgroup, Cgroups};
use session::{Session, Sessions};

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
    pub(crate) fn plant(&mut self, request: &Spawn) -> Result<Tree, Failure> {
        let limits = request.all_limits();
        if request.confined {
            let tree = self.plant_room()?;
            tree.limit(&limits)?;
            return Ok(tree);
        }
        self.check(&limits)?;
        match self {
            Self::Cgroups(cgroups) => cgroups.create(&limits).map(Tree::Cgroup),
            Self::Sessions(sessions) => Ok(Tree::Session(sessions.create())),
        }
    }

    /// A tree with a room, for a confined command.
    pub(crate) fn plant_room(&mut self) -> Result<Tree, Failure> {
        match self {
            Self::Cgroups(cgroups) => cgroups.create_room().map(Tree::Cgroup),
            Self::Sessions(_) => Err(Failure::new(
                ErrorCode::Unsupported,
                "cannot confine a command: the guest's kernel has no cgroup2",
            )),
        }
    }

    /// Whether the kernel has what it takes to confine commands.
    pub(crate) fn has_rooms(&self) -> bool {
        matches!(self, Self::Cgroups(cgroups) if cgroups.has_rooms())
    }

    /// Whether commands can be confined, which is tried.
    pub(crate) fn can_confine(&mut self) -> bool {
        match self {
            Self::Cgroups(cgroups) => cgroups.can_confine(),
            Self::Sessions(_) => false,
        }
    }

    /// A tree for a process that waits for a command, whose limits are not known yet.
    pub(crate) fn plant_for_any(&mut self) -> Result<Tree, Failure> {
        match self {
            Self::Cgroups(cgroups) => cgroups.create_for_any().map(Tree::Cgroup),
            Self::Sessions(sessions) => Ok(Tree::Session(sessions.create())),
        }
    }

    /// Whether these limits can be kept here.
    pub(crate) fn check(&mut self, limits: &Limits) -> Result<(), Failure> {
        match self {
            _ if !limits.need_controllers() => Ok(()),
            Self::Cgroups(cgroups) => cgroups.start_limiting(),
            Self::Sessions(_) => Err(Failure::new(
                ErrorCode::Unsupported,
                "cannot limit the memory, processes or disk of a command: \
                 the guest's kernel has no cgroup2",
            )),
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

    /// The room that it has, if it is for a confined command.
    pub(crate) fn room(&self) -> Option<&Room> {
        self.as_cgroup()?.room()
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

    /// Whether nothing is left of it that was started: the first process of a room does not count.
    pub(crate) fn is_idle(&mut self) -> bool {
        match self {
            Self::Cgroup(cgroup) => cgroup.is_idle(),
            Self::Session(session) => session.is_empty(),
        }
    }

    /// Ends all of it. Processes may take a moment to be gone.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Cgroup(cgroup) => cgroup.kill(),
            Self::Session(session) => session.kill(),
        }
    }

    fn as_cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::Cgroup(cgroup) => Some(cgroup),
            Self::Session(_) => None,
        }
    }

    /// Sets the limits that the kernel enforces, in a tree that was planted with any.
    pub(crate) fn limit(&self, limits: &Limits) -> Result<(), Failure> {
        self.as_cgroup()
            .map_or(Ok(()), |cgroup| cgroup.limit(limits))
    }

    /// Processor time in user mode and in the kernel, of all that was ever in it, if that is counted.
    pub(crate) fn processor_time(&self) -> Option<(Duration, Duration)> {
        self.as_cgroup()?.processor_time()
    }

    /// Whether the kernel killed some of it for want of memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.as_cgroup().is_some_and(Cgroup::ran_out_of_memory)
    }

    /// Whether the kernel refused it a process.
    pub(crate) fn ran_out_of_processes(&self) -> bool {
        self.as_cgroup().is_some_and(Cgroup::ran_out_of_processes)
    }

    /// Bytes of memory that its files take.
    pub(crate) fn disk(&self) -> u64 {
        self.as_cgroup().map_or(0, Cgroup::disk)
    }

    /// The memory that it has, if that is counted.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.as_cgroup()?.memory()
    }

    /// The processes that it has, if they are counted.
    pub(crate) fn processes(&self) -> Option<u64> {
        self.as_cgroup()?.processes()
    }

    /// The most memory it had, if that is counted.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        self.as_cgroup()?.peak_memory()
    }

    /// The most processes it had, if they are counted.
    pub(crate) fn peak_processes(&self) -> Option<u64> {
        self.as_cgroup()?.peak_processes()
    }

    /// Forgets it if nothing of it is left.
    pub(crate) fn clear(&mut self) -> bool {
        match self {
            Self::Cgroup(cgroup) => cgroup.remove(),
            Self::Session(session) => session.clear(),
        }
    }
}
