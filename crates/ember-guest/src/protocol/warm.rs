//! Runners: interpreters that are warm before there is anything to run.

use super::codec::{Reader, put_string};
use super::spawn::shorten;
use super::{ErrorCode, Kind, MAX_CODE, MAX_RUNNER, Malformed, Spawn, SpawnError};

/// A runner to start, or a program for one, as it goes over the wire.
///
/// To start one, `command` is the runner's own, and `code` is run in it first. To run a program,
/// `command` has the program's arguments, of which the first is the program's path, or `-c` if
/// `code` is the program. The user is the runner's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warm {
    /// The runner's name.
    pub runner: String,
    /// What to run in it.
    pub code: Vec<u8>,
    /// How.
    pub command: Spawn,
}

/// Why a runner cannot even be asked. The same check is made on both ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WarmError {
    /// Not a name.
    #[error(
        "{name:?} cannot be the name of a runner: it takes 1 to {MAX_RUNNER} letters, digits, \
         dots, hyphens and underscores"
    )]
    Name {
        /// The name, shortened.
        name: String,
    },
    /// The code is longer than the protocol carries.
    #[error(
        "the code has {length} bytes, the limit is {MAX_CODE}: put it into a file of the guest"
    )]
    CodeTooLong {
        /// Its length.
        length: usize,
    },
    /// A runner has no standard input and no terminal.
    #[error("a runner cannot have standard input or a terminal; what it runs can")]
    Streams,
    /// A program cannot choose its user.
    #[error("a program runs as its runner's user, not as {user:?}")]
    User {
        /// The user that was asked for, shortened.
        user: String,
    },
    /// A path and code.
    #[error("code was given beside the program's path {path:?}: the argument before it is `-c`")]
    CodeAndPath {
        /// The path, shortened.
        path: String,
    },
    /// A runner is a program of the guest's.
    #[error("a runner, or what it runs, cannot be a program of the agent's own")]
    Builtin,
    /// Something of the command.
    #[error(transparent)]
    Command(#[from] SpawnError),
}

impl WarmError {
    /// The code of an `Error` frame that says this.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Command(error) => error.code(),
            Self::CodeTooLong { .. } => ErrorCode::ArgumentTooLong,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

/// The first argument of a program that is given as code.
pub const INLINE: &[u8] = b"-c";

impl Warm {
    /// Checks everything that can be known without the guest, of a runner to start.
    pub fn validate_runner(&self) -> Result<(), WarmError> {
        self.validate()?;
        if self.command.wants_stdin() {
            return Err(WarmError::Streams);
        }
        Ok(())
    }

    /// The same, of a program to run.
    pub fn validate_program(&self) -> Result<(), WarmError> {
        self.validate()?;
        if !self.command.user.is_empty() {
            let user = shorten(&self.command.user);
            return Err(WarmError::User { user });
        }
        match self.command.argv.first() {
            Some(path) if path != INLINE && !self.code.is_empty() => {
                let path = shorten(path);
                Err(WarmError::CodeAndPath { path })
            }
            _ => Ok(()),
        }
    }

    fn validate(&self) -> Result<(), WarmError> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if !(1..=MAX_RUNNER).contains(&self.runner.len()) || !self.runner.bytes().all(letter) {
            let name = shorten(self.runner.as_bytes());
            return Err(WarmError::Name { name });
        }
        if self.code.len() > MAX_CODE {
            let length = self.code.len();
            return Err(WarmError::CodeTooLong { length });
        }
        if self.command.builtin {
            return Err(WarmError::Builtin);
        }
        Ok(self.command.validate()?)
    }

    pub(super) fn encode(&self, kind: Kind, out: &mut Vec<u8>) -> Result<(), WarmError> {
        match kind {
            Kind::Run => self.validate_program()?,
            _ => self.validate_runner()?,
        }
        put_string(out, self.runner.as_bytes());
        put_string(out, &self.code);
        Ok(self.command.encode(out)?)
    }

    /// Reads one. It is still to be validated.
    pub(super) fn decode(kind: Kind, payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(kind, payload);
        let runner = reader.text(MAX_RUNNER, "runner")?.to_owned();
        let code = reader.string(MAX_CODE, "code")?.to_vec();
        let command = Spawn::decode(reader)?;
        Ok(Self {
            runner,
            code,
            command,
        })
    }
}
