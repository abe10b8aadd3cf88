//! A cell, and what comes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ember_guest::protocol::LimitHit;
use serde::{Deserialize, Serialize};

use crate::output::Captured;

/// Code for a session.
#[derive(Debug, Clone)]
#[must_use]
pub struct Cell {
    pub(super) code: String,
    pub(super) timeout: Option<Duration>,
}

impl Cell {
    /// This code.
    pub fn new(code: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            timeout: None,
        }
    }

    /// Interrupts it after so long.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(code: T) -> Self {
        Self::new(code)
    }
}

/// A value as the interpreter represents it: by media type, in text. What is no text (`image/png`) is
/// base64, JSON is written down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Data(pub(super) BTreeMap<String, String>);

impl Data {
    /// The representation for people who have nothing but text: `text/plain`.
    pub fn text(&self) -> Option<&str> {
        self.get("text/plain")
    }

    /// The representation of this media type.
    pub fn get(&self, media_type: &str) -> Option<&str> {
        self.0.get(media_type).map(String::as_str)
    }

    /// All of them, by their media types.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(kind, text)| (&**kind, &**text))
    }
}

/// What a cell raised.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CellError {
    /// Its kind, by the language's name for it: `ZeroDivisionError`.
    pub name: String,
    /// What it says.
    pub message: String,
    /// What the language's interpreter would have printed of it.
    pub traceback: String,
    /// Where it came from, the outermost first.
    pub frames: Vec<TraceFrame>,
}

/// One of the calls that led to an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TraceFrame {
    /// The file, or the cell (`<cell 3>`).
    #[serde(default)]
    pub file: String,
    /// The line, counted from one; zero if it is not known.
    #[serde(default)]
    pub line: u32,
    /// The function.
    #[serde(default)]
    pub function: String,
    /// The line's text, if it is known.
    #[serde(default)]
    pub text: String,
}

impl fmt::Display for CellError {
    /// The traceback, or else the name and the message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.traceback.trim_end() {
            "" => write!(f, "{}: {}", self.name, self.message),
            traceback => f.write_str(traceback),
        }
    }
}

/// Something that comes of a cell while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CellEvent {
    /// It wrote this to its standard output.
    Stdout(Vec<u8>),
    /// It wrote this to its standard error.
    Stderr(Vec<u8>),
    /// It showed this.
    Display(Data),
    /// Its last expression had this value.
    Value(Data),
    /// It raised this.
    Error(CellError),
}

/// How a cell ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CellEnd {
    /// In a word.
    pub verdict: CellVerdict,
    /// How long it took.
    pub wall: Duration,
    /// More came of it than is kept, or something that made no sense.
    pub truncated: bool,
}

/// How a cell ended, in a word.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CellVerdict {
    /// It ran to its end.
    Success,
    /// It raised an error.
    Error,
    /// It was [interrupted](super::Session::interrupt). The session goes on.
    Interrupted,
    /// Its time was up, and it was interrupted. The session goes on.
    Timeout,
    /// The session ended with it.
    Ended(SessionEnd),
}

impl CellVerdict {
    /// Its name, for programs: `success`, `error`, `interrupted`, `timeout` or `ended`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Error => "error",
            Self::Interrupted => "interrupted",
            Self::Timeout => "timeout",
            Self::Ended(_) => "ended",
        }
    }
}

/// What came of a cell.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CellOutput {
    /// Its last expression's value, if that is one and has one.
    pub value: Option<Data>,
    /// What it showed besides, in order.
    pub displays: Vec<Data>,
    /// What it wrote to its standard output.
    pub stdout: Captured,
    /// What it wrote to its standard error.
    pub stderr: Captured,
    /// What it raised.
    pub error: Option<CellError>,
    /// How it ended.
    pub verdict: CellVerdict,
    /// How long it took.
    pub wall: Duration,
    /// More came of it than is kept, or something that made no sense.
    pub truncated: bool,
}

impl CellOutput {
    /// Whether it ran to its end, without an error.
    pub fn success(&self) -> bool {
        self.verdict == CellVerdict::Success
    }

    /// Its value as text.
    pub fn text(&self) -> Option<&str> {
        self.value.as_ref().and_then(Data::text)
    }
}

/// Why a session has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The interpreter exited with this code.
    Exited(u8),
    /// This signal ended the interpreter.
    Signaled(u8),
    /// The interpreter hit this limit.
    Limit(LimitHit),
    /// The interpreter was ended from within the guest, in a way that it could not tell.
    Lost,
    /// A cell's time was up, and it did not end when it was interrupted.
    Deaf,
    /// It was idle for too long.
    Idle,
    /// Its time to live was over.
    TimeToLive,
    /// It had reached its greatest age.
    MaxAge,
    /// It was closed.
    Closed,
    /// What came from the guest was not a session's.
    Nonsense,
    /// The guest ended.
    GuestDied,
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "its interpreter exited with code {code}"),
            Self::Signaled(signal) => write!(f, "its interpreter was ended by signal {signal}"),
            Self::Limit(limit) => write!(f, "its interpreter hit the limit of {limit}"),
            Self::Lost => f.write_str("its interpreter was ended, by a limit or a signal"),
            Self::Deaf => f.write_str("a cell did not end when it was interrupted"),
            Self::Idle => f.write_str("it was idle for too long"),
            Self::TimeToLive => f.write_str("its time to live was over"),
            Self::MaxAge => f.write_str("it had reached its greatest age"),
            Self::Closed => f.write_str("it was closed"),
            Self::Nonsense => f.write_str("what came from the guest was not a session's"),
            Self::GuestDied => f.write_str("its guest ended"),
        }
    }
}
