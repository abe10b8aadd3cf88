//! The stream to the host: frames in, frames out, never waiting.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{read, write};

use crate::protocol::{Decoder, Header, Message, Stream};

/// With more than this waiting to be written, no output of commands is read.
pub(super) const HIGH: usize = 256 * 1024;
/// With more than this waiting to be written, no requests are read either: the host makes some
/// whose answers it does not take.
const STOP: usize = 1024 * 1024;
/// What is kept of the buffer after a burst.
const KEPT_CAPACITY: usize = 512 * 1024;

#[derive(Debug)]
pub(super) struct Connection {
    stream: OwnedFd,
    pub(super) decoder: Decoder,
    /// Frames to be written, from `written` on.
    outgoing: Vec<u8>,
    written: usize,
    /// The stream may have more to read. It is watched for changes only (edge-triggered).
    readable: bool,
    /// The stream may take more.
    writable: bool,
    /// The other end has shut down, so that a short read says nothing about what follows.
    hung_up: bool,
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes, for the decoder.
    Bytes(usize),
    Nothing,
    End,
}

impl Connection {
    pub(super) fn new(stream: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&stream, FcntlArg::F_GETFL)?);
        fcntl(&stream, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            stream,
            decoder: Decoder::new(),
            outgoing: Vec::new(),
            written: 0,
            readable: true,
            writable: true,
            hung_up: false,
        })
    }

    pub(super) fn stream(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// The stream has changed.
    pub(super) fn notice(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable | hung_up;
        self.writable |= writable;
        self.hung_up |= hung_up;
    }

    pub(super) fn queued(&self) -> usize {
        self.outgoing.len() - self.written
    }

    /// There is something to read, and room for the answers.
    pub(super) fn wants_read(&self) -> bool {
        self.readable && self.queued() < STOP
    }

    /// Commands' output may be added.
    pub(super) fn has_room(&self) -> bool {
        self.queued() < HIGH
    }

    /// Reads once into the decoder.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> Read {
        match read(&self.stream, scratch) {
            Ok(0) => Read::End,
            Ok(count) => {
                // A stream that gives less than it was asked for has no more; what comes after is
                // a change (epoll(7), question 9). Saves the read that would say so.
                self.readable = count == scratch.len() || self.hung_up;
                self.decoder.feed(&scratch[..count]);
                Read::Bytes(count)
            }
            Err(Errno::EINTR) => Read::Nothing,
            Err(Errno::EAGAIN) => {
                self.readable = false;
                Read::Nothing
            }
            Err(_) => Read::End,
        }
    }

    pub(super) fn send(&mut self, request: u32, message: &Message<'_>) {
        // What the agent sends is within the limits: texts are cut, and data goes the other way.
        let _ = message.encode(request, &mut self.outgoing);
    }

    /// Everything has been written.
    pub(super) fn is_flushed(&self) -> bool {
        self.queued() == 0
    }

    /// Reads a command's output once, into a frame of what there is and fits `scratch`.
    pub(super) fn send_from(
        &mut self,
        source: BorrowedFd<'_>,
        request: u32,
        stream: Stream,
        scratch: &mut [u8],
    ) -> Result<usize, Errno> {
        let count = read(source, scratch)?;
        if count > 0 {
            // At most `MAX_DATA`, which is what `scratch` holds.
            let header = Header::data(request, stream, count as u32, false);
            self.outgoing.extend_from_slice(&header.encode());
            self.outgoing.extend_from_slice(&scratch[..count]);
        }
        Ok(count)
    }

    /// Writes what the stream takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.writable && self.queued() > 0 {
            match write(&self.stream, &self.outgoing[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.writable = false,
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.queued() == 0 {
            self.outgoing.clear();
            self.outgoing.shrink_to(KEPT_CAPACITY);
            self.written = 0;
        } else if self.written > HIGH {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// As [`Self::finish`], and waits until the other end has taken everything and closed, or
    /// `patience` is at its end. What was written is on its way for a while, and a machine that is
    /// powered off takes it along.
    pub(super) fn finish_taken(mut self, patience: Duration, scratch: &mut [u8]) {
        let end = Instant::now() + patience;
        self.write_all(end);
        let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Write);
        loop {
            match read(&self.stream, scratch) {
                // What it still has to say is not heard.
                Ok(1..) | Err(Errno::EINTR) if Instant::now() < end => {}
                Err(Errno::EAGAIN) if self.wait_for(PollFlags::POLLIN, end) => {}
                _ => break,
            }
        }
        let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Both);
    }

    /// Writes everything, for as long as `patience`, then ends the stream: the last thing that is
    /// done with a connection. What cannot be written is lost with it.
    pub(super) fn finish(mut self, patience: Duration) {
        self.write_all(Instant::now() + patience);
        let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Both);
    }

    fn write_all(&mut self, end: Instant) {
        while self.flush().is_ok() && self.queued() > 0 {
            match self.wait_for(PollFlags::POLLOUT, end) {
                true => self.writable = true,
                false => break,
            }
        }
    }

    /// Waits until the stream can be read or written. Says whether that may be now.
    fn wait_for(&self, what: PollFlags, end: Instant) -> bool {
        let rest = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::ZERO);
        let mut wait = [PollFd::new(self.stream.as_fd(), what)];
        matches!(poll(&mut wait, timeout), Ok(1..) | Err(Errno::EINTR))
    }
}
