//! What the agent and its host say to each other: bytes in, values out, no I/O.
//!
//! One reliable byte stream carries frames both ways (`frame`). Each end first sends a
//! [`Hello`]; after both have agreed on a version, the host makes requests and the agent answers.
//! A request is named by a number that the host picks; everything that belongs to it carries that
//! number, so many run at once on one stream.
//!
//! ```text
//! host                                 agent
//! Hello{versions, features}    <->     Hello{versions, features}
//! Ping                          ->     Pong
//! Spawn{argv, env, ...}         ->     Started{pid}  or  Error{code, message}
//! Data{stdin}, Data{stdin,end}  ->
//!                              <-      Data{stdout}, Data{stderr}, Data{.., end}
//! Window{stdout, n}             ->
//!                              <-      Window{stdin, n}
//! Signal, Resize, Kill, Reset   ->
//! Measure                       ->     Measured{usage}, or nothing if Exited is on its way
//!                              <-      Exited{status, usage}
//! Warm{runner, setup, ...}      ->     Started, Data ..., then Warmed  or  Exited
//! Run{runner, code, argv, ...}  ->     Started ... as for Spawn
//! Freeze                        ->     Frozen, then silence
//! Thaw                          ->     Thawed
//! Identify{entropy, clock, ...} ->     Identified  or  Error{code, message}
//! Clock{time}                   ->     ClockSet  or  Error{code, message}
//! PowerOff                      ->     PoweringOff, then the end of the stream
//! ```
//!
//! # Flow control
//! Each direction of each stream of a request starts with a window of [`WINDOW`] bytes. Who sends
//! data uses it up, who consumes data gives it back with a `Window` frame. A reader that stops
//! reading therefore stops one stream of one process and nothing else, and each end's buffers are
//! bounded by the windows it has granted. Sending more than the window is an error that ends the
//! connection.
//!
//! # The end of a request
//! `Exited` comes once: when the command itself has ended and both its outputs have reached their
//! end (a background child that keeps an output open keeps the request alive, as in a shell's
//! pipeline), or when the request was ended by force (its timeout, or `Kill`). In the second case
//! what is still in the output pipes may follow `Exited`. A `Data` frame with the end flag is the
//! last of its stream in every case. The host may reuse the number after `Exited` and both ends.
//!
//! # Runners
//! `Warm` starts a command that does not end of itself: an interpreter, which first runs some code
//! to get warm. `Warmed` says that it has, and that a process stands ready; until then it is a
//! command like any other, whose output and end are reported. `Run` then is a `Spawn` whose
//! process exists already.
//!
//! # Files
//! Files have no frames of their own. `Spawn` can name a program that the agent brings itself
//! ([`Spawn::builtin`]), and the one for files does one thing with them ([`FileRequest`]): with the
//! rights of the user that it is to run as, and with streams like any other's, so that a reader that
//! stops reading stops it, and nothing but a buffer is in memory.
//!
//! # Sessions
//! Nor have sessions. The agent's program for them keeps an interpreter, and speaks with the host, or
//! that of a clone, on its streams ([`SessionFrame`]).
//!
//! # Freezing
//! A machine is saved between two frames, so that neither end has to be told that it was. After
//! `Freeze` the host sends nothing until its answer has come. The agent ends the frame that it is
//! at, sends what it owes and then `Frozen`, and from then on nothing at all, whatever its
//! commands do, until the host says one of two things:
//!
//! - `Thaw`: it goes on where it was. This is for the machine that was saved.
//! - `Identify`: it is a clone, and this is who it is. Commands that were under way belong to the
//!   other machine's host. Here they go on, within their timeouts, but nobody hears of them:
//!   their output is read and dropped, their end is not reported, and their numbers are free.
//!
//! Until then it starts no command. `Ping` and `PowerOff` are answered, and change nothing of
//! that. An identity that could not be applied as a whole leaves the agent frozen. `Identify` can
//! also be sent to an agent that is not frozen; then nothing happens to its commands.
//!
//! The clock in `Identify` is as late as that takes to be applied, which in a clone that has every page
//! still to fetch can be milliseconds. `Clock` sets it once more, when that is over.
//!
//! # Errors
//! An `Error` frame with a request's number ends that request. One with number zero concerns the
//! connection, which is closed after it.

mod codec;
mod files;
mod frame;
mod hello;
mod identity;
mod limits;
mod message;
mod outcome;
mod session;
mod spawn;
#[cfg(test)]
mod tests;
mod usage;
mod warm;

pub use files::{
    FILES_PROGRAM, FileChange, FileEntry, FileEvent, FileKind, FileNote, FileRecords, FileRequest,
    exit_code,
};
pub use frame::{Decoder, Frame, HEADER_LEN, Header, Kind, data_flags};
pub use hello::{
    FEATURE_CGROUP, FEATURE_CLOCK, FEATURE_CONFINE, FEATURE_FILES, FEATURE_FREEZE, FEATURE_PTY,
    FEATURE_SESSIONS, FEATURE_USAGE, FEATURE_WARM, Hello, MIN_VERSION, VERSION, VersionMismatch,
};
pub use identity::{ENTROPY, Identity, IdentityError, Variables};
pub use limits::Limits;
pub use message::{EncodeError, ErrorCode, Failure, Message, PtySize, Stream};
pub use outcome::{LimitHit, Outcome, Status};
pub use session::{
    MAX_SESSION_CODE, MAX_SESSION_PART, SESSION_PROGRAM, SESSION_VERSION, SessionDecoder,
    SessionFrame, SessionMalformed, SessionRole,
};
pub use spawn::{Spawn, SpawnError};
pub use usage::Usage;
pub use warm::{INLINE, Warm, WarmError};

/// The name of the agent's own program that serves the JSON protocol (`docs/protocol.md`).
pub const JSON_PROGRAM: &[u8] = b"ember-json";
/// The guest's vsock port that it is served on.
pub const JSON_PORT: u32 = 52_000;
/// The most bytes of a stream in one `Data` frame.
pub const MAX_DATA: usize = 64 * 1024;
/// The window each direction of each stream of a request starts with.
pub const WINDOW: u32 = 256 * 1024;
/// The most requests that may be under way at once on a connection.
pub const MAX_REQUESTS: usize = 256;
/// The most bytes of an encoded `Spawn`. Linux itself takes a quarter of the stack limit for
/// arguments and environment together (execve(2)), 2 MiB with the usual 8 MiB of stack.
pub const MAX_SPAWN: usize = 2 * 1024 * 1024;
/// The most bytes of code for a runner.
pub const MAX_CODE: usize = 1024 * 1024;
/// The most bytes of a runner's name.
pub const MAX_RUNNER: usize = 64;
/// The most bytes of an encoded `Identity`.
pub const MAX_IDENTIFY: usize = 512 * 1024;
/// The most bytes of a host name: Linux's `__NEW_UTS_LEN`.
pub const MAX_HOSTNAME: usize = 64;
/// The most strings in the arguments, or in the environment, of a command.
pub const MAX_STRINGS: usize = 65_536;
/// The most bytes in one argument or `NAME=value` pair: Linux's `MAX_ARG_STRLEN` of 32 pages, less
/// the byte that ends it.
pub const MAX_ARGUMENT: usize = 128 * 1024 - 1;
/// How many processes and threads a confined command may have that does not say so itself: more
/// than a program takes, and less than a guest bears.
pub const MAX_PROCESSES: u64 = 512;
/// The most bytes of a path: Linux's `PATH_MAX`, less the byte that ends it.
pub const MAX_PATH: usize = 4095;
/// The most bytes of a user specification, `name`, `uid`, `name:group` or `uid:gid`.
pub const MAX_USER: usize = 255;
/// The most bytes in the message of an `Error`.
pub const MAX_MESSAGE: usize = 1024;
/// The most bytes in the name of the software in a `Hello`.
pub const MAX_SOFTWARE: usize = 64;

/// Why bytes from the other end are not what the protocol allows. The connection cannot go on
/// after one: where the next frame begins is not known any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The kind byte of a header is not known.
    #[error("frame kind {0} is not known")]
    UnknownKind(u8),
    /// The reserved field of a header is in use.
    #[error("the reserved field of a frame is {0:#06x}, not zero")]
    Reserved(u16),
    /// A header announces more than its kind may carry.
    #[error("a {kind:?} frame of {length} bytes is over its limit of {limit}")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// Its announced length.
        length: u32,
        /// The most it may be.
        limit: usize,
    },
    /// A flag that its kind does not have.
    #[error("a {kind:?} frame has the flags {flags:#04x}, some of which it cannot have")]
    Flags {
        /// The frame's kind.
        kind: Kind,
        /// All its flags.
        flags: u8,
    },
    /// A request number where none belongs, or none where one does.
    #[error("a {kind:?} frame cannot have the request number {request}")]
    Request {
        /// The frame's kind.
        kind: Kind,
        /// Its request number.
        request: u32,
    },
    /// The payload ends before a field does.
    #[error("a {kind:?} frame ends within its {field}")]
    Truncated {
        /// The frame's kind.
        kind: Kind,
        /// The field.
        field: &'static str,
    },
    /// The payload goes on after its last field.
    #[error("a {kind:?} frame goes on for {extra} bytes after its last field")]
    Trailing {
        /// The frame's kind.
        kind: Kind,
        /// How many bytes are left over.
        extra: usize,
    },
    /// A field's value is outside of what it may be.
    #[error("the {field} of a {kind:?} frame cannot be {value}")]
    OutOfRange {
        /// The frame's kind.
        kind: Kind,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A text is not UTF-8.
    #[error("the {field} of a {kind:?} frame is not UTF-8")]
    NotText {
        /// The frame's kind.
        kind: Kind,
        /// The field.
        field: &'static str,
    },
    /// A frame that this end never receives, or not at this time.
    #[error("a {kind:?} frame cannot come here")]
    Unexpected {
        /// The frame's kind.
        kind: Kind,
    },
    /// The number of a new request is in use.
    #[error("request {request} is already under way")]
    Duplicate {
        /// The request.
        request: u32,
    },
    /// The other end sent more of a stream than it was allowed to, or gave back more than it got.
    #[error("the window of request {request}'s {stream:?} was overrun")]
    Window {
        /// The request.
        request: u32,
        /// Its stream.
        stream: Stream,
    },
}
