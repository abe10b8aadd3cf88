//! The request to run a command.

use std::time::Duration;

use super::codec::{Reader, put_string};
use super::{
    ErrorCode, FILES_PROGRAM, JSON_PROGRAM, Limits, MAX_ARGUMENT, MAX_PATH, MAX_PROCESSES,
    MAX_SPAWN, MAX_STRINGS, MAX_USER, Malformed, PtySize, SESSION_PROGRAM,
};

/// A command to run, as it goes over the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spawn {
    /// The program and its arguments. A program without a slash is looked for in the command's
    /// `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// Variables set on top of the agent's own, or alone with `clear_env`.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Start from no environment at all.
    pub clear_env: bool,
    /// The directory to start in, `/` if empty.
    pub cwd: Vec<u8>,
    /// `name`, `uid`, `name:group` or `uid:gid`; the agent's own user if empty.
    pub user: Vec<u8>,
    /// Keep it from everything else in the guest: it gets namespaces of its own, no capabilities,
    /// whoever it runs as, and a filter for its system calls. Whatever it has started is ended with
    /// it. If no limit of processes is set, there is one nevertheless ([`MAX_PROCESSES`]). Of a
    /// runner, this holds for its programs.
    pub confined: bool,
    /// The program is the agent's own, whatever is in the guest; the first argument is its name, and
    /// tells it what it is ([`FILES_PROGRAM`],
    /// [`SESSION_PROGRAM`], [`JSON_PROGRAM`]).
    pub builtin: bool,
    /// Whether standard input is fed by the host. It is `/dev/null` otherwise.
    pub stdin: bool,
    /// A terminal for the command, of this size. Implies `stdin`; all output is stdout.
    pub pty: Option<PtySize>,
    /// How long the command and all it has started may live.
    pub timeout: Option<Duration>,
    /// What they may use.
    pub limits: Limits,
}

/// Why a command cannot even be asked for. The same check is made on both ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// No program is named.
    #[error("the command is empty: its first argument must name a program")]
    EmptyCommand,
    /// One argument is longer than Linux takes.
    #[error(
        "argument {index} has {length} bytes; Linux takes {MAX_ARGUMENT} in one argument \
         (MAX_ARG_STRLEN): pass it through a file or standard input"
    )]
    ArgumentTooLong {
        /// Which one, the program being 0.
        index: usize,
        /// Its length.
        length: usize,
    },
    /// One variable is longer than Linux takes.
    #[error(
        "the environment variable {name} has {length} bytes; Linux takes {MAX_ARGUMENT} in one \
         variable (MAX_ARG_STRLEN): pass it through a file or standard input"
    )]
    VariableTooLong {
        /// Its name, shortened.
        name: String,
        /// The length of `name=value`.
        length: usize,
    },
    /// All together is more than the protocol carries and Linux takes.
    #[error(
        "arguments and environment have {length} bytes together, the limit is {MAX_SPAWN}: \
         pass some of it through a file or standard input"
    )]
    TotalTooLong {
        /// The length of the whole request.
        length: usize,
    },
    /// Too many arguments, or too many variables.
    #[error("{count} {what} are over the limit of {MAX_STRINGS}")]
    TooMany {
        /// `arguments` or `environment variables`.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// A zero byte, which would end the string early.
    #[error("{what} contains a zero byte")]
    ZeroByte {
        /// Which string.
        what: String,
    },
    /// A variable's name is empty or has an equals sign.
    #[error("{name:?} cannot be the name of an environment variable")]
    VariableName {
        /// The name, shortened.
        name: String,
    },
    /// The directory's path is too long.
    #[error("the working directory's path has {length} bytes, the limit is {MAX_PATH}")]
    DirectoryTooLong {
        /// Its length.
        length: usize,
    },
    /// The user is too long.
    #[error("the user has {length} bytes, the limit is {MAX_USER}")]
    UserTooLong {
        /// Its length.
        length: usize,
    },
    /// The agent has no such program of its own.
    #[error("the agent has no program {name:?} of its own")]
    NoBuiltin {
        /// Its name, shortened.
        name: String,
    },
    /// The terminal has no rows or no columns.
    #[error("a terminal of {rows} rows and {columns} columns cannot be")]
    TerminalSize {
        /// Rows asked for.
        rows: u16,
        /// Columns asked for.
        columns: u16,
    },
}

impl SpawnError {
    /// The code of an `Error` frame that says this.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::EmptyCommand => ErrorCode::EmptyCommand,
            Self::ArgumentTooLong { .. }
            | Self::VariableTooLong { .. }
            | Self::TotalTooLong { .. }
            | Self::TooMany { .. } => ErrorCode::ArgumentTooLong,
            Self::NoBuiltin { .. } => ErrorCode::NotFound,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

mod option {
    pub(super) const CLEAR_ENV: u8 = 1 << 0;
    pub(super) const STDIN: u8 = 1 << 1;
    pub(super) const PTY: u8 = 1 << 2;
    pub(super) const TIMEOUT: u8 = 1 << 3;
    pub(super) const CONFINED: u8 = 1 << 4;
    pub(super) const BUILTIN: u8 = 1 << 5;
    pub(super) const ALL: u8 = CLEAR_ENV | STDIN | PTY | TIMEOUT | CONFINED | BUILTIN;
}

pub(super) fn shorten(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..64).unwrap_or(bytes)).into_owned()
}

impl Spawn {
    /// Checks everything that can be known without the guest.
    pub fn validate(&self) -> Result<(), SpawnError> {
        if self.argv.first().is_none_or(Vec::is_empty) {
            return Err(SpawnError::EmptyCommand);
        }
        check_count("arguments", self.argv.len())?;
        for (index, argument) in self.argv.iter().enumerate() {
            if argument.len() > MAX_ARGUMENT {
                return Err(SpawnError::ArgumentTooLong {
                    index,
                    length: argument.len(),
                });
            }
            check_zero(argument, || format!("argument {index}"))?;
        }
        let is_own =
            [FILES_PROGRAM, JSON_PROGRAM, SESSION_PROGRAM].contains(&self.argv[0].as_slice());
        if self.builtin && !is_own {
            let name = shorten(&self.argv[0]);
            return Err(SpawnError::NoBuiltin { name });
        }
        check_variables(&self.env)?;
        if self.cwd.len() > MAX_PATH {
            return Err(SpawnError::DirectoryTooLong {
                length: self.cwd.len(),
            });
        }
        check_zero(&self.cwd, || "the working directory".to_owned())?;
        if self.user.len() > MAX_USER {
            return Err(SpawnError::UserTooLong {
                length: self.user.len(),
            });
        }
        check_zero(&self.user, || "the user".to_owned())?;
        if let Some(PtySize { rows, columns }) = self.pty
            && (rows == 0 || columns == 0)
        {
            return Err(SpawnError::TerminalSize { rows, columns });
        }
        let length = self.encoded_len();
        if length > MAX_SPAWN {
            return Err(SpawnError::TotalTooLong { length });
        }
        Ok(())
    }

    /// Its limits, with those that a confined command always has.
    pub fn all_limits(&self) -> Limits {
        let mut limits = self.limits;
        if self.confined {
            limits.processes.get_or_insert(MAX_PROCESSES);
        }
        limits
    }

    /// Whether the host feeds its standard input.
    pub fn wants_stdin(&self) -> bool {
        self.stdin || self.pty.is_some()
    }

    /// The length of its payload. The counts and lengths are those of values in memory, whose sum
    /// cannot overflow.
    fn encoded_len(&self) -> usize {
        let strings = self
            .argv
            .iter()
            .map(|argument| 4 + argument.len())
            .sum::<usize>()
            + self
                .env
                .iter()
                .map(|(name, value)| 8 + name.len() + value.len())
                .sum::<usize>();
        let fixed = 1 + 4 + 8 + Limits::LENGTH + 4 + 4 + 4 + 4;
        fixed + self.user.len() + self.cwd.len() + strings
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<(), SpawnError> {
        self.validate()?;
        let mut options = 0;
        for (set, bit) in [
            (self.clear_env, option::CLEAR_ENV),
            (self.stdin, option::STDIN),
            (self.pty.is_some(), option::PTY),
            (self.timeout.is_some(), option::TIMEOUT),
            (self.confined, option::CONFINED),
            (self.builtin, option::BUILTIN),
        ] {
            if set {
                options |= bit;
            }
        }
        out.push(options);
        self.pty
            .unwrap_or(PtySize {
                rows: 0,
                columns: 0,
            })
            .encode(out);
        let timeout = self.timeout.map_or(0, micros);
        out.extend_from_slice(&timeout.to_le_bytes());
        self.limits.encode(out);
        put_string(out, &self.user);
        put_string(out, &self.cwd);
        out.extend_from_slice(&(self.argv.len() as u32).to_le_bytes());
        for argument in &self.argv {
            put_string(out, argument);
        }
        out.extend_from_slice(&(self.env.len() as u32).to_le_bytes());
        for (name, value) in &self.env {
            put_string(out, name);
            put_string(out, value);
        }
        Ok(())
    }

    /// Reads one. What a payload of its length can describe is bounded: each string takes four
    /// bytes at least. [`Self::validate`] is still to be called.
    pub(super) fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let options = reader.u8("options")?;
        if options & !option::ALL != 0 {
            return Err(reader.out_of_range("options", u64::from(options)));
        }
        let size = PtySize::decode(&mut reader)?;
        let timeout = reader.u64("timeout")?;
        let limits = Limits::decode(&mut reader)?;
        let user = reader.string(MAX_SPAWN, "user")?.to_vec();
        let cwd = reader.string(MAX_SPAWN, "directory")?.to_vec();
        let count = read_count(&mut reader, "arguments")?;
        let mut argv = Vec::new();
        for _ in 0..count {
            argv.push(reader.string(MAX_SPAWN, "arguments")?.to_vec());
        }
        let count = read_count(&mut reader, "environment")?;
        let mut env = Vec::new();
        for _ in 0..count {
            let name = reader.string(MAX_SPAWN, "environment")?.to_vec();
            let value = reader.string(MAX_SPAWN, "environment")?.to_vec();
            env.push((name, value));
        }
        reader.end()?;
        Ok(Self {
            argv,
            env,
            clear_env: options & option::CLEAR_ENV != 0,
            cwd,
            user,
            confined: options & option::CONFINED != 0,
            builtin: options & option::BUILTIN != 0,
            stdin: options & option::STDIN != 0,
            pty: (options & option::PTY != 0).then_some(size),
            timeout: (options & option::TIMEOUT != 0).then(|| Duration::from_micros(timeout)),
            limits,
        })
    }
}

/// Checks names and values, and their number.
pub(super) fn check_variables(variables: &[(Vec<u8>, Vec<u8>)]) -> Result<(), SpawnError> {
    check_count("environment variables", variables.len())?;
    for (name, value) in variables {
        if name.is_empty() || name.contains(&b'=') {
            return Err(SpawnError::VariableName {
                name: shorten(name),
            });
        }
        let length = name.len().saturating_add(value.len()).saturating_add(1);
        if length > MAX_ARGUMENT {
            return Err(SpawnError::VariableTooLong {
                name: shorten(name),
                length,
            });
        }
        let what = || format!("the environment variable {}", shorten(name));
        check_zero(name, what)?;
        check_zero(value, what)?;
    }
    Ok(())
}

fn check_count(what: &'static str, count: usize) -> Result<(), SpawnError> {
    if count > MAX_STRINGS {
        return Err(SpawnError::TooMany { what, count });
    }
    Ok(())
}

fn check_zero(bytes: &[u8], what: impl FnOnce() -> String) -> Result<(), SpawnError> {
    if bytes.contains(&0) {
        return Err(SpawnError::ZeroByte { what: what() });
    }
    Ok(())
}

pub(super) fn read_count(reader: &mut Reader<'_>, field: &'static str) -> Result<usize, Malformed> {
    let count = reader.u32(field)? as usize;
    if count > MAX_STRINGS {
        return Err(reader.out_of_range(field, count as u64));
    }
    Ok(count)
}

/// A duration as the wire has it; 584,000 years are forever.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
