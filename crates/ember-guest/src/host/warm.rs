//! Runners: interpreters of a guest that are warm, and programs for them.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::{Command, Stdin};
use crate::protocol::{INLINE, Limits, PtySize, Warm};

/// Names a runner of a guest, and of every clone of that guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunnerId(String);

impl RunnerId {
    /// The runner of this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunnerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A runner to start, for [`Agent::warm`](super::Agent::warm).
#[derive(Clone, Debug)]
pub struct WarmRunner {
    name: String,
    setup: Vec<u8>,
    command: Command,
}

impl WarmRunner {
    /// Starts the runner `argv` of the guest, under this name.
    pub fn new<S: Into<OsString>>(
        name: impl Into<String>,
        argv: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            name: name.into(),
            setup: Vec::new(),
            command: Command::from_argv(argv),
        }
    }

    /// Code to run in it before anything else, in its language: what it imports is there for every
    /// program.
    #[must_use]
    pub fn setup(mut self, code: impl Into<Vec<u8>>) -> Self {
        self.setup = code.into();
        self
    }

    /// The user of the guest as which it runs, and all its programs: `name`, `uid`, `name:group`
    /// or `uid:gid`. Root if none is said.
    #[must_use]
    pub fn user(mut self, user: impl Into<OsString>) -> Self {
        self.command = self.command.user(user);
        self
    }

    /// Sets an environment variable of the runner. Programs get their own.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.command = self.command.env(name, value);
        self
    }

    /// Keeps its programs from everything else in the guest, as [`Command::confined`]. The runner
    /// has to help with that, as Ember's own do.
    #[must_use]
    pub fn confined(mut self) -> Self {
        self.command = self.command.confined();
        self
    }

    /// Starts the runner in this directory of the guest.
    #[must_use]
    pub fn current_dir(mut self, directory: impl Into<OsString>) -> Self {
        self.command = self.command.current_dir(directory);
        self
    }

    pub(super) fn id(&self) -> RunnerId {
        RunnerId(self.name.clone())
    }

    pub(super) fn into_wire(self) -> Warm {
        Warm {
            runner: self.name,
            code: self.setup,
            command: self.command.into_spawn(),
        }
    }
}

/// A program for a warm runner, for [`Agent::run_warm`](super::Agent::run_warm).
///
/// It runs in a fresh process, with the same streams, environment, limits and outcome as a
/// [`Command`], and ends as the language's own interpreter would.
#[derive(Clone, Debug)]
pub struct WarmCommand {
    code: Vec<u8>,
    command: Command,
}

impl WarmCommand {
    /// Runs this code, as the interpreter does with `-c`.
    pub fn code(code: impl Into<Vec<u8>>) -> Self {
        Self {
            code: code.into(),
            command: Command::new(OsString::from_vec(INLINE.to_vec())),
        }
    }

    /// Runs this file of the guest.
    pub fn file(path: impl Into<OsString>) -> Self {
        Self {
            code: Vec::new(),
            command: Command::new(path),
        }
    }

    fn with(mut self, change: impl FnOnce(Command) -> Command) -> Self {
        self.command = change(self.command);
        self
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(self, argument: impl Into<OsString>) -> Self {
        self.with(|command| command.arg(argument))
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.with(|command| command.args(arguments))
    }

    /// See [`Command::env`].
    #[must_use]
    pub fn env(self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.with(|command| command.env(name, value))
    }

    /// See [`Command::env_clear`].
    #[must_use]
    pub fn env_clear(self) -> Self {
        self.with(Command::env_clear)
    }

    /// See [`Command::current_dir`].
    #[must_use]
    pub fn current_dir(self, directory: impl Into<OsString>) -> Self {
        self.with(|command| command.current_dir(directory))
    }

    /// See [`Command::stdin`].
    #[must_use]
    pub fn stdin(self, stdin: Stdin) -> Self {
        self.with(|command| command.stdin(stdin))
    }

    /// See [`Command::pty`].
    #[must_use]
    pub fn pty(self, size: PtySize) -> Self {
        self.with(|command| command.pty(size))
    }

    /// See [`Command::timeout`].
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|command| command.timeout(timeout))
    }

    /// See [`Command::confined`]. The runner has to confine its programs
    /// ([`WarmRunner::confined`]).
    #[must_use]
    pub fn confined(self) -> Self {
        self.with(Command::confined)
    }

    /// See [`Command::limits`].
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        self.with(|command| command.limits(limits))
    }

    /// See [`Command::output_at_most`].
    #[must_use]
    pub fn output_at_most(self, bytes: u64) -> Self {
        self.with(|command| command.output_at_most(bytes))
    }

    pub(super) fn into_wire(self, runner: &RunnerId) -> Warm {
        Warm {
            runner: runner.0.clone(),
            code: self.code,
            command: self.command.into_spawn(),
        }
    }
}
