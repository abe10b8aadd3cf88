//! The first process of a room.
#![allow(
    unsafe_code,
    reason = "a process is made by clone3(2), which no crate wraps"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{pause, pipe2, setsid};

use super::rights;
use crate::agent::identity::BOOT_ID_FILE;
use crate::agent::sys;

/// From `linux/sched.h`; the C library's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

const PROC: &str = "/proc";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Makes it, and returns when the room is furnished.
pub(super) fn first_process(cgroup: BorrowedFd<'_>) -> io::Result<i32> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;
    let arguments = libc::clone_args {
        flags: flags as u64 | CLONE_INTO_CGROUP,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.as_raw_fd() as u64,
    };
    // SAFETY: reads `clone_args`, which lives across the call. Without CLONE_VM it is fork(2): the
    // child has its own copy of everything, of a process with one thread, so that no lock is held
    // by a thread that it does not have.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of_val(&arguments),
        )
    };
    match pid {
        0 => {
            drop(read);
            live(write.into())
        }
        1.. => {
            drop(write);
            let pid = i32::try_from(pid).map_err(io::Error::other)?;
            let mut said = Vec::new();
            File::from(read).read_to_end(&mut said)?;
            match &said[..] {
                b"ready" => Ok(pid),
                _ => {
                    sys::reap_child(pid);
                    let said = String::from_utf8_lossy(&said).into_owned();
                    Err(io::Error::other(said))
                }
            }
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// The whole life of the first process. It has the agent's memory, so it lets nobody look at it and
/// can do nothing itself.
fn live(mut parent: File) -> ! {
    let furnished = furnish().and_then(|()| {
        prctl::set_dumpable(false)?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        prctl::set_name(c"room")?;
        setsid()?;
        // Children of whoever has ended are buried by the kernel.
        // SAFETY: no handler is set.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
        rights::give_up()
    });
    let said = match furnished {
        Ok(()) => "ready".to_owned(),
        Err(errno) => format!("cannot set a room up: {}", errno.desc()),
    };
    let _ = parent.write_all(said.as_bytes());
    if furnished.is_ok() {
        sys::close_all();
        loop {
            // All signals are blocked, but the one that ends it.
            pause();
        }
    }
    // SAFETY: ends this process without running anything of the agent's.
    unsafe { libc::_exit(1) }
}

/// What is seen from within the room. What the agent's namespace mounts later is seen here too, and
/// nothing the other way.
fn furnish() -> Result<(), Errno> {
    let none = None::<&str>;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some("proc"), PROC, Some("proc"), quiet, none)?;
    let frozen = |place: &str| {
        let again = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | quiet;
        mount(none, place, none, again, none)
    };
    // Root's, but root need not be who may do all that root may.
    for place in ["/proc/sys", "/proc/irq", "/proc/bus"] {
        if Path::new(place).is_dir() {
            mount(Some(place), place, none, MsFlags::MS_BIND, none)?;
            frozen(place)?;
        }
    }
    for place in [
        "/proc/sysrq-trigger",
        "/dev/kmsg",
        "/dev/mem",
        "/dev/port",
        "/dev/vsock",
    ] {
        if Path::new(place).exists() {
            mount(Some("/dev/null"), place, none, MsFlags::MS_BIND, none)?;
        }
    }
    for place in ["/sys", "/sys/fs/cgroup"] {
        match frozen(place) {
            // Nothing is mounted there.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    // The new `/proc` shows the kernel's own, which is the same in all clones.
    if Path::new(BOOT_ID_FILE).exists() {
        mount(Some(BOOT_ID_FILE), BOOT_ID, none, MsFlags::MS_BIND, none)?;
        frozen(BOOT_ID)?;
    }
    Ok(())
}
