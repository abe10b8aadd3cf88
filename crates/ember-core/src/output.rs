//! What a program wrote, and how it ended.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use ember_guest::protocol::Outcome;

use crate::compile::Compilation;
use crate::files::Artifacts;

/// What came of a program that ran to its end, or was ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its standard output.
    pub stdout: Captured,
    /// Its standard error.
    pub stderr: Captured,
    /// It wrote more than is kept; the rest was dropped.
    pub truncated: bool,
    /// How it ended, and what it used. Of a program that could not be compiled, how its compiler
    /// did, whose messages are its standard error.
    pub outcome: Outcome,
    /// How it was compiled, if its language is one that is.
    pub compile: Option<Compilation>,
    /// The files that it was asked to leave ([`Code::artifact`](crate::Code::artifact)), however it
    /// ended. None if none were asked for, or if it was not run.
    pub artifacts: Option<Artifacts>,
}

impl Output {
    /// Whether it exited with code 0, in time.
    pub fn success(&self) -> bool {
        self.outcome.success()
    }
}

/// Bytes that a program wrote. They compare with text, and show as text.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Captured(Vec<u8>);

impl Captured {
    /// As text; what is not UTF-8 is replaced.
    pub fn to_string_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }

    /// The bytes themselves.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl From<Vec<u8>> for Captured {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Captured {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<str> for Captured {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Captured {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<[u8]> for Captured {
    fn eq(&self, other: &[u8]) -> bool {
        self.0 == other
    }
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_string_lossy())
    }
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}
