//! What a session is to be.

use std::ffi::OsString;
use std::time::Duration;

use ember_guest::protocol::Limits;

/// How long an interpreter may take until it can be used.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an interrupted cell may take to end.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is kept of a cell's values and displays, together.
const DATA_BYTES: usize = 16 << 20;

/// What a session is to be, for [`Sandbox::session`](crate::Sandbox::session).
#[derive(Debug, Clone)]
#[must_use]
pub struct SessionOptions {
    pub(super) language: String,
    pub(super) name: Option<String>,
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) directory: Option<OsString>,
    pub(super) limits: Limits,
    pub(super) timing: Timing,
    pub(super) output: Option<usize>,
    pub(super) data: usize,
}

/// What a session and its continuation in a clone have in common of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) cell: Option<Duration>,
    pub(super) patience: Duration,
    pub(super) start: Duration,
    pub(super) idle: Option<Duration>,
    pub(super) time_to_live: Option<Duration>,
    pub(super) max_age: Option<Duration>,
}

impl SessionOptions {
    /// A session in `language`, one of those of the image that have a driver.
    pub fn new(language: impl Into<String>) -> Self {
        Self {
            language: language.into(),
            name: None,
            environment: Vec::new(),
            directory: None,
            limits: Limits::default(),
            timing: Timing {
                cell: None,
                patience: PATIENCE,
                start: START_TIMEOUT,
                idle: None,
                time_to_live: None,
                max_age: None,
            },
            output: None,
            data: DATA_BYTES,
        }
    }

    /// A Python session.
    pub fn python() -> Self {
        Self::new("python")
    }

    /// What it is called in messages. Its language's name, if nothing is said. Any number of sessions
    /// can be in one sandbox, each with an interpreter of its own.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets a variable of the interpreter's environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the interpreter in this directory of the guest, in place of the account's home.
    pub fn current_dir(mut self, directory: impl Into<OsString>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What the interpreter may use, with all that it starts and for as long as it lives: processor
    /// time and output are those of all cells together. One that hits a limit is ended, and its
    /// session with it.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How long a cell may take, if it does not say so itself; then it is interrupted. If not said, as
    /// long as the sandbox's programs may.
    pub fn cell_timeout(mut self, timeout: Duration) -> Self {
        self.timing.cell = Some(timeout);
        self
    }

    /// How long a cell may go on after its time was up and it was interrupted: two seconds if not
    /// said. Halfway it is interrupted once more. One that does not listen has its interpreter ended,
    /// and the session with it.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.timing.patience = patience;
        self
    }

    /// How long the interpreter may take to start: a minute if not said.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.timing.start = timeout;
        self
    }

    /// Ends the session when no cell has run for so long, nor
    /// [`keep_alive`](super::Session::keep_alive) been called.
    pub fn idle(mut self, limit: Duration) -> Self {
        self.timing.idle = Some(limit);
        self
    }

    /// Ends the session after so long, whatever it does, unless
    /// [`keep_alive`](super::Session::keep_alive) gives it as much again.
    pub fn time_to_live(mut self, limit: Duration) -> Self {
        self.timing.time_to_live = Some(limit);
        self
    }

    /// Ends the session after so long. Nothing makes it longer.
    pub fn max_age(mut self, limit: Duration) -> Self {
        self.timing.max_age = Some(limit);
        self
    }

    /// How much is kept of what a cell writes to each of its streams: what the sandbox keeps of a
    /// program's, if not said. More is dropped, and the cell goes on.
    pub fn output_at_most(mut self, bytes: usize) -> Self {
        self.output = Some(bytes);
        self
    }

    /// How much is kept of a cell's values and displays: 16 MiB if not said.
    pub fn data_at_most(mut self, bytes: usize) -> Self {
        self.data = bytes;
        self
    }
}
