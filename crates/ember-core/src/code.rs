//! Programs to run: source text in a language that the image knows.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ember_guest::host::{Command, Stdin, WarmCommand};

use crate::error::{Error, ErrorKind};
use crate::language::{Account, Language};

/// A program: its text, its language, and what it is given.
///
/// It runs in the image's account for programs (the packs have `user`, who is not root), in that
/// account's home, with no standard input, unless something else is said.
#[derive(Debug, Clone)]
pub struct Code {
    source: Source,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    user: Option<OsString>,
    directory: Option<OsString>,
    stdin: Input,
    timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
enum Source {
    Text {
        language: String,
        text: String,
    },
    File {
        path: PathBuf,
        language: Option<String>,
    },
}

#[derive(Debug, Clone, Default)]
enum Input {
    #[default]
    Null,
    Piped,
    Bytes(Vec<u8>),
}

/// What the interpreter can be handed as an argument: Linux takes 128 KiB with the zero byte at
/// the end (`MAX_ARG_STRLEN`).
const INLINE_MAX: usize = (128 << 10) - 1;
/// The largest file that is taken for a program.
const FILE_MAX: u64 = 64 << 20;

/// Code made ready for one guest: perhaps a file to put there, and what to run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// A file of the guest, to be written as the account's user before the command runs.
    pub(crate) file: Option<(String, Vec<u8>)>,
    pub(crate) command: Command,
    pub(crate) input: Vec<u8>,
    /// The same for a guest that keeps the language's interpreter warm.
    pub(crate) warm: Option<WarmProgram>,
}

/// Code for an interpreter that is kept warm.
#[derive(Debug, Clone)]
pub(crate) struct WarmProgram {
    /// The language, which is also the runner's name.
    pub(crate) language: String,
    pub(crate) command: WarmCommand,
    /// The text, if it is nothing but that: what a template's warm-up leaves in the interpreter.
    pub(crate) setup: Option<String>,
    pub(crate) timeout: Option<Duration>,
}

impl Code {
    /// A Python program.
    pub fn python(text: impl Into<String>) -> Self {
        Self::new("python", text)
    }

    /// A program in `language`, one of those that the image has.
    pub fn new(language: impl Into<String>, text: impl Into<String>) -> Self {
        Self::from_source(Source::Text {
            language: language.into(),
            text: text.into(),
        })
    }

    /// The program in the host's file `path`, whose extension tells the language. It is copied
    /// into the guest, to the home of who runs it, under its own name.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::from_source(Source::File {
            path: path.into(),
            language: None,
        })
    }

    fn from_source(source: Source) -> Self {
        Self {
            source,
            arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
            directory: None,
            stdin: Input::Null,
            timeout: None,
        }
    }

    /// States the language of a file whose name does not tell it.
    #[must_use]
    pub fn language(mut self, name: impl Into<String>) -> Self {
        match &mut self.source {
            Source::Text { language, .. } => *language = name.into(),
            Source::File { language, .. } => *language = Some(name.into()),
        }
        self
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs it as this user of the guest: `name`, `uid`, `name:group` or `uid:gid`.
    #[must_use]
    pub fn user(mut self, user: impl Into<OsString>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Starts it in this directory of the guest.
    #[must_use]
    pub fn current_dir(mut self, directory: impl Into<OsString>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Gives it these bytes as its standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Feeds its standard input through [`Process::take_stdin`](crate::Process::take_stdin).
    #[must_use]
    pub fn piped_stdin(mut self) -> Self {
        self.stdin = Input::Piped;
        self
    }

    /// Ends it, and everything it has started, after this long.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// What it is, for people: its language and text, or its file.
    pub(crate) fn summary(&self) -> String {
        match &self.source {
            Source::Text { language, text } => format!("{language}: {text}"),
            Source::File { path, .. } => path.display().to_string(),
        }
    }

    /// The one of `languages` that it is in.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`], with the languages that there are.
    pub fn find_language<'a>(&self, languages: &'a [Language]) -> Result<&'a Language, Error> {
        let by_name = |wanted: &str| languages.iter().find(|language| language.name == wanted);
        let (found, problem) = match &self.source {
            Source::Text { language, .. }
            | Source::File {
                language: Some(language),
                ..
            } => (
                by_name(language),
                format!("there is no language {language:?} in this image"),
            ),
            Source::File { path, .. } => {
                let extension = path.extension().and_then(|extension| extension.to_str());
                let found = languages.iter().find(|language| {
                    extension.is_some_and(|e| language.extensions.iter().any(|known| known == e))
                });
                let name = path.display();
                (
                    found,
                    format!("the name of {name} does not tell a language of this image"),
                )
            }
        };
        found.ok_or_else(|| {
            let known: Vec<String> = languages
                .iter()
                .map(|language| {
                    let extensions: Vec<String> = language
                        .extensions
                        .iter()
                        .map(|e| format!(".{e}"))
                        .collect();
                    format!("{} ({})", language.name, extensions.join(", "))
                })
                .collect();
            let known = if known.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has: {}", known.join("; "))
            };
            Error::new(ErrorKind::InvalidRequest, format!("{problem}; {known}"))
        })
    }

    /// Reads the program, if it is in a file, and says how to run it. Blocks while it reads.
    pub(crate) fn prepare(
        self,
        languages: &[Language],
        account: &Account,
        unique: u64,
    ) -> Result<Program, Error> {
        let language = self.find_language(languages)?.clone();
        let is_plain = self.arguments.is_empty()
            && self.environment.is_empty()
            && self.user.is_none()
            && self.directory.is_none()
            && matches!(self.stdin, Input::Null);
        let mut command = Command::from_argv(&language.interpreter);
        let mut warm;
        let mut setup = None;
        let mut file = None;
        match self.source {
            Source::Text { text, .. } if text.len() <= INLINE_MAX && !text.contains('\0') => {
                warm = WarmCommand::code(text.clone());
                setup = is_plain.then(|| text.clone());
                command = command.arg(language.inline).arg(text);
            }
            Source::Text { text, .. } => {
                let extension = language.extensions.first().map_or("txt", String::as_str);
                let path = format!("/tmp/program-{unique}.{extension}");
                command = command.arg(&path);
                warm = WarmCommand::file(&path);
                file = Some((path, text.into_bytes()));
            }
            Source::File { path, .. } => {
                let bytes = read(&path).map_err(|error| {
                    let message = format!("cannot read the program {}", path.display());
                    Error::because(ErrorKind::InvalidRequest, message, error)
                })?;
                let name = path.file_name().and_then(|name| name.to_str());
                let inside = match name {
                    Some(name) => format!("{}/{name}", account.home),
                    None => format!("{}/program-{unique}", account.home),
                };
                command = command.arg(&inside);
                warm = WarmCommand::file(&inside);
                file = Some((inside, bytes));
            }
        }
        // A runner's programs run as who the runner is.
        let is_accounts = self.user.is_none();
        let directory = self
            .directory
            .unwrap_or_else(|| account.home.clone().into());
        warm = warm.args(self.arguments.clone()).current_dir(&directory);
        command = command
            .args(self.arguments)
            .user(self.user.unwrap_or_else(|| account.user.clone().into()))
            .current_dir(directory);
        for (name, value) in self.environment {
            warm = warm.env(&name, &value);
            command = command.env(name, value);
        }
        if let Some(timeout) = self.timeout {
            command = command.timeout(timeout);
        }
        let input = match self.stdin {
            Input::Null => Vec::new(),
            Input::Piped => {
                command = command.stdin(Stdin::Piped);
                warm = warm.stdin(Stdin::Piped);
                Vec::new()
            }
            Input::Bytes(bytes) => {
                command = command.stdin(Stdin::Piped);
                warm = warm.stdin(Stdin::Piped);
                bytes
            }
        };
        let is_warmable = is_accounts && !language.runner.is_empty();
        let warm = is_warmable.then_some(WarmProgram {
            language: language.name,
            command: warm,
            setup,
            timeout: self.timeout,
        });
        Ok(Program {
            file,
            command,
            input,
            warm,
        })
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("a program is at most {} MiB", FILE_MAX >> 20),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
