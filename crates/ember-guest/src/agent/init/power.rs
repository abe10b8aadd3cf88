//! The orderly end of a guest.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, sync};

use super::mounts;
use crate::agent::sys;

/// How long processes have to end themselves, and how long the kernel has to end the others.
const GRACE: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(1);

/// Ends every process, puts what is to last on its device, and powers the machine off. Comes back
/// only if that fails.
pub(super) fn off() -> Errno {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // Minus one is everybody but PID 1 (kill(2)). None left is no error.
        let _ = kill(Pid::from_raw(-1), signal);
        let end = Instant::now() + GRACE;
        while bury() && Instant::now() < end {
            std::thread::sleep(STEP);
        }
    }
    sync();
    for target in mounts::writable_devices() {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let none = None::<&str>;
        // What is busy stays as it is, synchronized above.
        let _ = mount(none, Path::new(&target), none, flags, none);
    }
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

/// Takes leave of who has ended. Says whether anybody is left.
fn bury() -> bool {
    while sys::reap().is_some() {}
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags).is_ok()
}
