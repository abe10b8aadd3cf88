//! What can go wrong with an agent, from the host's side.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::protocol::{ErrorCode, Failure, Malformed, VersionMismatch};

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request was refused, by the agent or before it was sent, for this reason. The agent is
    /// as well as before.
    Refused(ErrorCode),
    /// The connection is gone, and with it every command that ran on it.
    Disconnected,
    /// The agent sent what the protocol does not allow, so the connection was closed.
    Protocol,
    /// The two ends speak no common version.
    Version,
}

/// Why a request to an agent came to nothing.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    attempt: String,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Failure(Failure),
    Closed(Closed),
    Version(VersionMismatch),
}

/// Why a connection ended.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// The agent closed it: the guest is shutting down, or the agent or the guest died.
    #[error("the agent closed the connection")]
    ByAgent,
    /// Every handle on this side was dropped.
    #[error("the connection was closed on this side")]
    ByHost,
    /// The agent powers the guest off, as it was asked to.
    #[error("the guest powers off")]
    PoweredOff,
    /// The agent refused the connection or gave it up.
    #[error("the agent gave the connection up")]
    Refused(#[source] Failure),
    /// The agent sent what the protocol does not allow.
    #[error("the agent broke the protocol")]
    Malformed(#[source] Malformed),
    /// Reading or writing failed.
    #[error("the connection failed")]
    Io(#[source] Arc<io::Error>),
}

impl Error {
    pub(super) fn refused(attempt: impl Into<String>, failure: Failure) -> Self {
        let kind = match failure.code() {
            ErrorCode::Malformed => ErrorKind::Protocol,
            ErrorCode::Version => ErrorKind::Version,
            code => ErrorKind::Refused(code),
        };
        Self {
            kind,
            attempt: attempt.into(),
            source: Source::Failure(failure),
        }
    }

    pub(super) fn closed(attempt: impl Into<String>, closed: Closed) -> Self {
        let kind = match &closed {
            Closed::Malformed(_) => ErrorKind::Protocol,
            Closed::Refused(failure) if failure.code() == ErrorCode::Version => ErrorKind::Version,
            Closed::Refused(failure) if failure.code() == ErrorCode::Malformed => {
                ErrorKind::Protocol
            }
            _ => ErrorKind::Disconnected,
        };
        Self {
            kind,
            attempt: attempt.into(),
            source: Source::Closed(closed),
        }
    }

    pub(super) fn version(attempt: impl Into<String>, mismatch: VersionMismatch) -> Self {
        Self {
            kind: ErrorKind::Version,
            attempt: attempt.into(),
            source: Source::Version(mismatch),
        }
    }

    /// What it is about.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The reason of a refusal.
    pub fn code(&self) -> Option<ErrorCode> {
        match self.kind {
            ErrorKind::Refused(code) => Some(code),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot {}", self.attempt)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(match &self.source {
            Source::Failure(failure) => failure,
            Source::Closed(closed) => closed,
            Source::Version(mismatch) => mismatch,
        })
    }
}
