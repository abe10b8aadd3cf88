//! One command, as the host sees it.

use std::collections::VecDeque;
use std::task::Waker;

use crate::protocol::{Failure, Outcome, Spawn, Stream, Usage, WINDOW};

/// One command, as the host sees it.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) started: Option<Result<u32, Failure>>,
    pub(super) outcome: Option<Outcome>,
    /// It is a runner, and not warm yet.
    pub(super) cold: bool,
    /// It is a runner, and warm.
    pub(super) warm: bool,
    /// Who waits for `started`, `outcome` or `warm`.
    pub(super) waiter: Option<Waker>,
    pub(super) usage: Measured,
    pub(super) stdin: Outgoing,
    pub(super) stdout: Incoming,
    pub(super) stderr: Incoming,
    /// How many of `Process` and its streams are left.
    pub(super) handles: usize,
}

/// What the agent was asked of its use, and has said.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// How often it was asked.
    pub(super) asked: u64,
    /// How often it has answered.
    pub(super) answered: u64,
    /// Its last answer.
    pub(super) last: Option<Usage>,
    pub(super) waiters: Vec<Waker>,
}

/// Standard input, on its way to the guest.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) credit: u32,
    pub(super) closed: bool,
    pub(super) waker: Option<Waker>,
}

/// An output, as far as it has come.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) buffer: VecDeque<u8>,
    /// What the agent may still send.
    pub(super) window: u32,
    /// What has been read since the window was last opened.
    consumed: u32,
    pub(super) ended: bool,
    /// Nobody will read it: what comes is dropped.
    pub(super) discard: bool,
    pub(super) waker: Option<Waker>,
}

impl Incoming {
    fn new() -> Self {
        Self {
            buffer: VecDeque::new(),
            window: WINDOW,
            consumed: 0,
            ended: false,
            discard: false,
            waker: None,
        }
    }

    /// Counts bytes as read. Says by how much to open the window, in steps large enough to not
    /// cost a frame for every read and small enough to never let the sender run dry.
    pub(super) fn consume(&mut self, bytes: usize) -> Option<u32> {
        // At most what the buffer held, which the window bounds.
        self.consumed += bytes as u32;
        if self.ended || self.consumed < WINDOW / 2 {
            return None;
        }
        let bytes = std::mem::take(&mut self.consumed);
        self.window += bytes;
        Some(bytes)
    }
}

impl Channel {
    pub(super) fn new(spawn: &Spawn) -> Self {
        let piped = spawn.wants_stdin();
        let mut stderr = Incoming::new();
        // A terminal's output is all on stdout, and the agent sends no end for the other.
        stderr.ended = spawn.pty.is_some();
        Self {
            started: None,
            outcome: None,
            cold: false,
            warm: false,
            waiter: None,
            usage: Measured::default(),
            stdin: Outgoing {
                credit: WINDOW,
                closed: !piped,
                waker: None,
            },
            stdout: Incoming::new(),
            stderr,
            handles: 0,
        }
    }

    pub(super) fn output(&mut self, stream: Stream) -> &mut Incoming {
        match stream {
            Stream::Stderr => &mut self.stderr,
            _ => &mut self.stdout,
        }
    }

    /// The agent has said its last word about it.
    pub(super) fn finished(&self) -> bool {
        match self.started {
            Some(Err(_)) => true,
            _ => self.outcome.is_some() && self.stdout.ended && self.stderr.ended,
        }
    }

    pub(super) fn take_wakers(&mut self) -> impl Iterator<Item = Waker> + use<> {
        let wakers = [
            self.waiter.take(),
            self.stdin.waker.take(),
            self.stdout.waker.take(),
            self.stderr.waker.take(),
        ];
        let usage = std::mem::take(&mut self.usage.waiters);
        wakers.into_iter().flatten().chain(usage)
    }
}
