//! All streams of the device: which packet belongs to which, which may send next, and how they
//! begin and end.

#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ember_snapshot::state::{ConnectionState, VsockState};
use serde_bytes::ByteBuf;
use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Event, Next, Phase, Ports};
use super::packet::{HEADER_SIZE, HOST_CID, Header, Operation, TYPE_STREAM};
use super::receive::Receiver;
use super::stream::{Fate, Stream};
use super::timer::Timer;
use super::transfer::{self, TransferError};
use super::{Accept, Caller, ConnectError, VsockConfig};
use crate::devices::virtio::chain::Buffers;
use crate::devices::virtio::mmio::DOORBELL_TOKEN;
use crate::devices::virtio::queue::QueueError;
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

/// How many of the guest's buffers a read fills at most. Reads of a quiet stream fill one; only
/// when that was not enough does the next ask for more.
pub(super) const BURST: usize = 16;

/// How many bytes a stream sends at most before it is another's turn.
const TURN_BYTES: u32 = 64 * 1024;

/// How many answers to packets without a stream may wait for the guest's buffers before no more of
/// its packets are taken.
const MAX_REFUSALS: usize = 256;

/// The host's ports of streams that the host opens: far from those that anyone listens on.
const LOCAL_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// What happened when the next packet was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// One stream had its turn.
    Made,
    /// The guest has no buffers, and will ring the doorbell when it has.
    Starved,
}

/// The streams of one device.
pub(super) struct Streams {
    config: VsockConfig,
    events: EventRegistry,
    listeners: HashMap<u32, Accept>,
    /// Streams by the token their sockets are watched under. Tokens are never used again, since an
    /// event may still be on its way when its stream is gone.
    by_token: HashMap<u32, Stream>,
    by_ports: HashMap<Ports, u32>,
    next_token: u32,
    next_port: u32,
    /// Streams that have something to send, in turn.
    ready: VecDeque<u32>,
    /// Answers to packets that belong to no stream.
    refusals: VecDeque<Header>,
    deadlines: BTreeSet<(Instant, u32)>,
    timer: Timer,
    /// Connections that a reset of the driver ended, and whose owners are yet to be told.
    orphans: Vec<(Caller, ConnectError)>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams")
            .field("streams", &self.by_token)
            .field("listening", &self.listeners.len())
            .field("ready", &self.ready)
            .field("refusals", &self.refusals.len())
            .finish_non_exhaustive()
    }
}

impl Streams {
    /// No streams yet. Their sockets will be watched by `events` under `first_token` and above.
    pub(super) fn new(
        config: VsockConfig,
        events: EventRegistry,
        first_token: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            config,
            events,
            listeners: HashMap::new(),
            by_token: HashMap::new(),
            by_ports: HashMap::new(),
            next_token: first_token,
            next_port: LOCAL_PORTS.start,
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            deadlines: BTreeSet::new(),
            timer: Timer::new()?,
            orphans: Vec::new(),
        })
    }

    /// The streams and answers that the guest knows of or waits for, to be saved.
    pub(super) fn save(&self) -> VsockState {
        let mut connections: Vec<ConnectionState> =
            self.by_token.values().filter_map(Stream::save).collect();
        connections.sort_unstable_by_key(|stream| (stream.host_port, stream.guest_port));
        VsockState {
            guest_cid: self.config.guest_cid,
            next_port: self.next_port,
            connections,
            answers: self
                .refusals
                .iter()
                .map(|header| ByteBuf::from(header.to_bytes()))
                .collect(),
        }
    }

    /// Goes on with what was saved. Open streams to a port of `carried` go on as well: their host's
    /// ends are returned. The others' ends are elsewhere, and the guest is told that they are over.
    pub(super) fn restore(
        &mut self,
        saved: &VsockState,
        carried: &[u32],
    ) -> io::Result<Vec<(u32, UnixStream)>> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if LOCAL_PORTS.contains(&saved.next_port) {
            self.next_port = saved.next_port;
        }
        if saved.connections.len() > self.config.max_streams || saved.answers.len() > MAX_REFUSALS {
            return Err(invalid("more streams were saved than there can be"));
        }
        for answer in &saved.answers {
            let header = <&[u8; HEADER_SIZE]>::try_from(answer.as_slice())
                .map_err(|_| invalid("an answer of the wrong length was saved"))?;
            self.refusals.push_back(Header::parse(header));
        }
        let mut host_ends = Vec::new();
        for saved in &saved.connections {
            let connection = Connection::restore(saved);
            let ports = connection.ports;
            if connection.phase != Phase::Open || !carried.contains(&ports.host) {
                let guest_cid = u64::from(self.config.guest_cid);
                let header = connection.header(Operation::Reset, guest_cid);
                self.refusals.push_back(header);
                continue;
            }
            if saved.backlog.len() > 2 * self.config.buffer_bytes as usize
                || self.by_ports.contains_key(&ports)
            {
                return Err(invalid("a stream was saved that cannot be"));
            }
            let token = self
                .free_token()
                .ok_or_else(|| invalid("too many streams"))?;
            let mut stream = Stream::new(connection);
            let host_end = self.open_socket(&mut stream, ports.host)?;
            stream.restore_backlog(&saved.backlog);
            self.insert(token, stream);
            self.settle(token);
            host_ends.extend(host_end.map(|end| (ports.host, end)));
        }
        Ok(host_ends)
    }

    /// The timer whose readiness calls for [`expire`](Self::expire).
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.fd()
    }

    /// How many streams there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_token.len()
    }

    /// How much waits to be sent.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.ready.len() + self.refusals.len() + self.deadlines.len()
    }

    pub(super) fn listen(&mut self, port: u32, accept: Accept) {
        self.listeners.insert(port, accept);
    }

    pub(super) fn unlisten(&mut self, port: u32) {
        self.listeners.remove(&port);
    }

    /// Opens a stream to `port` of the guest.
    pub(super) fn connect(&mut self, port: u32, caller: Caller) {
        let slot = if self.by_token.len() < self.config.max_streams {
            self.free_port(port).zip(self.free_token())
        } else {
            None
        };
        let Some((ports, token)) = slot else {
            return caller.refuse(ConnectError::TooManyStreams { port });
        };
        let mut stream = Stream::new(Connection::requested(ports, self.config.buffer_bytes));
        stream.caller = Some(caller);
        self.insert(token, stream);
        self.set_deadline(token, self.config.connect_timeout);
        self.settle(token);
    }

    /// Takes a packet of the guest's: `bytes` is all of it, and has at least as many bytes as
    /// `header`, its header, says.
    pub(super) fn packet(
        &mut self,
        memory: &GuestMemory,
        header: &Header,
        bytes: &Buffers,
    ) -> Result<(), QueueError> {
        // Specification section 5.10.6.2: the source must be the guest's own.
        if header.src_cid != u64::from(self.config.guest_cid) {
            return Ok(());
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refuse(header);
            return Ok(());
        }
        let ports = Ports {
            guest: header.src_port,
            host: header.dst_port,
        };
        let token = self.by_ports.get(&ports).copied();
        match (token, Operation::from_raw(header.op)) {
            (token, Some(Operation::Request)) => self.request(token, ports, header),
            (None, _) => self.refuse(header),
            (Some(token), None) => self.kill(token, None),
            (Some(token), Some(operation)) => {
                let Some(stream) = self.by_token.get_mut(&token) else {
                    return Ok(());
                };
                match stream.connection.receive(operation, header) {
                    Event::Noted | Event::Shutdown => {}
                    Event::Established => self.established(token),
                    Event::Data => stream.deliver(memory, bytes, header.len)?,
                    Event::Reset => self.ended_by_guest(token),
                    Event::Violation => self.kill(token, None),
                }
                self.settle(token);
            }
        }
        Ok(())
    }

    /// Whether so many answers wait that no more packets should be taken from the guest.
    pub(super) fn is_full(&self) -> bool {
        self.refusals.len() >= MAX_REFUSALS
    }

    /// Whether there is something to send to the guest.
    pub(super) fn has_work(&self) -> bool {
        !self.refusals.is_empty() || !self.ready.is_empty()
    }

    /// Sends the next packet, or packets of one stream, to the guest.
    pub(super) fn send_next(&mut self, rx: &mut Receiver<'_>) -> Result<Progress, QueueError> {
        // First, so that the guest learns of a stream's end before its ports are used again.
        if let Some(header) = self.refusals.front() {
            if !rx.take(1, 0)? {
                return Ok(Progress::Starved);
            }
            rx.fill(*header, 0)?;
            self.refusals.pop_front();
            return Ok(Progress::Made);
        }
        let Some(token) = self.ready.front().copied() else {
            return Ok(Progress::Made);
        };
        if let Some(stream) = self.by_token.get_mut(&token) {
            let guest_cid = u64::from(self.config.guest_cid);
            match stream.connection.next(stream.readable) {
                Next::Nothing => {}
                Next::Control(operation) => {
                    if !rx.take(1, 0)? {
                        return Ok(Progress::Starved);
                    }
                    rx.fill(stream.connection.header(operation, guest_cid), 0)?;
                    stream.connection.sent(operation, 0);
                }
                Next::Data(credit) => {
                    let limit = credit.min(TURN_BYTES);
                    if !rx.take(stream.burst, limit)? {
                        return Ok(Progress::Starved);
                    }
                    send_data(stream, rx, limit, guest_cid)?;
                }
            }
            stream.queued = false;
        }
        self.ready.pop_front();
        self.settle(token);
        Ok(Progress::Made)
    }

    /// A stream's socket is ready.
    pub(super) fn socket_event(&mut self, token: u32, readiness: EventSet) {
        if let Some(stream) = self.by_token.get_mut(&token) {
            if readiness.contains(EventSet::OUT) {
                stream.flush();
            }
            stream.ready(readiness);
            self.settle(token);
        }
    }

    /// To be called after a socket's event has been served as far as possible: if the stream still
    /// waits for its turn, its socket is not watched in vain.
    pub(super) fn after_socket_event(&mut self, token: u32) {
        self.watch(token, true);
    }

    /// Ends what the guest did not answer in time.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((deadline, token)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.remove(&(deadline, token));
            self.kill(token, Some(|port| ConnectError::TimedOut { port }));
        }
        self.timer
            .fired(self.deadlines.first().map(|(deadline, _)| *deadline), now);
    }

    /// Forgets all streams, since the guest has. Whoever waited for a connection is told by
    /// [`tell_orphans`](Self::tell_orphans), on the device thread.
    pub(super) fn reset(&mut self) {
        let tokens: Vec<u32> = self.by_token.keys().copied().collect();
        for token in tokens {
            if let Some(mut stream) = self.remove(token)
                && let Some(caller) = stream.caller.take()
            {
                let port = stream.connection.ports.guest;
                self.orphans.push((caller, ConnectError::Reset { port }));
            }
        }
        self.refusals.clear();
    }

    /// Whether somebody is to be told that a connection was ended by a reset.
    pub(super) fn has_orphans(&self) -> bool {
        !self.orphans.is_empty()
    }

    /// Tells those whose connections were ended by a reset.
    pub(super) fn tell_orphans(&mut self) {
        for (caller, error) in self.orphans.drain(..) {
            caller.refuse(error);
        }
    }

    /// Ends everything, for good.
    pub(super) fn close(&mut self) {
        self.reset();
        for (caller, _) in self.orphans.drain(..) {
            caller.refuse(ConnectError::Closed);
        }
        self.listeners.clear();
    }

    /// The guest asks for a stream.
    fn request(&mut self, existing: Option<u32>, ports: Ports, header: &Header) {
        if let Some(token) = existing {
            let closing = self
                .by_token
                .get(&token)
                .is_some_and(|stream| stream.connection.phase == Phase::Closing);
            if !closing {
                return self.kill(token, None);
            }
            // The guest took the end for granted and uses its port again.
            self.remove(token);
        }
        if self.by_token.len() >= self.config.max_streams {
            // A guest can cause as many of these as it likes.
            tracing::debug!(
                port = ports.host,
                limit = self.config.max_streams,
                "refused a vsock connection of the guest: too many streams"
            );
            return self.refuse(header);
        }
        let given = self.config.given.has(ports.host);
        if !given && !self.listeners.contains_key(&ports.host) {
            return self.refuse(header);
        }
        let Some(token) = self.free_token() else {
            return self.refuse(header);
        };
        let connection = Connection::accepted(ports, self.config.buffer_bytes, header);
        let mut stream = Stream::new(connection);
        match self.open_socket(&mut stream, ports.host) {
            Ok(host_end) => {
                self.insert(token, stream);
                self.settle(token);
                if let Some(host_end) = host_end
                    && let Some(accept) = self.listeners.get_mut(&ports.host)
                {
                    accept(host_end);
                }
            }
            Err(error) => {
                tracing::warn!(
                    port = ports.host,
                    %error,
                    "refused a vsock connection of the guest: no socket pair"
                );
                self.refuse(header);
            }
        }
    }

    /// Opens the socket of a stream to the host's `port`; the host's end, unless somebody has it.
    fn open_socket(&self, stream: &mut Stream, port: u32) -> io::Result<Option<UnixStream>> {
        match self.config.given.take(port) {
            Some(ours) => stream.use_socket(ours).map(|()| None),
            None => stream.open_socket().map(Some),
        }
    }

    /// The guest has accepted a stream.
    fn established(&mut self, token: u32) {
        self.clear_deadline(token);
        let Some(stream) = self.by_token.get_mut(&token) else {
            return;
        };
        let port = stream.connection.ports.guest;
        let failed = |source| ConnectError::Host { port, source };
        match stream.caller.take() {
            Some(Caller::Gives(ours, done)) => {
                let used = stream.use_socket(ours).map_err(failed);
                if used.is_err() {
                    self.kill(token, None);
                }
                done(used);
            }
            Some(Caller::Wants(done)) => {
                let opened = stream.open_socket().map_err(failed);
                if opened.is_err() {
                    self.kill(token, None);
                }
                done(opened);
            }
            // Each stream that the host opens has a caller until it is established.
            None => self.kill(token, None),
        }
    }

    /// The guest has ended a stream with `RST`.
    fn ended_by_guest(&mut self, token: u32) {
        let Some(stream) = self.by_token.get_mut(&token) else {
            return;
        };
        if stream.fate_after_reset() == Fate::Detaches {
            self.detach(token);
        } else if let Some(mut stream) = self.remove(token)
            && let Some(caller) = stream.caller.take()
        {
            let port = stream.connection.ports.guest;
            caller.refuse(ConnectError::Refused { port });
        }
    }

    /// Ends a stream, and tells the guest with `RST`. Who waits for the connection is told `why`;
    /// by default, that the guest refused.
    fn kill(&mut self, token: u32, why: Option<fn(u32) -> ConnectError>) {
        self.push_reset(token);
        if let Some(mut stream) = self.remove(token)
            && let Some(caller) = stream.caller.take()
        {
            let port = stream.connection.ports.guest;
            let why = why.unwrap_or(|port| ConnectError::Refused { port });
            caller.refuse(why(port));
        }
    }

    /// Draws the consequences of whatever happened to a stream.
    fn settle(&mut self, token: u32) {
        let Some(stream) = self.by_token.get_mut(&token) else {
            return;
        };
        stream.pass_on_shutdown();
        match stream.fate() {
            Fate::Lives => {}
            Fate::Closes => {
                stream.connection.close();
                stream.close_socket(&self.events);
                self.set_deadline(token, self.config.close_timeout);
            }
            Fate::Ends => {
                self.push_reset(token);
                self.remove(token);
                return;
            }
            Fate::Detaches => {
                self.push_reset(token);
                self.detach(token);
            }
            Fate::Vanishes => {
                self.remove(token);
                return;
            }
        }
        if let Some(stream) = self.by_token.get_mut(&token)
            && !stream.queued
            && !stream.detached
            && stream.connection.next(stream.readable) != Next::Nothing
        {
            stream.queued = true;
            self.ready.push_back(token);
        }
        self.watch(token, false);
    }

    /// Has a stream's socket watched for what it waits for. Unless `strictly`, a stream that has
    /// its turn soon is left as it is, which saves two system calls.
    fn watch(&mut self, token: u32, strictly: bool) {
        if let Some(stream) = self.by_token.get_mut(&token)
            && let Err(error) = stream.watch(&self.events, token, strictly)
        {
            tracing::warn!(%error, "ended a vsock stream: its socket cannot be watched");
            self.kill(token, None);
        }
    }

    /// Lets go of a stream that the guest knows nothing of any more, except for what the host has
    /// yet to take.
    fn detach(&mut self, token: u32) {
        self.clear_deadline(token);
        self.unqueue(token);
        if let Some(stream) = self.by_token.get_mut(&token) {
            self.by_ports.remove(&stream.connection.ports);
            stream.detach();
        }
        self.watch(token, true);
    }

    fn insert(&mut self, token: u32, stream: Stream) {
        self.by_ports.insert(stream.connection.ports, token);
        self.by_token.insert(token, stream);
    }

    fn remove(&mut self, token: u32) -> Option<Stream> {
        self.clear_deadline(token);
        self.unqueue(token);
        let mut stream = self.by_token.remove(&token)?;
        // The ports of a detached stream may be another's by now.
        if !stream.detached {
            self.by_ports.remove(&stream.connection.ports);
        }
        stream.close_socket(&self.events);
        Some(stream)
    }

    fn unqueue(&mut self, token: u32) {
        if let Some(stream) = self.by_token.get_mut(&token)
            && std::mem::take(&mut stream.queued)
        {
            self.ready.retain(|other| *other != token);
        }
    }

    /// Queues `RST` for a stream of the guest's.
    fn push_reset(&mut self, token: u32) {
        if let Some(stream) = self.by_token.get(&token)
            && !stream.detached
        {
            let guest_cid = u64::from(self.config.guest_cid);
            let header = stream.connection.header(Operation::Reset, guest_cid);
            self.refusals.push_back(header);
        }
    }

    /// Queues `RST` in answer to a packet, unless that is one itself.
    fn refuse(&mut self, header: &Header) {
        if header.op == Operation::Reset as u16 {
            return;
        }
        self.refusals.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            len: 0,
            kind: header.kind,
            op: Operation::Reset as u16,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        });
    }

    fn set_deadline(&mut self, token: u32, after: Duration) {
        self.clear_deadline(token);
        let now = Instant::now();
        // An absurdly long time is no deadline at all.
        if let Some(deadline) = now.checked_add(after)
            && let Some(stream) = self.by_token.get_mut(&token)
        {
            stream.deadline = Some(deadline);
            self.deadlines.insert((deadline, token));
            self.timer.at_latest(deadline, now);
        }
    }

    fn clear_deadline(&mut self, token: u32) {
        if let Some(stream) = self.by_token.get_mut(&token)
            && let Some(deadline) = stream.deadline.take()
        {
            self.deadlines.remove(&(deadline, token));
        }
    }

    /// A token that was never used. There are as many as there can be connections in a lifetime;
    /// then there are none.
    fn free_token(&mut self) -> Option<u32> {
        let token = self.next_token;
        if token == DOORBELL_TOKEN {
            return None;
        }
        self.next_token = token + 1;
        Some(token)
    }

    /// A port of the host's that is not used towards the guest's `port`.
    fn free_port(&mut self, port: u32) -> Option<Ports> {
        // Each stream takes one port at most, so that one more try than streams must succeed.
        for _ in 0..=self.by_ports.len() + self.listeners.len() {
            let host = self.next_port;
            self.next_port = if host + 1 < LOCAL_PORTS.end {
                host + 1
            } else {
                LOCAL_PORTS.start
            };
            let ports = Ports { guest: port, host };
            if !self.by_ports.contains_key(&ports) && !self.listeners.contains_key(&host) {
                return Some(ports);
            }
        }
        None
    }
}

/// Reads from a stream's socket into the guest's buffers that `rx` has taken.
fn send_data(
    stream: &mut Stream,
    rx: &mut Receiver<'_>,
    limit: u32,
    guest_cid: u64,
) -> Result<(), QueueError> {
    let Some(socket) = &stream.socket else {
        rx.put_back();
        return Ok(());
    };
    match transfer::receive(socket, rx.memory, rx.room(limit)) {
        Ok(moved) if moved.bytes > 0 => {
            let header = stream.connection.header(Operation::ReadWrite, guest_cid);
            rx.fill(header, moved.bytes)?;
            stream.connection.sent(Operation::ReadWrite, moved.bytes);
            stream.read_data(moved.bytes == moved.offered);
            return Ok(());
        }
        Err(TransferError::OutsideMemory) => {
            return Err(QueueError::Request("a receive buffer outside guest memory"));
        }
        Err(error) if error.would_block() => stream.read_nothing(),
        // The end; or the host's end was closed without having taken all of the guest's data.
        Ok(_) | Err(_) => stream.read_end(),
    }
    rx.put_back();
    Ok(())
}
