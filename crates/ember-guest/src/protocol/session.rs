//! Sessions: what a host and the keeper of an interpreter say to each other.
//!
//! The keeper is a program that the agent brings ([`Spawn::builtin`](super::Spawn::builtin)). It
//! starts an interpreter with its *driver*, has its streams, and speaks these frames on its standard
//! input and output, and with whoever connects to its socket: that is how the host of a clone reaches
//! an interpreter that was started before the clone was made. The newest connection counts. The other
//! side of such a connection is the same program again ([`SessionRole::Attach`]), which passes bytes
//! along.
//!
//! ```text
//! host                          keeper
//!                         <-    Welcome{version, busy}
//! Run{code, more} ..       ->
//!                         <-    Stdout, Stderr, Event{part, more} .., then Done
//! Interrupt                ->
//! Reseed                   ->
//! End                      ->
//!                         <-    Ended{status}, then the end of the stream
//! ```
//!
//! What an interpreter starts with is a cell too, the first: it ends with `Done` as any other. What
//! is written while no cell runs is kept in pipes until the next does.
//!
//! A frame is a header of eight bytes (kind, flags, zero, zero, u32 length, little-endian) and a
//! payload. With the flag 1 the next frame of the kind goes on with the same thing.
//!
//! Whatever an interpreter runs can speak in the keeper's place: nothing here is to be believed of
//! more than that sandbox.

use super::{MAX_PATH, Status};

/// The name of the program: its first argument.
pub const SESSION_PROGRAM: &[u8] = b"ember-session";
/// The version of these frames.
pub const SESSION_VERSION: u8 = 1;
/// The most bytes in one frame.
pub const MAX_SESSION_PART: usize = 32 * 1024;
/// The most bytes of code in one cell.
pub const MAX_SESSION_CODE: usize = 4 * 1024 * 1024;

const HEADER: usize = 8;
const MORE: u8 = 1;

/// What the program is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionRole {
    /// Start an interpreter and keep it. The number of a descriptor is added to its arguments: the
    /// channel between the two.
    Keep {
        /// Where to listen for others.
        socket: Vec<u8>,
        /// The interpreter and its arguments.
        argv: Vec<Vec<u8>>,
    },
    /// Pass on what a keeper and the standard streams have for each other.
    Attach {
        /// Where it listens.
        socket: Vec<u8>,
    },
}

impl SessionRole {
    /// The arguments of the program, its name first.
    pub fn arguments(&self) -> Vec<Vec<u8>> {
        let (role, socket, rest) = match self {
            Self::Keep { socket, argv } => ("keep", socket, argv.as_slice()),
            Self::Attach { socket } => ("attach", socket, &[][..]),
        };
        let mut arguments = vec![
            SESSION_PROGRAM.to_vec(),
            role.as_bytes().to_vec(),
            socket.clone(),
        ];
        arguments.extend(rest.iter().cloned());
        arguments
    }

    /// Reads the arguments behind the program's name.
    pub fn parse(arguments: &[Vec<u8>]) -> Option<Self> {
        let (role, rest) = arguments.split_first()?;
        let (socket, argv) = rest.split_first()?;
        if socket.is_empty() || socket.len() > MAX_PATH {
            return None;
        }
        let socket = socket.clone();
        match (role.as_slice(), argv) {
            (b"keep", [_, ..]) => Some(Self::Keep {
                socket,
                argv: argv.to_vec(),
            }),
            (b"attach", []) => Some(Self::Attach { socket }),
            _ => None,
        }
    }
}

/// What one frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionFrame {
    /// To the keeper: a part of a cell's code.
    Run {
        /// The part.
        part: Vec<u8>,
        /// There is another.
        more: bool,
    },
    /// To the keeper: interrupt the cell that runs. Nothing happens if there is none.
    Interrupt,
    /// To the keeper: this is a clone; draw new random numbers before the next cell.
    Reseed,
    /// To the keeper: end the interpreter, and everything that it has started.
    End,
    /// Who has connected is heard.
    Welcome {
        /// [`SESSION_VERSION`].
        version: u8,
        /// A cell is running.
        busy: bool,
    },
    /// Bytes of standard output.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// A part of something that the driver has said: JSON, one object.
    Event {
        /// The part.
        part: Vec<u8>,
        /// There is another.
        more: bool,
    },
    /// The cell has ended.
    Done,
    /// The interpreter has ended.
    Ended(Status),
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionMalformed {
    /// There is no such kind.
    #[error("there is no frame of kind {0} in a session")]
    Kind(u8),
    /// Unknown flags, or a reserved field that is not zero.
    #[error("a session's frame of kind {0} has a wrong header")]
    Header(u8),
    /// It is longer, or shorter, than such a frame is.
    #[error("a session's frame of kind {kind} has {length} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// How long it says that it is.
        length: u32,
    },
    /// A field has a value that means nothing.
    #[error("a field of a session's frame of kind {0} means nothing")]
    Value(u8),
}

impl SessionFrame {
    /// Appends the frame. A part that is longer than [`MAX_SESSION_PART`] is an error on the other
    /// side: [`pieces`](Self::pieces) makes shorter ones.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let (kind, more, payload): (u8, bool, &[u8]) = match self {
            Self::Run { part, more } => (1, *more, part),
            Self::Interrupt => (2, false, &[]),
            Self::Reseed => (3, false, &[]),
            Self::End => (4, false, &[]),
            Self::Welcome { version, busy } => (16, false, &[*version, u8::from(*busy)]),
            Self::Stdout(bytes) => (17, false, bytes),
            Self::Stderr(bytes) => (18, false, bytes),
            Self::Event { part, more } => (19, *more, part),
            Self::Done => (20, false, &[]),
            Self::Ended(Status::Exited(code)) => (21, false, &[0, *code]),
            Self::Ended(Status::Signaled(signal)) => (21, false, &[1, *signal]),
        };
        into.extend([kind, if more { MORE } else { 0 }, 0, 0]);
        into.extend((payload.len() as u32).to_le_bytes());
        into.extend(payload);
    }

    /// A cell's code as frames.
    pub fn pieces(code: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(code.len() + HEADER);
        let mut parts = code.chunks(MAX_SESSION_PART).peekable();
        if parts.peek().is_none() {
            let (part, more) = (Vec::new(), false);
            Self::Run { part, more }.encode(&mut bytes);
        }
        while let Some(part) = parts.next() {
            let (part, more) = (part.to_vec(), parts.peek().is_some());
            Self::Run { part, more }.encode(&mut bytes);
        }
        bytes
    }

    fn decode(kind: u8, more: bool, payload: &[u8]) -> Result<Self, SessionMalformed> {
        let part = || payload.to_vec();
        let of_length = || SessionMalformed::Length {
            kind,
            length: payload.len() as u32,
        };
        Ok(match (kind, payload) {
            (1, _) => Self::Run { part: part(), more },
            (2, []) => Self::Interrupt,
            (3, []) => Self::Reseed,
            (4, []) => Self::End,
            (16, [version, busy @ (0 | 1)]) => Self::Welcome {
                version: *version,
                busy: *busy == 1,
            },
            (17, _) => Self::Stdout(part()),
            (18, _) => Self::Stderr(part()),
            (19, _) => Self::Event { part: part(), more },
            (20, []) => Self::Done,
            (21, [0, code]) => Self::Ended(Status::Exited(*code)),
            (21, [1, signal]) => Self::Ended(Status::Signaled(*signal)),
            (16 | 21, [_, _]) => return Err(SessionMalformed::Value(kind)),
            (2..=4 | 16 | 20 | 21, _) => return Err(of_length()),
            _ => return Err(SessionMalformed::Kind(kind)),
        })
    }
}

/// Takes bytes as they come, and gives frames. It holds what it was fed last and a frame at most, if
/// all frames are taken before it is fed again.
#[derive(Debug, Default)]
pub struct SessionDecoder {
    bytes: Vec<u8>,
    start: usize,
}

impl SessionDecoder {
    /// Adds bytes that came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// If what comes next is none. What follows has no meaning then.
    pub fn next_frame(&mut self) -> Result<Option<SessionFrame>, SessionMalformed> {
        let bytes = self.bytes.get(self.start..).unwrap_or_default();
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, flags, zero, also_zero, a, b, c, d] = *header;
        let length = u32::from_le_bytes([a, b, c, d]);
        // Kinds that may be in parts.
        let allowed = if matches!(kind, 1 | 19) { MORE } else { 0 };
        if flags & !allowed != 0 || zero != 0 || also_zero != 0 {
            return Err(SessionMalformed::Header(kind));
        }
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if size > MAX_SESSION_PART {
            return Err(SessionMalformed::Length { kind, length });
        }
        let Some(payload) = rest.get(..size) else {
            return Ok(None);
        };
        let frame = SessionFrame::decode(kind, flags & MORE != 0, payload)?;
        self.start += HEADER + size;
        Ok(Some(frame))
    }
}
