//! What other threads ask of the device.

#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Accept, Caller, ConnectError, ListenError, VsockClosed};

/// How many commands may wait before further connections are refused. The device thread takes all
/// of them at once, so so many wait only while it is stopped.
const MAX_COMMANDS: usize = 4096;

/// Something for the device thread to do.
pub(super) enum Command {
    /// Open a stream to a port of the guest.
    Connect { port: u32, caller: Caller },
    /// Accept connections to a port of the host.
    Listen { port: u32, accept: Accept },
    /// Stop accepting.
    Unlisten { port: u32 },
}

/// Commands on their way to the device thread.
pub(super) struct Mailbox {
    state: Mutex<State>,
    /// Readable while there are commands.
    pub(super) wake: EventFd,
}

#[derive(Default)]
struct State {
    closed: bool,
    commands: VecDeque<Command>,
    /// The ports that are listened on, or will be when the commands have been carried out.
    listening: HashSet<u32>,
    /// Host's ends of streams that a restored guest had open, by host port.
    carried: Vec<(u32, UnixStream)>,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            wake: EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })
    }

    /// Leaves word to connect.
    pub(super) fn connect(&self, port: u32, caller: Caller) -> Result<(), VsockClosed> {
        let mut state = self.lock();
        if state.closed {
            return Err(VsockClosed);
        }
        if state.commands.len() < MAX_COMMANDS {
            self.push(&mut state, Command::Connect { port, caller });
        } else {
            drop(state);
            caller.refuse(ConnectError::TooManyStreams { port });
        }
        Ok(())
    }

    /// Leaves word to listen, unless the port is taken.
    pub(super) fn listen(&self, port: u32, accept: Accept) -> Result<(), ListenError> {
        let mut state = self.lock();
        if state.closed {
            return Err(ListenError::Closed);
        }
        if !state.listening.insert(port) {
            return Err(ListenError::InUse(port));
        }
        self.push(&mut state, Command::Listen { port, accept });
        Ok(())
    }

    /// Leaves word to listen no more.
    pub(super) fn unlisten(&self, port: u32) {
        let mut state = self.lock();
        if state.listening.remove(&port) {
            self.push(&mut state, Command::Unlisten { port });
        }
    }

    /// Leaves host's ends of streams to be picked up.
    pub(super) fn put_carried(&self, streams: Vec<(u32, UnixStream)>) {
        self.lock().carried = streams;
    }

    /// Picks up the host's end of a stream to the host's `port`.
    pub(super) fn take_carried(&self, port: u32) -> Option<UnixStream> {
        let mut state = self.lock();
        let index = state.carried.iter().position(|(host, _)| *host == port)?;
        Some(state.carried.swap_remove(index).1)
    }

    /// Takes all commands, oldest first.
    pub(super) fn take(&self) -> VecDeque<Command> {
        let mut state = self.lock();
        // Under the lock, so that no command can be left behind without its wake-up.
        let _ = self.wake.read();
        std::mem::take(&mut state.commands)
    }

    /// Accepts no more commands, and returns those that were not carried out.
    pub(super) fn close(&self) -> VecDeque<Command> {
        let mut state = self.lock();
        state.closed = true;
        state.listening.clear();
        state.carried.clear();
        std::mem::take(&mut state.commands)
    }

    fn push(&self, state: &mut State, command: Command) {
        if state.commands.is_empty() {
            // Cannot fail: the counter is far from overflowing.
            let _ = self.wake.write(1);
        }
        state.commands.push_back(command);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way, so the state is whole even if a thread did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
