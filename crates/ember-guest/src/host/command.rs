//! What to run in the guest.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use crate::protocol::{
    EncodeError, FileRequest, JSON_PROGRAM, Limits, Message, PtySize, SESSION_PROGRAM, SessionRole,
    Spawn,
};

/// Where a command's standard input comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stdin {
    /// From nowhere: the first read is at the end.
    #[default]
    Null,
    /// From the host, through [`Process::take_stdin`](super::Process::take_stdin).
    Piped,
}

/// A command for [`Agent::spawn`](super::Agent::spawn).
///
/// By default it runs as root in `/`, with the agent's small environment (`PATH`, `HOME`, `USER`,
/// `LOGNAME`, and `TERM` on a terminal), no standard input, no timeout and the guest's own limits.
#[derive(Clone, Debug)]
pub struct Command {
    spawn: Spawn,
}

impl Command {
    /// Runs `program`, a path or a name to find in the command's `PATH`.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self::from_argv([program])
    }

    /// Runs a program with arguments, the program first.
    pub fn from_argv<S: Into<OsString>>(argv: impl IntoIterator<Item = S>) -> Self {
        let argv = argv
            .into_iter()
            .map(|argument| argument.into().into_vec())
            .collect();
        Self {
            spawn: Spawn {
                argv,
                ..Spawn::default()
            },
        }
    }

    /// Does one thing with files, by the agent's own program. What it reads and writes are the
    /// command's streams; its directory is where relative paths begin. As any command, it runs as
    /// root unless a user is named.
    pub fn files(request: &FileRequest) -> Self {
        Self {
            spawn: Spawn {
                argv: request.arguments(),
                builtin: true,
                stdin: request.has_input(),
                ..Spawn::default()
            },
        }
    }

    /// Keeps an interpreter for a session, or reaches one that is kept, by the agent's own program.
    pub fn session(role: &SessionRole) -> Self {
        Self {
            spawn: Spawn {
                argv: role.arguments(),
                builtin: true,
                stdin: true,
                ..Spawn::default()
            },
        }
    }

    /// Serves the JSON protocol by the agent's own program, which `config` tells how programs of
    /// each language are run (`docs/protocol.md`).
    pub fn json(config: &str) -> Self {
        Self {
            spawn: Spawn {
                argv: vec![JSON_PROGRAM.to_vec(), b"serve".to_vec(), config.into()],
                builtin: true,
                ..Spawn::default()
            },
        }
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.spawn.argv.push(argument.into().into_vec());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.spawn.argv.extend(
            arguments
                .into_iter()
                .map(|argument| argument.into().into_vec()),
        );
        self
    }

    /// Sets an environment variable. The last setting of a name counts.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.spawn
            .env
            .push((name.into().into_vec(), value.into().into_vec()));
        self
    }

    /// Starts from an empty environment in place of the agent's.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.spawn.clear_env = true;
        self
    }

    /// Starts in this directory of the guest.
    #[must_use]
    pub fn current_dir(mut self, directory: impl Into<OsString>) -> Self {
        self.spawn.cwd = directory.into().into_vec();
        self
    }

    /// Runs as this user of the guest: `name`, `uid`, `name:group` or `uid:gid`.
    #[must_use]
    pub fn user(mut self, user: impl Into<OsString>) -> Self {
        self.spawn.user = user.into().into_vec();
        self
    }

    /// Where standard input comes from. A terminal is always fed by the host.
    #[must_use]
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.spawn.stdin = stdin == Stdin::Piped;
        self
    }

    /// Gives the command a terminal of its own. Its output all comes as standard output, and the
    /// end of standard input is typed as an end-of-file character (Ctrl-D).
    #[must_use]
    pub fn pty(mut self, size: PtySize) -> Self {
        self.spawn.pty = Some(size);
        self
    }

    /// Ends the command, and everything it has started, after this long. It holds for what the
    /// command leaves behind as well: a server that a command started in the background is ended
    /// by that command's timeout.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spawn.timeout = Some(timeout);
        self
    }

    /// Keeps the command from everything else in the guest: it sees no other processes, has no
    /// capabilities, whoever it runs as, and cannot make system calls that could hurt others.
    /// Whatever it has started is ended with it.
    #[must_use]
    pub fn confined(mut self) -> Self {
        self.spawn.confined = true;
        self
    }

    /// What the command may use.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.spawn.limits = limits;
        self
    }

    /// Ends the command if it writes more than this to its outputs, unless its limits say something
    /// else about that.
    #[must_use]
    pub fn output_at_most(mut self, bytes: u64) -> Self {
        self.spawn.limits.output.get_or_insert(bytes);
        self
    }

    /// What holds where the command does not say: who it runs as, where it starts, and variables of
    /// its environment. Of the agent's own programs, nothing does.
    #[must_use]
    pub fn or_as(
        mut self,
        user: Option<&str>,
        directory: Option<&str>,
        environment: &[(String, String)],
    ) -> Self {
        let spawn = &mut self.spawn;
        if spawn.builtin {
            return self;
        }
        if spawn.user.is_empty() {
            spawn.user = user.unwrap_or_default().into();
        }
        if spawn.cwd.is_empty() {
            spawn.cwd = directory.unwrap_or_default().into();
        }
        if !spawn.clear_env {
            let given = std::mem::take(&mut spawn.env);
            let is_given = |name: &str| given.iter().any(|(it, _)| it == name.as_bytes());
            let more = environment.iter().filter(|(name, _)| !is_given(name));
            spawn.env = more
                .map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes()))
                .collect();
            spawn.env.extend(given);
        }
        self
    }

    /// How long the command may take, if that was said.
    pub fn time_limit(&self) -> Option<Duration> {
        self.spawn.timeout
    }

    /// The program and its arguments.
    pub fn argv(&self) -> impl Iterator<Item = &OsStr> {
        self.spawn
            .argv
            .iter()
            .map(|argument| OsStr::from_bytes(argument))
    }

    /// Everything about it as bytes: the same for the same command, and others for another.
    ///
    /// # Errors
    /// If it is none that could be started: too long, or with a zero byte in a string.
    pub fn encoded(&self) -> Result<Vec<u8>, EncodeError> {
        let mut bytes = Vec::new();
        Message::Spawn(Cow::Borrowed(&self.spawn)).encode(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether it takes a program that the agent brings.
    pub(super) fn is_builtin(&self) -> bool {
        self.spawn.builtin
    }

    /// Whether that is the one for sessions.
    pub(super) fn is_session(&self) -> bool {
        let name = self.spawn.argv.first().map(Vec::as_slice);
        self.spawn.builtin && name == Some(SESSION_PROGRAM)
    }

    pub(super) fn into_spawn(self) -> Spawn {
        self.spawn
    }

    /// For messages: the program's name, shortened.
    pub(super) fn name(&self) -> String {
        let program = self.spawn.argv.first().map_or(&[][..], Vec::as_slice);
        String::from_utf8_lossy(program.get(..64).unwrap_or(program)).into_owned()
    }
}
