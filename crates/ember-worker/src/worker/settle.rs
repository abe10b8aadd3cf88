//! What a process of its own begins with: none of what its parent had.
#![allow(unsafe_code, reason = "descriptors and signals of the whole process")]

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::libc;
use nix::sys::signal::SigSet;
use rustix::process::{
    Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit, setsid, umask,
};

/// Makes this process the worker's own, and gives the socket to its owner. To be called first, while
/// it has one thread.
pub(super) fn settle() -> io::Result<OwnedFd> {
    // Before anything else is opened, so that whatever is open was inherited: an application may have
    // descriptors that are not marked to be closed.
    close_from(3)?;
    // Before the socket is looked at: an owner that ends in between is noticed there.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    default_signals();
    SigSet::empty().thread_set_mask()?;
    // A terminal's signals (Ctrl-C above all) are the application's, which may want to go on.
    setsid()?;
    env::set_current_dir("/")?;
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    // A core file would have the guest's memory in it.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    rustix::thread::set_name(c"ember-worker")?;

    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let kind = rustix::net::sockopt::socket_type(&socket)?;
    if kind != rustix::net::SocketType::SEQPACKET {
        return Err(io::Error::other("standard input is not a worker's socket"));
    }
    // What reads from there must not take frames away.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}

/// Closes all descriptors from `first` on.
fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: nothing in this process has opened any of them yet, so that nothing uses them.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Signals that the application ignores would be ignored here, too (signal(7)).
fn default_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // A peer that is gone is an error of the write here, as in every Rust program.
        if number != libc::SIGPIPE {
            // SAFETY: no handler is installed. It fails for those that cannot be changed, which is
            // what they are for.
            unsafe { libc::signal(number, libc::SIG_DFL) };
        }
    }
}
