//! The worker: one process, one VM, and whatever its owner asks of it.
//!
//! It is started idle, by a supervisor in its owner's process, and has nothing then but its end of a
//! socket. Everything else comes over that: KVM, the memory, the disks, the guest's channel. From
//! then on it opens no path.
//!
//! It ends when its owner does: its socket is at its end, and the kernel kills it besides.

mod machine;
mod serve;
mod settle;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{self, ExitCode};

use ember_vmm::ExitReason;

use crate::protocol::Message;
use serve::Owner;

/// The worker's exit statuses. None of them is what a working one ends with: it is killed.
mod status {
    /// The owner is gone.
    pub(super) const ABANDONED: i32 = 0;
    /// This process is not what it should be.
    pub(super) const UNSETTLED: i32 = 2;
    /// The owner did not keep to the protocol.
    pub(super) const PROTOCOL: i32 = 3;
    /// A mistake of ours.
    pub(super) const PANICKED: i32 = 101;
}

/// The program.
pub fn main() -> ExitCode {
    let socket = match settle::settle() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("ember-worker: {error}; it is started by the library and by nobody else");
            process::exit(status::UNSETTLED);
        }
    };
    // This is the place of the jail: nothing of anybody's has come in yet, no other thread runs, and
    // from here on no path is opened, but for /dev/userfaultfd where that is what allows it. What
    // belongs here is what only the process can do to itself (no new privileges, an empty root and
    // namespaces, no capabilities, another user, the seccomp filter that all threads inherit); its
    // control group is its owner's to choose when it is started.
    let owner = Owner::new(socket);
    let outcome = catch_unwind(AssertUnwindSafe(|| serve::serve(&owner)));
    // Nothing is freed here: the kernel does that faster, and all at once.
    process::exit(match outcome {
        Ok(Ok(())) => status::ABANDONED,
        Ok(Err(error)) => {
            let what = format!("the worker does not understand its owner: {error}");
            owner.tell(&ended(what));
            status::PROTOCOL
        }
        Err(_) => {
            owner.tell(&ended("the worker panicked".to_owned()));
            status::PANICKED
        }
    });
}

fn ended(what: String) -> Message {
    Message::Ended {
        reason: ExitReason::MonitorFailed { what },
        console: Vec::new().into(),
    }
}
