//! Frames: a header of twelve bytes, then a payload.
//!
//! ```text
//! 0   u32  length of the payload, little-endian as every number
//! 4   u8   kind
//! 5   u8   flags, whose meaning depends on the kind
//! 6   u16  zero
//! 8   u32  request number, zero where the frame belongs to none
//! 12  payload
//! ```

use super::{
    MAX_CODE, MAX_DATA, MAX_IDENTIFY, MAX_MESSAGE, MAX_RUNNER, MAX_SPAWN, Malformed, Outcome,
    Stream, Usage,
};

/// The size of a frame's header.
pub const HEADER_LEN: usize = 12;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The first frame each way.
    Hello = 1,
    /// Asks for a `Pong`.
    Ping = 2,
    /// Answers a `Ping`.
    Pong = 3,
    /// Ends a request, or with number zero the connection.
    Error = 4,
    /// Asks the agent to stop everything and power the machine off.
    PowerOff = 5,
    /// Answers `PowerOff`: it has begun.
    PoweringOff = 6,
    /// Asks the agent to fall silent at a frame's end, so that the machine can be saved.
    Freeze = 7,
    /// Answers `Freeze`, and is the last thing that is said until the host speaks again.
    Frozen = 8,
    /// Asks a frozen agent to go on as if nothing had been.
    Thaw = 9,
    /// Answers `Thaw`.
    Thawed = 10,
    /// Tells a guest who it is from now on; a frozen one that it is a clone.
    Identify = 11,
    /// Answers `Identify`: all of it has been applied.
    Identified = 12,
    /// Sets a guest's wall clock, and nothing else.
    Clock = 13,
    /// Answers `Clock`: it is set.
    ClockSet = 14,
    /// Asks for a command to be started.
    Spawn = 16,
    /// Answers `Spawn`: the command runs.
    Started = 17,
    /// Bytes of a stream, perhaps its last.
    Data = 18,
    /// Gives a stream's sender leave to send more.
    Window = 19,
    /// Who reads or feeds a stream has gone: nothing more of it is wanted.
    Reset = 20,
    /// Sends a signal to a command.
    Signal = 21,
    /// Changes the size of a command's terminal.
    Resize = 22,
    /// Ends a command and everything it has started, at once.
    Kill = 23,
    /// A command has ended.
    Exited = 24,
    /// Asks for an interpreter to be started and kept warm.
    Warm = 25,
    /// It is warm.
    Warmed = 26,
    /// Asks for a program to be run by a warm interpreter; `Started` is the answer.
    Run = 27,
    /// Asks what a command uses.
    Measure = 28,
    /// Answers `Measure`.
    Measured = 29,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Ping,
            3 => Self::Pong,
            4 => Self::Error,
            5 => Self::PowerOff,
            6 => Self::PoweringOff,
            7 => Self::Freeze,
            8 => Self::Frozen,
            9 => Self::Thaw,
            10 => Self::Thawed,
            11 => Self::Identify,
            12 => Self::Identified,
            13 => Self::Clock,
            14 => Self::ClockSet,
            16 => Self::Spawn,
            17 => Self::Started,
            18 => Self::Data,
            19 => Self::Window,
            20 => Self::Reset,
            21 => Self::Signal,
            22 => Self::Resize,
            23 => Self::Kill,
            24 => Self::Exited,
            25 => Self::Warm,
            26 => Self::Warmed,
            27 => Self::Run,
            28 => Self::Measure,
            29 => Self::Measured,
            _ => return None,
        })
    }

    /// The most bytes a payload of this kind may have.
    pub const fn max_payload(self) -> usize {
        match self {
            // Room for fields that later versions append (see `Hello`).
            Self::Hello => 512,
            Self::Spawn => MAX_SPAWN,
            Self::Data => MAX_DATA,
            Self::Error => MAX_MESSAGE + 8,
            Self::Identify => MAX_IDENTIFY,
            Self::Warm | Self::Run => 4 + MAX_RUNNER + 4 + MAX_CODE + MAX_SPAWN,
            Self::Ping
            | Self::Pong
            | Self::PowerOff
            | Self::PoweringOff
            | Self::Freeze
            | Self::Frozen
            | Self::Thaw
            | Self::Thawed
            | Self::Identified
            | Self::ClockSet
            | Self::Warmed
            | Self::Measure
            | Self::Kill => 0,
            Self::Reset | Self::Signal => 1,
            Self::Started => 4,
            Self::Window => 5,
            Self::Clock => 8,
            Self::Resize => 4,
            Self::Exited => Outcome::LENGTH,
            Self::Measured => Usage::LENGTH,
        }
    }

    const fn flags(self) -> u8 {
        match self {
            Self::Data => data_flags::STREAM | data_flags::END,
            _ => 0,
        }
    }
}

/// The flags of a `Data` frame.
pub mod data_flags {
    /// The bits that hold the [`Stream`](super::Stream).
    pub const STREAM: u8 = 0b011;
    /// Nothing follows on this stream.
    pub const END: u8 = 0b100;
}

/// The twelve bytes before each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The payload's length.
    pub length: u32,
    /// What the frame is.
    pub kind: Kind,
    /// Flags of that kind.
    pub flags: u8,
    /// The request it belongs to, or zero.
    pub request: u32,
}

impl Header {
    /// The header of a `Data` frame with `length` bytes of `stream`.
    pub fn data(request: u32, stream: Stream, length: u32, end: bool) -> Self {
        let flags = stream as u8 | if end { data_flags::END } else { 0 };
        Self {
            length,
            kind: Kind::Data,
            flags,
            request,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let length = self.length.to_le_bytes();
        let request = self.request.to_le_bytes();
        [
            length[0],
            length[1],
            length[2],
            length[3],
            self.kind as u8,
            self.flags,
            0,
            0,
            request[0],
            request[1],
            request[2],
            request[3],
        ]
    }

    /// Checks everything that can be known before the payload has come.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let [l0, l1, l2, l3, kind, flags, z0, z1, r0, r1, r2, r3] = *bytes;
        let kind = Kind::from_byte(kind).ok_or(Malformed::UnknownKind(kind))?;
        let reserved = u16::from_le_bytes([z0, z1]);
        if reserved != 0 {
            return Err(Malformed::Reserved(reserved));
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let limit = kind.max_payload();
        if length as usize > limit {
            return Err(Malformed::TooLong {
                kind,
                length,
                limit,
            });
        }
        if flags & !kind.flags() != 0 {
            return Err(Malformed::Flags { kind, flags });
        }
        let request = u32::from_le_bytes([r0, r1, r2, r3]);
        let valid = match kind {
            Kind::Hello => request == 0,
            Kind::Error => true,
            _ => request != 0,
        };
        if !valid {
            return Err(Malformed::Request { kind, request });
        }
        Ok(Self {
            length,
            kind,
            flags,
            request,
        })
    }
}

/// One frame, its payload still as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the frame is.
    pub kind: Kind,
    /// Flags of that kind.
    pub flags: u8,
    /// The request it belongs to, or zero.
    pub request: u32,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Cuts a byte stream into frames.
///
/// Feed it what has been read, then take frames until there are none: what it holds never exceeds
/// one frame and one feeding. A header is judged as soon as it is there, so that no payload that
/// cannot be right is waited for or stored.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

/// What is kept of the buffer after a frame that was larger.
const KEPT_CAPACITY: usize = 2 * (MAX_DATA + HEADER_LEN);

impl Decoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes that have been read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has come.
    ///
    /// After an error every further call gives the same one.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Malformed> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let Header {
            length,
            kind,
            flags,
            request,
        } = Header::decode(header)?;
        let Some(payload) = rest.get(..length as usize) else {
            return Ok(None);
        };
        self.start += HEADER_LEN + payload.len();
        Ok(Some(Frame {
            kind,
            flags,
            request,
            payload,
        }))
    }

    /// Overwrites what the frames that have been taken were made of.
    pub fn wipe(&mut self) {
        self.buffer[..self.start].fill(0);
    }

    /// How many bytes have come that no frame has been made of yet.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }
}
