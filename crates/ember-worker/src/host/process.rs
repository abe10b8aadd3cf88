//! A worker's process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::wire;

/// The worker program in a file in memory that nobody can change. All workers are mapped from it.
#[derive(Debug)]
pub(super) struct Program(File);

/// A process that was started. It has to be [reaped](Self::reap).
#[derive(Debug)]
pub(super) struct Process {
    id: u32,
    /// Refers to this very process, also when another has its number.
    pidfd: OwnedFd,
}

impl Program {
    pub(super) fn new(bytes: &[u8]) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = match memfd_create(c"ember-worker", flags | MemfdFlags::EXEC) {
            // Before Linux 6.3 there is no such flag, and nothing that forbids.
            Err(rustix::io::Errno::INVAL) => memfd_create(c"ember-worker", flags),
            Err(rustix::io::Errno::ACCESS) => {
                return Err(io::Error::other(
                    "this host forbids to execute files in memory: set vm.memfd_noexec=1 or 0 \
                     with sysctl",
                ));
            }
            other => other,
        }?;
        let file = File::from(file);
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0)?;
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(Self(file))
    }

    /// Starts a worker. It is killed when the thread that calls this ends (prctl(2),
    /// `PR_SET_PDEATHSIG`), and ends when the returned socket is closed.
    ///
    /// The standard library uses `posix_spawn(3)` here, which shares this process's memory until the
    /// program is executed: to copy it (`fork`) would take long in a large process, and would have
    /// every VM in it copy each page that it writes to from then on. That is why there is nothing to
    /// be run in the child before the program: the program does it, first of all.
    pub(super) fn start(&self) -> io::Result<(Process, OwnedFd)> {
        let (ours, theirs) = wire::pair()?;
        let child = Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
            .arg0("ember-worker")
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let id = child.id();
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process has no number"))?;
        // It has not been waited for, so that the number is still its own.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok((Process { id, pidfd }, ours))
    }
}

impl Process {
    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// How much memory it has of its own, be it in memory or swapped out, in bytes: what a private
    /// mapping of a file has copied is in it, and what it only reads of one is not. The kernel keeps
    /// the count, so that it is had in no time however much there is (proc_pid_status(5): it may be
    /// behind by some dozen pages a processor). Nothing that the process does can falsify it.
    pub(super) fn own_memory(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id))?;
        // Another process may have the number by now, but only if this one has ended before.
        if self.has_ended()? {
            return Err(io::Error::other("the process has ended"));
        }
        own_memory_in(&status).ok_or_else(|| io::Error::other("its memory is not told in /proc"))
    }

    fn has_ended(&self) -> io::Result<bool> {
        let mut ends = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let ready = poll(&mut ends, Some(&Timespec::default()))?;
        Ok(ready > 0)
    }

    /// Readable when it has ended.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends it, now.
    pub(super) fn kill(&self) {
        // It fails if it has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for its end, takes it off the kernel's list, and says how it ended.
    pub(super) fn reap(&self) -> String {
        let id = self.id;
        let status = loop {
            let all = WaitIdOptions::EXITED;
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), all) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other,
            }
        };
        // An application that waits for all of its children, or ignores their ends, was first.
        let Ok(Some(status)) = status else {
            return format!("the worker process {id} ended");
        };
        if let Some(signal) = status.terminating_signal() {
            format!("the worker process {id} was killed by signal {signal}")
        } else if let Some(status) = status.exit_status() {
            format!("the worker process {id} ended with status {status}")
        } else {
            format!("the worker process {id} ended")
        }
    }
}

/// The sum of `RssAnon` and `VmSwap` of a `/proc/PID/status`, in bytes.
fn own_memory_in(status: &str) -> Option<u64> {
    let value = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    // A kernel without swap has no such line.
    value("RssAnon:").map(|anonymous| anonymous.saturating_add(value("VmSwap:").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::own_memory_in;

    #[test]
    fn memory_of_its_own_is_what_is_in_memory_and_in_swap() {
        let status = "Name:\tember-worker\nVmRSS:\t    9000 kB\nRssAnon:\t    1024 kB\n\
                      RssFile:\t    4096 kB\nVmSwap:\t      16 kB\nThreads:\t3\n";
        assert_eq!(own_memory_in(status), Some(1040 << 10));
        assert_eq!(own_memory_in("RssAnon:\t    1 kB\n"), Some(1024));
        for none in [
            "",
            "RssAnon: many kB\n",
            "RssAnon:\t18446744073709551615 kB\n",
        ] {
            assert_eq!(own_memory_in(none), None, "{none}");
        }
    }
}
