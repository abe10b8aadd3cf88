//! One stream: its protocol state and the device's half of its socket pair.

#![forbid(unsafe_code)]

use std::fmt;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use ember_snapshot::state::ConnectionState;
use nix::sys::socket::{self, MsgFlags};
use vm_memory::Bytes;
use vmm_sys_util::epoll::EventSet;

use super::Caller;
use super::connection::{Connection, Phase};
use super::receive::HEADER_BYTES;
use super::transfer::{self, TransferError};
use crate::devices::virtio::chain::{Buffer, Buffers};
use crate::devices::virtio::queue::QueueError;
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

/// A stream between the guest and the host.
pub(super) struct Stream {
    pub(super) connection: Connection,
    /// The device's half of the socket pair: absent until the guest has accepted, and when nothing
    /// can flow any more.
    pub(super) socket: Option<UnixStream>,
    /// What the socket is watched for; `None` if it is not watched.
    watched: Option<EventSet>,
    /// The guest's data that the host's end had no room for.
    backlog: Backlog,
    /// The socket has, or may have, something to read: data or the end.
    pub(super) readable: bool,
    /// The host's end is closed, or both directions are shut down. There may be data to read.
    hung_up: bool,
    /// Nothing of the guest's can go to the socket any more because the guest said so.
    shut_write: bool,
    /// The guest knows nothing of this stream any more: only the backlog is left to be written.
    pub(super) detached: bool,
    /// Waits for its turn to send to the guest.
    pub(super) queued: bool,
    /// How many of the guest's buffers the next read may fill.
    pub(super) burst: usize,
    /// When the guest must have answered.
    pub(super) deadline: Option<Instant>,
    /// Who waits for the guest to accept.
    pub(super) caller: Option<Caller>,
}

/// How a stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// Nothing can flow any more, and the guest must be told and confirm it.
    Closes,
    /// The guest is done with it, and is told that the host is as well.
    Ends,
    /// The guest is done with it and is told so, but the host has yet to take what it sent.
    Detaches,
    /// Nobody needs it any more.
    Vanishes,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("connection", &self.connection)
            .field("backlog", &self.backlog.len())
            .field("readable", &self.readable)
            .field("hung_up", &self.hung_up)
            .field("detached", &self.detached)
            .finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            socket: None,
            watched: None,
            backlog: Backlog::default(),
            readable: false,
            hung_up: false,
            shut_write: false,
            detached: false,
            queued: false,
            burst: 1,
            deadline: None,
            caller: None,
        }
    }

    /// Makes the socket pair, keeps one half and returns the host's.
    pub(super) fn open_socket(&mut self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.use_socket(ours)?;
        Ok(theirs)
    }

    /// Keeps one half of a socket pair whose other half somebody has.
    pub(super) fn use_socket(&mut self, ours: UnixStream) -> io::Result<()> {
        ours.set_nonblocking(true)?;
        self.socket = Some(ours);
        Ok(())
    }

    /// The stream, to be saved. `None` if the guest knows nothing of it.
    pub(super) fn save(&self) -> Option<ConnectionState> {
        if self.detached || !self.connection.is_known_to_guest() {
            return None;
        }
        Some(self.connection.save(self.backlog.bytes()))
    }

    /// Gives the stream what its host's end had no room for.
    pub(super) fn restore_backlog(&mut self, bytes: &[u8]) {
        self.backlog = Backlog {
            bytes: bytes.to_vec(),
            start: 0,
        };
    }

    /// The socket is ready for `readiness`.
    pub(super) fn ready(&mut self, readiness: EventSet) {
        if readiness.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            // Nothing written can be read by anyone now.
            self.hung_up = true;
            self.host_stopped_receiving();
        }
        if readiness.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
    }

    /// Writes the `length` bytes of data that follow the header in `packet` to the socket, and
    /// keeps what it has no room for.
    pub(super) fn deliver(
        &mut self,
        memory: &GuestMemory,
        packet: &Buffers,
        length: u32,
    ) -> Result<(), QueueError> {
        let mut written: u32 = 0;
        while self.backlog.is_empty()
            && written < length
            && !self.connection.host_is_done_receiving()
            && let Some(socket) = &self.socket
        {
            let rest = packet.slice(HEADER_BYTES + written, length - written);
            match transfer::send(socket, memory, rest) {
                Ok(moved) => {
                    written += moved.bytes;
                    if moved.bytes < moved.offered {
                        break;
                    }
                }
                Err(error) if error.would_block() => break,
                Err(TransferError::OutsideMemory) => return Err(outside_memory()),
                Err(TransferError::Socket(_)) => self.host_stopped_receiving(),
            }
        }
        if self.connection.host_is_done_receiving() {
            // Nobody wants it, but the guest need not wait.
            written = length;
        } else if written < length {
            let rest = packet.slice(HEADER_BYTES + written, length - written);
            self.backlog.append(memory, rest)?;
        }
        self.connection.delivered(written);
        Ok(())
    }

    /// Writes as much of the backlog as the socket has room for.
    pub(super) fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        if self.backlog.is_empty() {
            return;
        }
        match socket::send(
            socket.as_raw_fd(),
            self.backlog.bytes(),
            MsgFlags::MSG_NOSIGNAL,
        ) {
            Ok(written) => {
                self.backlog.consume(written);
                self.connection
                    .delivered(u32::try_from(written).unwrap_or(u32::MAX));
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(_) => self.host_stopped_receiving(),
        }
    }

    /// The host's end can receive no more: what is left for it has nowhere to go.
    fn host_stopped_receiving(&mut self) {
        self.connection.host_done_receiving();
        let lost = self.backlog.clear();
        self.connection
            .delivered(u32::try_from(lost).unwrap_or(u32::MAX));
    }

    /// A read of the socket found `bytes` bytes; `more` if there may be more at once.
    pub(super) fn read_data(&mut self, more: bool) {
        // After a hang-up the socket is not watched any more, so that it must be read to its end.
        self.readable = more || self.hung_up;
        self.burst = if more { super::streams::BURST } else { 1 };
    }

    /// A read of the socket found that there is nothing now.
    pub(super) fn read_nothing(&mut self) {
        self.readable = false;
    }

    /// A read of the socket found its end.
    pub(super) fn read_end(&mut self) {
        self.readable = false;
        self.connection.host_done_sending();
    }

    /// Passes on to the socket what the guest has said it is done with.
    pub(super) fn pass_on_shutdown(&mut self) {
        let Some(socket) = &self.socket else { return };
        if self.connection.guest_is_done_sending() && self.backlog.is_empty() && !self.shut_write {
            self.shut_write = true;
            // Fails only if the host's end is gone, which its hang-up tells.
            let _ = socket.shutdown(Shutdown::Write);
        }
        if self.connection.guest_is_done_receiving() {
            self.readable = false;
            let _ = socket.shutdown(Shutdown::Read);
        }
    }

    /// Goes on without the guest, until the host has taken what is left for it.
    pub(super) fn detach(&mut self) {
        self.detached = true;
        self.readable = false;
        if let Some(socket) = &self.socket {
            let _ = socket.shutdown(Shutdown::Read);
        }
    }

    /// How the stream goes on after something happened to it.
    pub(super) fn fate(&self) -> Fate {
        let connection = &self.connection;
        if self.detached {
            return if self.backlog.is_empty() {
                Fate::Vanishes
            } else {
                Fate::Lives
            };
        }
        if connection.guest_is_done() {
            return if self.backlog.is_empty() {
                Fate::Ends
            } else {
                Fate::Detaches
            };
        }
        let to_host_is_over = connection.host_is_done_receiving()
            || (connection.guest_is_done_sending() && self.backlog.is_empty());
        if connection.phase == Phase::Open && to_host_is_over && connection.to_guest_is_over() {
            return Fate::Closes;
        }
        Fate::Lives
    }

    /// What becomes of the stream when the guest has ended it with `RST`.
    pub(super) fn fate_after_reset(&self) -> Fate {
        if self.backlog.is_empty() {
            Fate::Vanishes
        } else {
            Fate::Detaches
        }
    }

    /// Has the socket watched for what the stream waits for, and for nothing else: readiness is
    /// reported again and again until it is used, so an event nobody can act on would keep the
    /// device thread busy.
    ///
    /// Unless `strictly`, a stream that has its turn soon is left as it is, which saves two system
    /// calls for each time a read finds as much as there was room for.
    pub(super) fn watch(
        &mut self,
        events: &EventRegistry,
        token: u32,
        strictly: bool,
    ) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let wanted = if self.hung_up {
            // A hang-up is reported whether it is asked for or not.
            None
        } else {
            let mut interest = EventSet::empty();
            let wants_data = !self.detached && !self.connection.to_guest_is_over();
            if wants_data && !self.readable {
                interest |= EventSet::IN;
            }
            if wants_data && self.queued && !strictly {
                interest |= self.watched.unwrap_or(EventSet::empty()) & EventSet::IN;
            }
            if !self.backlog.is_empty() {
                interest |= EventSet::OUT;
            }
            Some(interest)
        };
        match (self.watched, wanted) {
            (before, after) if before == after => return Ok(()),
            (None, Some(interest)) => events.add(socket.as_fd(), token, interest)?,
            (Some(_), Some(interest)) => events.modify(socket.as_fd(), token, interest)?,
            (_, None) => events.remove(socket.as_fd())?,
        }
        self.watched = wanted;
        Ok(())
    }

    /// Closes the socket. The host's end is then at its end: after what the guest has sent, and
    /// without an error, whether or not the guest has taken all of the host's data.
    pub(super) fn close_socket(&mut self, events: &EventRegistry) {
        if let Some(mut socket) = self.socket.take() {
            if self.watched.take().is_some() {
                let _ = events.remove(socket.as_fd());
            }
            // A socket that is closed with data in it makes the other end's reads fail with
            // ECONNRESET, so it is emptied. It cannot be filled again meanwhile.
            let _ = socket.shutdown(Shutdown::Read);
            let mut lost = [0; 4096];
            while matches!(socket.read(&mut lost), Ok(count) if count > 0) {}
        }
        self.readable = false;
        self.backlog.clear();
    }
}

/// Bytes that wait for the host's end to have room. Its size is bounded by the credit the guest
/// was given, times two.
#[derive(Debug, Default)]
struct Backlog {
    bytes: Vec<u8>,
    /// How many of them have been written.
    start: usize,
}

impl Backlog {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn append(
        &mut self,
        memory: &GuestMemory,
        parts: impl Iterator<Item = Buffer>,
    ) -> Result<(), QueueError> {
        for part in parts {
            memory
                .write_all_volatile_to(part.address, &mut self.bytes, part.length as usize)
                .map_err(|_| outside_memory())?;
        }
        Ok(())
    }

    fn consume(&mut self, count: usize) {
        self.start += count.min(self.len());
        if self.is_empty() {
            // Most streams never need one again.
            *self = Self::default();
        } else if self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Forgets everything; returns how much that was.
    fn clear(&mut self) -> usize {
        let lost = self.len();
        *self = Self::default();
        lost
    }
}

fn outside_memory() -> QueueError {
    QueueError::Request("a packet outside guest memory")
}
