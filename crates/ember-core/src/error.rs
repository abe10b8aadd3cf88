//! The one error of this crate.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// Why something could not be done.
///
/// [`kind`](Self::kind) is for programs to decide by; the message is for people, and says what was
/// attempted, on what, and what to do. What a guest's own code does wrong is not an error: it is in
/// the [`Output`](crate::Output) of running it.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What sort of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This host cannot do it: no usable KVM, or no permission. `ember doctor` says what to change.
    HostUnsupported,
    /// The request is wrong, and will be wrong again.
    InvalidRequest,
    /// There is no such program, or no such file, in the guest.
    NotFound,
    /// The program is there and cannot be executed by this user.
    NotExecutable,
    /// The file is not this user's to read, write or remove.
    PermissionDenied,
    /// There is more than was to be moved or kept: a cap of the caller's, or of the system's on
    /// files.
    TooLarge,
    /// The program could not be compiled, and so not be started. The message has what the compiler
    /// said. Of a program that is [run](crate::Sandbox::run) to its end, that is an outcome.
    CompilationFailed,
    /// The guest has no memory, processes or files left for it.
    Exhausted,
    /// A kernel or an image could not be prepared: a package, a tool or a file is missing.
    Unprepared,
    /// The guest did not come up. The message ends with its console's last lines.
    BootFailed,
    /// A step of a template's warm-up did not succeed. The message has what it wrote.
    WarmUpFailed,
    /// A clone did not answer, or could not be made unique. There is no such clone.
    ForkFailed,
    /// A template's file is damaged, is none, or was written by another version; or an archive that a
    /// guest has sent is none, or has what it may not have.
    Damaged,
    /// The guest ended, or stopped answering, while something was asked of it.
    GuestDied,
    /// The guest was ended, for it had copied more memory than it may
    /// ([`ForkOptions::memory_cap`](crate::ForkOptions::memory_cap)).
    MemoryExceeded,
    /// A pool has nothing to give in time: all its members are handed out, too many callers wait,
    /// or memory is short. Later it may have.
    Unavailable,
    /// The sandbox, or the pool, was closed before, or the session has ended.
    Closed,
    /// A mistake of ours. Please report it.
    Internal,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn because(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            source: Some(source.into()),
        }
    }

    /// What the operating system refused: [`ErrorKind::Exhausted`] if it has not enough left of
    /// something, else [`ErrorKind::HostUnsupported`].
    pub(crate) fn of_host(message: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| {
            let kind = match ember_vmm::is_exhausted(&error) {
                true => ErrorKind::Exhausted,
                false => ErrorKind::HostUnsupported,
            };
            Self::because(kind, message, error)
        }
    }

    /// What sort of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    /// The whole chain, for people: this is what `main` prints of an error that it returns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut source = self.source();
        while let Some(error) = source {
            write!(f, "\n  because: {error}")?;
            source = error.source();
        }
        write!(f, "\n  ({:?})", self.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}
