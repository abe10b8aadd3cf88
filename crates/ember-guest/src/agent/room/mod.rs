//! A room for a command that is to be kept from everything else in the guest.
//!
//! A room is a PID namespace, a mount namespace and an IPC namespace (namespaces(7)), held open by a
//! first process that does nothing: it buries orphans by ignoring them, and when it ends, the
//! kernel ends everybody else in the room. What runs in it sees a `/proc` of the room alone, and
//! can change no setting of the kernel's, whoever it runs as.
//!
//! The command itself is a child of the agent's, so that its end is told exactly; only its number
//! is given in the room. It is not the room's first process, which the kernel treats as no other:
//! signals that it does not handle do not reach it.

mod birth;
pub(crate) mod filter;
pub(crate) mod rights;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::unistd::geteuid;

/// Whether the kernel has all that rooms are made of, and lets the agent make them.
pub(crate) fn can_be_made() -> bool {
    let namespaces = ["pid", "mnt", "ipc"].map(|name| format!("/proc/self/ns/{name}"));
    // A kernel without filters of system calls has no such directory (seccomp(2)).
    let parts = namespaces.iter().map(String::as_str);
    geteuid().is_root()
        && parts
            .chain(["/proc/sys/kernel/seccomp"])
            .all(|part| Path::new(part).exists())
}

/// The namespaces of a room.
#[derive(Debug)]
pub(crate) struct Room {
    pid: OwnedFd,
    mount: OwnedFd,
    ipc: OwnedFd,
}

impl Room {
    /// Makes one, whose first process is in `cgroup` and lives until it is killed.
    pub(crate) fn make(cgroup: BorrowedFd<'_>) -> io::Result<Self> {
        let first = birth::first_process(cgroup)?;
        let namespace =
            |name: &str| File::open(format!("/proc/{first}/ns/{name}")).map(OwnedFd::from);
        Ok(Self {
            pid: namespace("pid")?,
            mount: namespace("mnt")?,
            ipc: namespace("ipc")?,
        })
    }

    /// What a process enters by itself.
    pub(crate) fn inner(&self) -> [BorrowedFd<'_>; 2] {
        [self.mount.as_fd(), self.ipc.as_fd()]
    }

    /// All of it, for a runner that makes a process in it.
    pub(crate) fn all(&self) -> [BorrowedFd<'_>; 3] {
        [self.pid.as_fd(), self.mount.as_fd(), self.ipc.as_fd()]
    }

    /// Whether a process that was made elsewhere is in it, and can do no more than what runs in it
    /// may: it has no capabilities and gets none, and a filter for its system calls.
    pub(crate) fn holds(&self, pid: i32) -> bool {
        let same = |fd: &OwnedFd, name: &str| {
            let ours = File::from(fd.try_clone().ok()?).metadata().ok()?;
            let its = fs::metadata(format!("/proc/{pid}/ns/{name}")).ok()?;
            Some(ours.ino() == its.ino() && ours.dev() == its.dev())
        };
        let inside = [(&self.pid, "pid"), (&self.mount, "mnt"), (&self.ipc, "ipc")]
            .into_iter()
            .all(|(fd, name)| same(fd, name) == Some(true));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        inside && is_confined(&status)
    }
}

/// Of `/proc/PID/status` (proc(5)).
fn is_confined(status: &str) -> bool {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    let none = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .into_iter()
        .all(|set| field(set).is_some_and(|bits| bits.bytes().all(|digit| digit == b'0')));
    // Rights are each thread's own.
    none && field("Threads") == Some("1")
        && field("NoNewPrivs") == Some("1")
        && field("Seccomp") == Some("2")
}

/// Has the next children made in a room; dropped, in the agent's own namespace again.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a OwnedFd);

impl<'a> Inside<'a> {
    pub(crate) fn of(room: &Room, own: &'a OwnedFd) -> io::Result<Self> {
        setns(&room.pid, CloneFlags::CLONE_NEWPID)?;
        Ok(Self(own))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // One's own is always open to one (pid_namespaces(7)).
        let _ = setns(self.0, CloneFlags::CLONE_NEWPID);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_confined() {
        let status = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
            CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n\
            Threads:\t1\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert!(is_confined(status));
        for (good, bad) in [
            ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000001"),
            ("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Threads:\t1", "Threads:\t2"),
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("CapAmb:\t0000000000000000\n", ""),
        ] {
            assert!(!is_confined(&status.replace(good, bad)), "{bad}");
        }
        assert!(!is_confined(""));
    }
}
