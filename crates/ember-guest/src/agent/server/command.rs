//! A command that runs: its streams, and what is known of its end.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::write;

use super::limits::Watch;
use crate::agent::spawn::Streams;
use crate::agent::sys::Reaped;
use crate::agent::tree::Tree;
use crate::protocol::{LimitHit, Outcome, Spawn, Stream, Usage, WINDOW};

/// The terminal's end-of-file character (VEOF of termios(3)), in its usual setting.
const END_OF_FILE: u8 = 4;

#[derive(Debug)]
pub(super) struct Command {
    pub(super) tree: Tree,
    /// Its first process, which leads its session and first process group.
    pub(super) leader: i32,
    start: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) input: Input,
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// How the leader ended, and when that was seen.
    exit: Option<(Reaped, Duration)>,
    /// Its tree was ended by its timeout or at the host's wish: its outputs are not waited for.
    forced: bool,
    pub(super) watch: Watch,
    pub(super) confined: bool,
    pub(super) reported: bool,
}

/// An output on its way to the host.
#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    /// What the host lets us send.
    pub(super) window: u32,
    /// In the list of outputs to be looked at.
    pub(super) queued: bool,
}

impl Output {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            window: WINDOW,
            queued: false,
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Command {
    pub(super) fn new(
        leader: i32,
        tree: Tree,
        streams: Streams,
        start: Instant,
        request: &Spawn,
    ) -> Self {
        let watch = Watch::new(request.all_limits(), &tree, start);
        let terminal = streams.stderr.is_none();
        Self {
            tree,
            leader,
            start,
            // A timeout beyond the clock's range is none.
            deadline: request
                .timeout
                .and_then(|timeout| start.checked_add(timeout)),
            input: Input::new(streams.stdin, terminal),
            stdout: Some(Output::new(streams.stdout)),
            stderr: streams.stderr.map(Output::new),
            exit: None,
            forced: false,
            watch,
            confined: request.confined,
            reported: false,
        }
    }

    pub(super) fn output(&mut self, stream: Stream) -> &mut Option<Output> {
        match stream {
            Stream::Stderr => &mut self.stderr,
            _ => &mut self.stdout,
        }
    }

    /// The terminal, for as long as its output is open.
    pub(super) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        let terminal = self.input.terminal.then_some(self.stdout.as_ref()?)?;
        Some(terminal.fd())
    }

    /// Its leader has ended.
    pub(super) fn exited(&mut self, reaped: Reaped) {
        self.exit = Some((reaped, self.start.elapsed()));
    }

    /// Ends whatever of it is alive.
    pub(super) fn kill(&mut self) {
        self.tree.kill();
        self.forced = true;
    }

    /// Its time is up.
    pub(super) fn time_out(&mut self) {
        self.deadline = None;
        // A command that ended in time, and whose reader is slow, has not timed out.
        if !self.tree.is_idle() {
            self.watch.hit(LimitHit::WallTime);
        }
        self.kill();
    }

    /// Looks at its limits, if it is time to. Says whether it was ended for one.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let hit = self.watch.look(&self.tree, now);
        if hit {
            self.kill();
        }
        hit
    }

    /// What it uses.
    pub(super) fn usage(&self) -> Usage {
        self.watch.usage(self.start.elapsed(), &self.tree)
    }

    /// Nothing but what is in its pipes can come from it any more.
    pub(super) fn is_over(&self) -> bool {
        self.forced && self.exit.is_some()
    }

    /// Its open outputs.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        let outputs = [
            (Stream::Stdout, self.stdout.as_ref()),
            (Stream::Stderr, self.stderr.as_ref()),
        ];
        outputs
            .into_iter()
            .filter_map(|(stream, output)| Some((stream, output?.fd())))
    }

    pub(super) fn outputs_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Its outcome, once it is due: its leader has ended and so have its outputs, unless its end
    /// was forced.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        let (reaped, wall) = self.exit.as_ref()?;
        (self.forced || self.outputs_closed())
            .then(|| self.watch.outcome(reaped, *wall, &self.tree))
    }
}

/// Standard input on its way to the command.
#[derive(Debug)]
pub(super) struct Input {
    fd: Option<OwnedFd>,
    /// What the command has not taken yet, at most `WINDOW`.
    waiting: VecDeque<u8>,
    /// What the host may still send.
    window: u32,
    /// What the command has taken since the window was last opened.
    taken: u32,
    /// The host has sent the last of it.
    ended: bool,
    terminal: bool,
    /// The last byte was a line's end, or none has come.
    at_line_start: bool,
    /// It is watched for room.
    pub(super) watched: bool,
}

/// What became of standard input.
#[derive(Debug, Default)]
pub(super) struct Fed {
    /// By how much to open the window.
    pub(super) window: Option<u32>,
    /// The command takes no more.
    pub(super) broken: bool,
    /// The command has to make room first.
    pub(super) full: bool,
}

/// The host has sent more than it may.
#[derive(Debug)]
pub(super) struct Overrun;

impl Input {
    fn new(fd: Option<OwnedFd>, terminal: bool) -> Self {
        Self {
            fd,
            waiting: VecDeque::new(),
            window: WINDOW,
            taken: 0,
            ended: false,
            terminal,
            at_line_start: true,
            watched: false,
        }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Takes bytes in and passes on what the command takes at once.
    pub(super) fn receive(&mut self, mut bytes: &[u8], end: bool) -> Result<Fed, Overrun> {
        // A frame's length is at most `MAX_DATA`.
        let length = bytes.len() as u32;
        self.window = self.window.checked_sub(length).ok_or(Overrun)?;
        if self.ended {
            return Err(Overrun);
        }
        self.ended = end;
        if let Some(&last) = bytes.last() {
            self.at_line_start = last == b'\n';
        }
        let mut fed = Fed::default();
        if self.waiting.is_empty() {
            let count = self.write(bytes, &mut fed);
            bytes = &bytes[count..];
        }
        if self.fd.is_some() {
            self.waiting.extend(bytes);
            if end && self.terminal {
                // In the middle of a line the first one only hands the line over.
                let again = if self.at_line_start { 1 } else { 2 };
                self.waiting.extend(std::iter::repeat_n(END_OF_FILE, again));
            }
        }
        self.feed(&mut fed);
        Ok(fed)
    }

    /// Passes on what waits.
    pub(super) fn resume(&mut self) -> Fed {
        let mut fed = Fed::default();
        self.feed(&mut fed);
        fed
    }

    fn feed(&mut self, fed: &mut Fed) {
        while !self.waiting.is_empty() && !fed.full && !fed.broken {
            let mut waiting = std::mem::take(&mut self.waiting);
            let count = self.write(waiting.as_slices().0, fed);
            waiting.drain(..count);
            self.waiting = waiting;
        }
        if fed.broken {
            self.close();
        } else if self.ended && self.waiting.is_empty() {
            self.fd = None;
        }
        if self.taken >= WINDOW / 2 && !self.ended && self.fd.is_some() {
            let taken = std::mem::take(&mut self.taken);
            // The window was lowered by what was received, a part of which this is.
            self.window += taken;
            fed.window = Some(taken);
        }
    }

    /// Writes as much as the command takes; says how much that is.
    fn write(&mut self, bytes: &[u8], fed: &mut Fed) -> usize {
        let Some(fd) = &self.fd else {
            return bytes.len();
        };
        let mut count = 0;
        while count < bytes.len() {
            match write(fd, &bytes[count..]) {
                Ok(written) => count += written,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    fed.full = true;
                    break;
                }
                Err(_) => {
                    fed.broken = true;
                    break;
                }
            }
        }
        self.taken = self.taken.saturating_add(count as u32);
        count
    }

    /// Lets go of the command's end and what waits for it.
    pub(super) fn close(&mut self) {
        self.fd = None;
        self.waiting = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::pipe2;

    use super::*;

    fn input() -> (Input, std::fs::File) {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (Input::new(Some(write), false), read.into())
    }

    /// What a command does not take waits, within the window; more is refused.
    #[test]
    fn input_is_bounded_by_its_window() {
        let (mut input, mut pipe) = input();
        let block = vec![7; 64 * 1024];
        for _ in 0..4 {
            assert!(input.receive(&block, false).unwrap().window.is_none());
        }
        assert!(input.waiting.len() <= WINDOW as usize);
        input.receive(&[1], false).unwrap_err();

        let mut arrived = 0;
        let mut window = 0;
        while window == 0 {
            arrived += pipe.read(&mut vec![0; 64 * 1024]).unwrap();
            window = input.resume().window.unwrap_or(0);
        }
        assert!(window >= WINDOW / 2 && arrived < WINDOW as usize);
        input.receive(&block, true).unwrap();
        input.receive(&[], true).unwrap_err();
    }

    #[test]
    fn a_reader_that_has_gone_is_told() {
        let (mut input, pipe) = input();
        drop(pipe);
        assert!(input.receive(b"x", false).unwrap().broken);
        assert!(input.fd.is_none());
        // What was on its way meanwhile is dropped.
        assert!(!input.receive(b"y", false).unwrap().broken);
        assert!(input.waiting.is_empty());
    }
}
