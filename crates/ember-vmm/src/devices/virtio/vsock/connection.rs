//! The protocol state of one stream: what the guest may do, what it is owed, what may be sent.
//! Pure: sockets, queues and guest memory are the callers' business.

#![forbid(unsafe_code)]

use ember_snapshot::state::{ConnectionState, PhaseState};
use serde_bytes::ByteBuf;

use super::packet::{
    HOST_CID, Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};

/// The two ends of a stream. The context ids are always the guest's and the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host asked for the stream and the guest has not answered.
    Connecting,
    /// Data may flow.
    Open,
    /// Nothing flows any more and the guest was told; its `RST` will confirm it.
    Closing,
}

/// What a packet from the guest means for the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing the owner has to act on, except that there may be something to send now.
    Noted,
    /// The guest accepted the stream.
    Established,
    /// The packet's data is to be given to the host, and counted by [`Connection::delivered`].
    Data,
    /// The guest will send or receive no more (or both): see [`Connection::guest_shutdown`].
    Shutdown,
    /// The guest has ended the stream.
    Reset,
    /// The guest broke the rules: the stream ends with an `RST`.
    Violation,
}

/// What a stream would send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// A packet without data.
    Control(Operation),
    /// At most so many bytes of data.
    Data(u32),
}

/// The state of one stream. Plain data, so that it can be saved.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) ports: Ports,
    pub(super) phase: Phase,
    credit: Credit,
    /// What the guest said it is done with: flags of `SHUTDOWN`, from the guest's point of view.
    guest_shutdown: u32,
    /// What the host is done with, from the host's point of view.
    host_shutdown: u32,
    /// What of it the guest has been told.
    told_shutdown: u32,
    owes_request: bool,
    owes_response: bool,
    owes_credit_update: bool,
    asked_for_credit: bool,
}

impl Connection {
    /// A stream that the guest asked for with `request` and the host accepts.
    pub(super) fn accepted(ports: Ports, buf_alloc: u32, request: &Header) -> Self {
        let mut connection = Self::new(ports, Phase::Open, buf_alloc);
        connection.credit.peer_told(request);
        connection.owes_response = true;
        connection
    }

    /// A stream that the host asks the guest for.
    pub(super) fn requested(ports: Ports, buf_alloc: u32) -> Self {
        let mut connection = Self::new(ports, Phase::Connecting, buf_alloc);
        connection.owes_request = true;
        connection
    }

    fn new(ports: Ports, phase: Phase, buf_alloc: u32) -> Self {
        Self {
            ports,
            phase,
            credit: Credit::new(buf_alloc),
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
            owes_request: false,
            owes_response: false,
            owes_credit_update: false,
            asked_for_credit: false,
        }
    }

    /// The stream, to be saved; `backlog` is what the host's end has no room for.
    pub(super) fn save(&self, backlog: &[u8]) -> ConnectionState {
        let credit = &self.credit;
        ConnectionState {
            guest_port: self.ports.guest,
            host_port: self.ports.host,
            phase: match self.phase {
                Phase::Connecting => PhaseState::Connecting,
                Phase::Open => PhaseState::Open,
                Phase::Closing => PhaseState::Closing,
            },
            guest_shutdown: self.guest_shutdown,
            host_shutdown: self.host_shutdown,
            told_shutdown: self.told_shutdown,
            owes_request: self.owes_request,
            owes_response: self.owes_response,
            owes_credit_update: self.owes_credit_update,
            asked_for_credit: self.asked_for_credit,
            buffer_bytes: credit.buf_alloc,
            received: credit.received,
            forwarded: credit.forwarded,
            told: credit.told,
            peer_buffer_bytes: credit.peer_buf_alloc,
            peer_forwarded: credit.peer_forwarded,
            sent: credit.sent,
            backlog: ByteBuf::from(backlog),
        }
    }

    /// A stream as it was saved.
    pub(super) fn restore(saved: &ConnectionState) -> Self {
        Self {
            ports: Ports {
                guest: saved.guest_port,
                host: saved.host_port,
            },
            phase: match saved.phase {
                PhaseState::Connecting => Phase::Connecting,
                PhaseState::Open => Phase::Open,
                PhaseState::Closing => Phase::Closing,
            },
            credit: Credit {
                buf_alloc: saved.buffer_bytes,
                received: saved.received,
                forwarded: saved.forwarded,
                told: saved.told,
                peer_buf_alloc: saved.peer_buffer_bytes,
                peer_forwarded: saved.peer_forwarded,
                sent: saved.sent,
            },
            guest_shutdown: saved.guest_shutdown & SHUTDOWN_BOTH,
            host_shutdown: saved.host_shutdown & SHUTDOWN_BOTH,
            told_shutdown: saved.told_shutdown & SHUTDOWN_BOTH,
            owes_request: saved.owes_request,
            owes_response: saved.owes_response,
            owes_credit_update: saved.owes_credit_update,
            asked_for_credit: saved.asked_for_credit,
        }
    }

    /// Whether the guest knows of the stream.
    pub(super) fn is_known_to_guest(&self) -> bool {
        !self.owes_request
    }

    /// Takes a packet from the guest. A `Request` is not for a stream that exists.
    pub(super) fn receive(&mut self, operation: Operation, header: &Header) -> Event {
        self.credit.peer_told(header);
        if self.credit.available() > 0 {
            self.asked_for_credit = false;
        }
        match (operation, self.phase) {
            (Operation::Reset, _) => Event::Reset,
            (Operation::Response, Phase::Connecting) => {
                self.phase = Phase::Open;
                Event::Established
            }
            (Operation::Request | Operation::Response, _) | (_, Phase::Connecting) => {
                Event::Violation
            }
            (Operation::Shutdown, _) => {
                self.guest_shutdown |= header.flags & SHUTDOWN_BOTH;
                Event::Shutdown
            }
            // Sent before the guest learned that the stream is over.
            (_, Phase::Closing) => Event::Noted,
            (Operation::ReadWrite, Phase::Open) => {
                if self.guest_is_done_sending() || !self.credit.receive(header.len) {
                    Event::Violation
                } else {
                    Event::Data
                }
            }
            (Operation::CreditUpdate, Phase::Open) => Event::Noted,
            (Operation::CreditRequest, Phase::Open) => {
                self.owes_credit_update = true;
                Event::Noted
            }
        }
    }

    /// `bytes` of the guest's data have left for the host (or were thrown away, if the host wants
    /// no more).
    pub(super) fn delivered(&mut self, bytes: u32) {
        if self.credit.deliver(bytes) {
            self.owes_credit_update = true;
        }
    }

    /// The host will send no more.
    pub(super) fn host_done_sending(&mut self) {
        self.host_shutdown |= SHUTDOWN_SEND;
    }

    /// The host will receive no more.
    pub(super) fn host_done_receiving(&mut self) {
        self.host_shutdown |= SHUTDOWN_RECEIVE;
    }

    /// Both directions are over: the guest is to be told, and then to confirm with `RST`.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closing;
        self.host_shutdown = SHUTDOWN_BOTH;
    }

    /// The guest has said that it is done with the stream.
    pub(super) fn guest_is_done(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_BOTH
    }

    /// The guest has said that it will send no more.
    pub(super) fn guest_is_done_sending(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND != 0
    }

    /// The guest has said that it will receive no more.
    pub(super) fn guest_is_done_receiving(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_RECEIVE != 0
    }

    /// The host will receive no more.
    pub(super) fn host_is_done_receiving(&self) -> bool {
        self.host_shutdown & SHUTDOWN_RECEIVE != 0
    }

    /// No more data will go to the guest.
    pub(super) fn to_guest_is_over(&self) -> bool {
        self.host_shutdown & SHUTDOWN_SEND != 0 || self.guest_is_done_receiving()
    }

    /// What is to be sent next, given whether the host has data for the guest. The order matters:
    /// the answer to a request comes before data, and the end comes after it.
    pub(super) fn next(&self, host_has_data: bool) -> Next {
        if self.owes_request {
            return Next::Control(Operation::Request);
        }
        if self.phase == Phase::Connecting {
            return Next::Nothing;
        }
        if self.owes_response {
            return Next::Control(Operation::Response);
        }
        if host_has_data && self.phase == Phase::Open && !self.to_guest_is_over() {
            match self.credit.available() {
                0 if !self.asked_for_credit => return Next::Control(Operation::CreditRequest),
                0 => {}
                available => return Next::Data(available),
            }
        }
        if self.host_shutdown & !self.told_shutdown != 0 {
            return Next::Control(Operation::Shutdown);
        }
        if self.owes_credit_update && self.phase == Phase::Open {
            return Next::Control(Operation::CreditUpdate);
        }
        Next::Nothing
    }

    /// The header of a packet of this stream without data, for `guest_cid`.
    pub(super) fn header(&self, operation: Operation, guest_cid: u64) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: 0,
            kind: TYPE_STREAM,
            op: operation as u16,
            flags: match operation {
                Operation::Shutdown => self.host_shutdown,
                _ => 0,
            },
            buf_alloc: self.credit.buf_alloc,
            fwd_cnt: self.credit.forwarded,
        }
    }

    /// A packet made by [`header`](Self::header) has been sent, with `len` bytes of data.
    pub(super) fn sent(&mut self, operation: Operation, len: u32) {
        // Every packet carries the credit.
        self.credit.told = self.credit.forwarded;
        self.credit.sent = self.credit.sent.wrapping_add(len);
        self.owes_credit_update = false;
        match operation {
            Operation::Request => self.owes_request = false,
            Operation::Response => self.owes_response = false,
            Operation::Shutdown => self.told_shutdown = self.host_shutdown,
            Operation::CreditRequest => self.asked_for_credit = true,
            Operation::Reset | Operation::ReadWrite | Operation::CreditUpdate => {}
        }
    }
}

/// Flow control of both directions (specification section 5.10.6.3). All counters are modulo 2^32.
#[derive(Clone, Debug)]
struct Credit {
    /// How many bytes of the guest's this side buffers at most.
    buf_alloc: u32,
    /// How many bytes came from the guest.
    received: u32,
    /// How many of them have left for the host.
    forwarded: u32,
    /// The value of `forwarded` that the guest knows.
    told: u32,
    /// How many bytes the guest buffers at most.
    peer_buf_alloc: u32,
    /// How many bytes the guest has taken out of its buffer.
    peer_forwarded: u32,
    /// How many bytes went to the guest.
    sent: u32,
}

impl Credit {
    fn new(buf_alloc: u32) -> Self {
        Self {
            buf_alloc,
            received: 0,
            forwarded: 0,
            told: 0,
            peer_buf_alloc: 0,
            peer_forwarded: 0,
            sent: 0,
        }
    }

    /// Takes over what a packet says about the guest's buffer.
    fn peer_told(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// How many bytes may be sent. A guest that claims to have taken more than it was sent has an
    /// enormous number of bytes in flight by this, and gets nothing until it counts properly.
    fn available(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    /// Counts `len` bytes from the guest; `false` if it had no credit for them.
    fn receive(&mut self, len: u32) -> bool {
        let buffered = self.received.wrapping_sub(self.forwarded);
        if len > self.buf_alloc.saturating_sub(buffered) {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// Counts `len` bytes as having left; `true` if the guest should be told. As it is told by
    /// every packet that goes its way anyhow, a packet of its own is due only when the guest may
    /// otherwise soon believe that there is no room.
    fn deliver(&mut self, len: u32) -> bool {
        self.forwarded = self.forwarded.wrapping_add(len);
        self.forwarded.wrapping_sub(self.told) >= self.buf_alloc / 2
    }
}
