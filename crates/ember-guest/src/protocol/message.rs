//! What frames mean.

use std::borrow::Cow;

use super::codec::{Reader, put_string};
use super::frame::data_flags;
use super::{
    Frame, HEADER_LEN, Header, Hello, Identity, IdentityError, Kind, MAX_DATA, MAX_MESSAGE,
    Malformed, Outcome, Spawn, SpawnError, Usage, Warm, WarmError,
};

/// A stream of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stream {
    /// Its standard input, from the host.
    Stdin = 0,
    /// Its standard output, to the host. A terminal's output as well.
    Stdout = 1,
    /// Its standard error, to the host.
    Stderr = 2,
}

impl Stream {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            _ => return None,
        })
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtySize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl PtySize {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.rows.to_le_bytes());
        out.extend_from_slice(&self.columns.to_le_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            rows: reader.u16("rows")?,
            columns: reader.u16("columns")?,
        })
    }
}

/// The kind of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum ErrorCode {
    /// The other end sent something the protocol does not allow; the connection is closed.
    Malformed = 1,
    /// The two ends have no version in common; the connection is closed.
    Version = 2,
    /// As many requests as the agent takes are under way.
    TooManyRequests = 3,
    /// The agent is frozen: it has to be thawed or identified first.
    Frozen = 4,
    /// A step of an identity could not be applied. A frozen agent stays frozen.
    Identity = 5,
    /// A command without a program.
    EmptyCommand = 16,
    /// No such program.
    NotFound = 17,
    /// The program, or its directory, is not this user's to use.
    PermissionDenied = 18,
    /// The file is nothing the kernel can run.
    NotExecutable = 19,
    /// Arguments and environment are longer than Linux or the protocol takes.
    ArgumentTooLong = 20,
    /// The user or group is not in the guest's files.
    NoSuchUser = 21,
    /// The working directory is not there, or none.
    NoSuchDirectory = 22,
    /// Something else in the request cannot be.
    InvalidRequest = 23,
    /// The guest has no memory, processes or files left to do it.
    OutOfResources = 24,
    /// The guest cannot do this at all (no cgroup for a limit).
    Unsupported = 25,
    /// What should not happen in the agent.
    Internal = 26,
    /// A runner ended before it was warm.
    WarmUp = 27,
}

impl ErrorCode {
    /// Codes of later versions are internal errors to this one: their message still says what
    /// they are.
    fn from_wire(code: u16) -> Self {
        match code {
            1 => Self::Malformed,
            2 => Self::Version,
            3 => Self::TooManyRequests,
            4 => Self::Frozen,
            5 => Self::Identity,
            16 => Self::EmptyCommand,
            17 => Self::NotFound,
            18 => Self::PermissionDenied,
            19 => Self::NotExecutable,
            20 => Self::ArgumentTooLong,
            21 => Self::NoSuchUser,
            22 => Self::NoSuchDirectory,
            23 => Self::InvalidRequest,
            24 => Self::OutOfResources,
            25 => Self::Unsupported,
            27 => Self::WarmUp,
            _ => Self::Internal,
        }
    }
}

/// Why a request, or a connection, came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: ErrorCode,
    message: String,
}

impl Failure {
    /// With a message of at most [`MAX_MESSAGE`] bytes; a longer one is cut.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self { code, message }
    }

    /// Its kind.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What was attempted and why it failed.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<SpawnError> for Failure {
    fn from(error: SpawnError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<WarmError> for Failure {
    fn from(error: WarmError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Why a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The command is over a limit.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The identity is none.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The runner, or the program for one, is over a limit.
    #[error(transparent)]
    Warm(#[from] WarmError),
    /// More bytes of a stream than a frame carries.
    #[error("{0} bytes are more than the {MAX_DATA} of one frame")]
    Data(usize),
}

/// The meaning of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// See [`Kind::Hello`].
    Hello(Hello),
    /// See [`Kind::Ping`].
    Ping,
    /// See [`Kind::Pong`].
    Pong,
    /// See [`Kind::Error`].
    Error(Failure),
    /// See [`Kind::PowerOff`].
    PowerOff,
    /// See [`Kind::PoweringOff`].
    PoweringOff,
    /// See [`Kind::Freeze`].
    Freeze,
    /// See [`Kind::Frozen`].
    Frozen,
    /// See [`Kind::Thaw`].
    Thaw,
    /// See [`Kind::Thawed`].
    Thawed,
    /// See [`Kind::Identify`].
    Identify(Cow<'a, Identity>),
    /// See [`Kind::Identified`].
    Identified,
    /// See [`Kind::Clock`].
    Clock {
        /// The time since 1970-01-01 00:00 UTC, in nanoseconds.
        nanoseconds: u64,
    },
    /// See [`Kind::ClockSet`].
    ClockSet,
    /// See [`Kind::Spawn`].
    Spawn(Cow<'a, Spawn>),
    /// See [`Kind::Started`].
    Started {
        /// The command's process in the guest.
        pid: u32,
    },
    /// See [`Kind::Data`].
    Data {
        /// Which stream.
        stream: Stream,
        /// What comes next on it.
        bytes: &'a [u8],
        /// Nothing follows.
        end: bool,
    },
    /// See [`Kind::Window`].
    Window {
        /// Which stream.
        stream: Stream,
        /// How many bytes more may be sent.
        bytes: u32,
    },
    /// See [`Kind::Reset`].
    Reset {
        /// Which stream.
        stream: Stream,
    },
    /// See [`Kind::Signal`].
    Signal {
        /// The signal's number in Linux on this architecture, 1 to 64.
        number: u8,
    },
    /// See [`Kind::Resize`].
    Resize(PtySize),
    /// See [`Kind::Kill`].
    Kill,
    /// See [`Kind::Exited`].
    Exited(Outcome),
    /// See [`Kind::Warm`].
    Warm(Cow<'a, Warm>),
    /// See [`Kind::Warmed`].
    Warmed,
    /// See [`Kind::Run`].
    Run(Cow<'a, Warm>),
    /// See [`Kind::Measure`].
    Measure,
    /// See [`Kind::Measured`].
    Measured(Usage),
}

impl Message<'_> {
    /// The kind of its frame.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Ping => Kind::Ping,
            Self::Pong => Kind::Pong,
            Self::Error(_) => Kind::Error,
            Self::PowerOff => Kind::PowerOff,
            Self::PoweringOff => Kind::PoweringOff,
            Self::Freeze => Kind::Freeze,
            Self::Frozen => Kind::Frozen,
            Self::Thaw => Kind::Thaw,
            Self::Thawed => Kind::Thawed,
            Self::Identify(_) => Kind::Identify,
            Self::Identified => Kind::Identified,
            Self::Clock { .. } => Kind::Clock,
            Self::ClockSet => Kind::ClockSet,
            Self::Spawn(_) => Kind::Spawn,
            Self::Started { .. } => Kind::Started,
            Self::Data { .. } => Kind::Data,
            Self::Window { .. } => Kind::Window,
            Self::Reset { .. } => Kind::Reset,
            Self::Signal { .. } => Kind::Signal,
            Self::Resize(_) => Kind::Resize,
            Self::Kill => Kind::Kill,
            Self::Exited(_) => Kind::Exited,
            Self::Warm(_) => Kind::Warm,
            Self::Warmed => Kind::Warmed,
            Self::Run(_) => Kind::Run,
            Self::Measure => Kind::Measure,
            Self::Measured(_) => Kind::Measured,
        }
    }

    /// Appends its frame to `out`, or nothing at all.
    pub fn encode(&self, request: u32, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        let flags = self
            .encode_payload(out)
            .inspect_err(|_| out.truncate(start))?;
        // Each field above is bounded: the length of a payload is at most `MAX_SPAWN`.
        let length = (out.len() - start - HEADER_LEN) as u32;
        let header = Header {
            length,
            kind: self.kind(),
            flags,
            request,
        };
        out[start..start + HEADER_LEN].copy_from_slice(&header.encode());
        Ok(())
    }

    fn encode_payload(&self, out: &mut Vec<u8>) -> Result<u8, EncodeError> {
        match self {
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
            | Self::Kill => {}
            Self::Identify(identity) => identity.encode(out)?,
            Self::Hello(hello) => hello.encode(out),
            Self::Error(failure) => {
                out.extend_from_slice(&(failure.code as u16).to_le_bytes());
                put_string(out, failure.message.as_bytes());
            }
            Self::Spawn(spawn) => spawn.encode(out)?,
            Self::Clock { nanoseconds } => out.extend_from_slice(&nanoseconds.to_le_bytes()),
            Self::Started { pid } => out.extend_from_slice(&pid.to_le_bytes()),
            Self::Data { stream, bytes, end } => {
                if bytes.len() > MAX_DATA {
                    return Err(EncodeError::Data(bytes.len()));
                }
                out.extend_from_slice(bytes);
                return Ok(Header::data(0, *stream, 0, *end).flags);
            }
            Self::Window { stream, bytes } => {
                out.push(*stream as u8);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Self::Reset { stream } => out.push(*stream as u8),
            Self::Signal { number } => out.push(*number),
            Self::Resize(size) => size.encode(out),
            Self::Exited(outcome) => outcome.encode(out),
            Self::Measured(usage) => usage.encode(out),
            Self::Warm(warm) | Self::Run(warm) => warm.encode(self.kind(), out)?,
        }
        Ok(0)
    }
}

impl<'a> Message<'a> {
    /// Reads the meaning of a frame.
    pub fn decode(frame: Frame<'a>) -> Result<Self, Malformed> {
        let Frame {
            kind,
            flags,
            payload,
            ..
        } = frame;
        let mut reader = Reader::new(kind, payload);
        let message = match kind {
            Kind::Ping => Self::Ping,
            Kind::Pong => Self::Pong,
            Kind::PowerOff => Self::PowerOff,
            Kind::PoweringOff => Self::PoweringOff,
            Kind::Kill => Self::Kill,
            Kind::Freeze => Self::Freeze,
            Kind::Frozen => Self::Frozen,
            Kind::Thaw => Self::Thaw,
            Kind::Thawed => Self::Thawed,
            Kind::Identified => Self::Identified,
            Kind::ClockSet => Self::ClockSet,
            Kind::Clock => {
                let nanoseconds = reader.u64("wall clock")?;
                // As the kernel counts time (`ktime_t`), which ends in 2262.
                if i64::try_from(nanoseconds).is_err() {
                    return Err(reader.out_of_range("wall clock", nanoseconds));
                }
                Self::Clock { nanoseconds }
            }
            Kind::Identify => {
                return Identity::decode(payload).map(|it| Self::Identify(Cow::Owned(it)));
            }
            // Later versions may append to it, so what follows is left alone.
            Kind::Hello => return Hello::decode(payload).map(Self::Hello),
            Kind::Spawn => {
                return Spawn::decode(reader).map(|spawn| Self::Spawn(Cow::Owned(spawn)));
            }
            Kind::Warm => {
                return Warm::decode(kind, payload).map(|warm| Self::Warm(Cow::Owned(warm)));
            }
            Kind::Warmed => Self::Warmed,
            Kind::Run => {
                return Warm::decode(kind, payload).map(|warm| Self::Run(Cow::Owned(warm)));
            }
            Kind::Data => {
                let stream = stream(&reader, flags & data_flags::STREAM)?;
                let end = flags & data_flags::END != 0;
                return Ok(Self::Data {
                    stream,
                    bytes: payload,
                    end,
                });
            }
            Kind::Error => {
                let code = ErrorCode::from_wire(reader.u16("code")?);
                Self::Error(Failure::new(code, reader.text(MAX_MESSAGE, "message")?))
            }
            Kind::Started => Self::Started {
                pid: reader.u32("process")?,
            },
            Kind::Window => {
                let byte = reader.u8("stream")?;
                Self::Window {
                    stream: stream(&reader, byte)?,
                    bytes: reader.u32("bytes")?,
                }
            }
            Kind::Reset => {
                let byte = reader.u8("stream")?;
                Self::Reset {
                    stream: stream(&reader, byte)?,
                }
            }
            Kind::Signal => {
                let number = reader.u8("signal")?;
                if !(1..=64).contains(&number) {
                    return Err(reader.out_of_range("signal", u64::from(number)));
                }
                Self::Signal { number }
            }
            Kind::Resize => Self::Resize(PtySize::decode(&mut reader)?),
            Kind::Exited => Self::Exited(Outcome::decode(&mut reader)?),
            Kind::Measure => Self::Measure,
            Kind::Measured => Self::Measured(Usage::decode(&mut reader)?),
        };
        reader.end()?;
        Ok(message)
    }
}

fn stream(reader: &Reader<'_>, byte: u8) -> Result<Stream, Malformed> {
    Stream::from_byte(byte).ok_or_else(|| reader.out_of_range("stream", u64::from(byte)))
}
