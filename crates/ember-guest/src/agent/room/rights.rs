//! What a process may do, beyond what its user may (capabilities(7)).
//!
//! Raw system calls on numbers and on memory of this module's own, so that they can be made between
//! clone and exec.
#![allow(
    unsafe_code,
    reason = "prctl(2) and capset(2) by number, of processes that share the agent's memory"
)]

use nix::errno::Errno;
use nix::libc;

/// From `linux/capability.h`.
const SETPCAP: u32 = 8;
const SYS_CHROOT: u32 = 18;
const SYS_ADMIN: u32 = 21;
/// More than Linux has of them, and the most that it can have.
const CAPABILITIES: u32 = 64;
/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// What a runner needs to put its programs into rooms: to enter namespaces (setns(2)), and to give
/// rights up for good (capset(2)).
const OF_A_RUNNER: [u32; 3] = [SETPCAP, SYS_CHROOT, SYS_ADMIN];

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Each as two halves of 32 bits, the low ones first.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn check(result: impl Into<i64>) -> Result<(), Errno> {
    match result.into() {
        0.. => Ok(()),
        _ => Err(Errno::last()),
    }
}

fn set(capabilities: u32) -> Result<(), Errno> {
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let low = Sets {
        effective: capabilities,
        permitted: capabilities,
        inheritable: capabilities,
    };
    let high = Sets {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    };
    let both = [low, high];
    // SAFETY: reads a header and two sets, as the version says, which live across the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const both) })
}

/// No program that is executed from now on gets any but these, whatever its file says.
pub(crate) fn bound(kept: &[u32]) -> Result<(), Errno> {
    for capability in (0..CAPABILITIES).filter(|it| !kept.contains(it)) {
        // SAFETY: no pointers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            // The kernel knows no more of them.
            Err(Errno::EINVAL) => break,
            result => result?,
        }
    }
    Ok(())
}

/// Gives up every right there is, for good.
pub(crate) fn give_up() -> Result<(), Errno> {
    bound(&[])?;
    clear()
}

/// Gives up the rights that it has; those that it can get are bounded already.
pub(crate) fn clear() -> Result<(), Errno> {
    set(0)?;
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// Bounds the rights to a runner's, and keeps them when the user changes.
pub(crate) fn bound_to_runner() -> Result<(), Errno> {
    bound(&OF_A_RUNNER)?;
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) })
}

/// Has just these, and the program that is executed as well ("Ambient").
pub(crate) fn pass_to_runner() -> Result<(), Errno> {
    let mut all = 0;
    for capability in OF_A_RUNNER {
        all |= 1 << capability;
    }
    set(all)?;
    for capability in OF_A_RUNNER {
        // SAFETY: no pointers.
        check(unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE,
                capability,
                0,
                0,
            )
        })?;
    }
    Ok(())
}
