//! The agent's loop: connections, requests, and the processes that come of them.
//!
//! [`Agent`] is what lasts from one connection to the next, `Session` what belongs to one.
//! Everything is watched by one epoll instance, for changes only (edge-triggered): a descriptor
//! is registered once and costs no further calls.

mod command;
mod connection;
mod freeze;
mod hooks;
mod limits;
mod runner;
mod running;
mod session;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::identity::Identities;
use super::spawn::Spawner;
use super::sys;
use super::tree::{Tree, Trees};
use crate::protocol::{MAX_DATA, Stream};

pub(crate) use hooks::Hooks;
use session::Session;

/// The most trees that outlive their commands (daemons). With more, no new command is started.
const MAX_LINGERING: usize = 1024;
/// The longest wait between two attempts to connect.
const MAX_PAUSE: Duration = Duration::from_millis(100);
/// How long killed processes are waited for before a new connection is served.
const BURIAL: Duration = Duration::from_secs(2);
/// The most events taken from the kernel at a time.
const EVENTS: usize = 64;

/// How an agent's work ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The host, or a signal, asked for it.
    PowerOff,
}

/// What lasts from one connection to the next.
#[derive(Debug)]
pub(crate) struct Agent {
    epoll: Epoll,
    signals: SignalFd,
    /// A signal has asked for the agent's end.
    told_to_end: bool,
    trees: Trees,
    spawner: Spawner,
    identities: Identities,
    hooks: Hooks,
    /// What commands have left behind and their deadlines, if they had any.
    lingering: Vec<(Tree, Option<Instant>)>,
    /// For what is read, from wherever: as much as a frame of data holds.
    scratch: Box<[u8]>,
    /// What need not be done before the host can be answered.
    later: Option<Chores>,
}

/// Something that is done once.
struct Chores(Box<dyn FnOnce()>);

impl std::fmt::Debug for Chores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chores").finish_non_exhaustive()
    }
}

/// Whom an event is for. Packed into epoll's 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Connection,
    Signals,
    Source,
    /// Somebody who wants to be told of new identities wants to connect.
    Hooks,
    /// Somebody like that says something.
    Hook(u32),
    /// A runner, or its newborn spare.
    Runner(u32),
    Stream(Id, Stream),
}

/// Names a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    /// By the host's request.
    Request(u32),
    /// By a number of the agent's own: the host that asked for it is another machine's.
    Detached(u32),
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Self::Connection => 0,
            Self::Signals => 1,
            Self::Source => 2,
            Self::Hooks => 12,
            Self::Hook(number) => u64::from(number) << 8 | 13,
            Self::Runner(number) => u64::from(number) << 8 | 3,
            Self::Stream(Id::Request(number), stream) => u64::from(number) << 8 | 4 | stream as u64,
            Self::Stream(Id::Detached(number), stream) => {
                u64::from(number) << 8 | 8 | stream as u64
            }
        }
    }

    fn unpack(data: u64) -> Self {
        // The number was packed by `pack` and is 32 bits wide.
        let number = (data >> 8) as u32;
        let id = match data & 8 {
            0 => Id::Request(number),
            _ => Id::Detached(number),
        };
        match data & 0xff {
            0 => Self::Connection,
            1 => Self::Signals,
            2 => Self::Source,
            3 => Self::Runner(number),
            12 => Self::Hooks,
            13 => Self::Hook(number),
            4 | 8 => Self::Stream(id, Stream::Stdin),
            5 | 9 => Self::Stream(id, Stream::Stdout),
            _ => Self::Stream(id, Stream::Stderr),
        }
    }
}

impl Agent {
    /// Takes the process's signals over.
    pub(crate) fn new(trees: Trees, identities: Identities, hooks: Hooks) -> io::Result<Self> {
        // All are blocked: those below are read from a descriptor, the others mean nothing here.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
        let mut read = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            read.add(signal);
        }
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&read, flags)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let agent = Self {
            epoll,
            signals,
            told_to_end: false,
            trees,
            spawner: Spawner::new()?,
            identities,
            hooks,
            lingering: Vec::new(),
            scratch: vec![0; MAX_DATA].into(),
            later: None,
        };
        agent.watch(&agent.signals, EpollFlags::EPOLLIN, Token::Signals)?;
        if let Some(listener) = agent.hooks.listener() {
            agent.watch(listener, EpollFlags::EPOLLIN, Token::Hooks)?;
        }
        Ok(agent)
    }

    /// Has `chores` done in the first quiet moment of a connection, or before the host's first
    /// request: in any case before there is a program.
    pub(crate) fn do_later(&mut self, chores: impl FnOnce() + 'static) {
        self.later = Some(Chores(Box::new(chores)));
    }

    fn settle(&mut self) {
        if let Some(Chores(work)) = self.later.take() {
            work();
        }
    }

    /// Wakes the wait for a connection when `source` can be read.
    pub(crate) fn watch_source(&self, source: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.watch(source, EpollFlags::EPOLLIN, Token::Source)?)
    }

    fn watch(
        &self,
        fd: impl std::os::fd::AsFd,
        flags: EpollFlags,
        token: Token,
    ) -> Result<(), Errno> {
        self.epoll.add(
            fd,
            EpollEvent::new(flags | EpollFlags::EPOLLET, token.pack()),
        )
    }

    /// Watches on what is already watched, under another name. What is there now is told again.
    fn rename(
        &self,
        fd: impl std::os::fd::AsFd,
        flags: EpollFlags,
        token: Token,
    ) -> Result<(), Errno> {
        let mut event = EpollEvent::new(flags | EpollFlags::EPOLLET, token.pack());
        self.epoll.modify(fd, &mut event)
    }

    /// Serves one connection after the other. `connect` makes one if it can now.
    pub(crate) fn run(
        &mut self,
        mut connect: impl FnMut() -> io::Result<Option<OwnedFd>>,
    ) -> io::Result<End> {
        let mut pause = Duration::ZERO;
        loop {
            if self.told_to_end {
                return Ok(End::PowerOff);
            }
            let Some(stream) = connect()? else {
                pause = (pause * 2).clamp(Duration::from_millis(1), MAX_PAUSE);
                self.idle(pause)?;
                continue;
            };
            pause = Duration::ZERO;
            let end = Session::new(self, stream).and_then(Session::run);
            // A connection's commands end with it.
            self.end_everything();
            match end {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => {}
                Err(error) => super::complain(&format_args!("lost a connection: {error}")),
            }
        }
    }

    /// Waits without a connection.
    fn idle(&mut self, time: Duration) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        self.wait(&mut events, Some(time))?;
        self.read_signals();
        while sys::reap().is_some() {}
        Ok(())
    }

    /// Waits for events, at most for `time`.
    fn wait(&self, events: &mut [EpollEvent], time: Option<Duration>) -> io::Result<usize> {
        let timeout = match time {
            None => EpollTimeout::NONE,
            // Rounded up, or the end of a wait would be waited for in a loop.
            Some(time) => {
                let millis = time.as_nanos().div_ceil(1_000_000);
                EpollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX))
                    .unwrap_or(EpollTimeout::MAX)
            }
        };
        match self.epoll.wait(events, timeout) {
            Ok(count) => Ok(count),
            Err(Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes note of the signals that have come.
    fn read_signals(&mut self) {
        // At most one of each kind is there: they are not queued (signal(7)).
        while let Ok(Some(info)) = self.signals.read_signal() {
            self.told_to_end |= info.ssi_signo != Signal::SIGCHLD as u32;
        }
    }

    /// Forgets what commands left behind as far as it has ended, and ends what has lived as long
    /// as it may.
    fn tend_lingering(&mut self, now: Instant) {
        self.lingering.retain_mut(|(tree, deadline)| {
            if deadline.is_some_and(|deadline| deadline <= now) {
                tree.kill();
                *deadline = None;
            }
            !tree.clear()
        });
    }

    /// Ends everything that was ever started and waits until it is gone.
    pub(crate) fn end_everything(&mut self) {
        let end = Instant::now() + BURIAL;
        let mut events = [EpollEvent::empty(); EVENTS];
        while !self.lingering.is_empty() && Instant::now() < end {
            // Again each time: without cgroups, a fork may have been missed.
            self.lingering.iter_mut().for_each(|(tree, _)| tree.kill());
            while sys::reap().is_some() {}
            self.lingering.retain_mut(|(tree, _)| !tree.clear());
            if !self.lingering.is_empty() {
                // The end of a child wakes this.
                let _ = self.wait(&mut events, Some(Duration::from_millis(1)));
                self.read_signals();
            }
        }
        while sys::reap().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        let streams = [Stream::Stdin, Stream::Stdout, Stream::Stderr];
        let of_streams = streams.into_iter().flat_map(|stream| {
            [
                Id::Request(1),
                Id::Request(u32::MAX),
                Id::Detached(1),
                Id::Detached(u32::MAX),
            ]
            .map(|id| Token::Stream(id, stream))
        });
        let others = [
            Token::Connection,
            Token::Signals,
            Token::Source,
            Token::Runner(u32::MAX),
            Token::Hooks,
            Token::Hook(u32::MAX),
        ];
        for token in of_streams.chain(others) {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
