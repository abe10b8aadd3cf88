//! Programs to run: source text in a language that the image knows.

mod program;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ember_guest::protocol::Limits;

use crate::error::{Error, ErrorKind};
use crate::language::Language;
pub(crate) use program::{Program, WarmProgram};

/// A program: its text, its language, and what it is given.
///
/// It is kept from everything else in the guest ([`Command::confined`](crate::Command::confined)).
///
/// It runs in the image's account for programs (the packs have `user`, who is not root), in that
/// account's home, with no standard input, unless something else is said.
#[derive(Debug, Clone)]
pub struct Code {
    source: Source,
    /// The program's other files, by their paths beside it.
    files: Vec<(String, Vec<u8>)>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    user: Option<OsString>,
    directory: Option<OsString>,
    stdin: Input,
    timeout: Option<Duration>,
    limits: Limits,
    compile_timeout: Duration,
    artifacts: Vec<Vec<u8>>,
    artifact_bytes: u64,
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

/// How long a compiler may take if nothing is said: far longer than one does that ends.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(120);

/// How much is collected if nothing is said.
const ARTIFACT_BYTES: u64 = 16 << 20;

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
            files: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
            directory: None,
            stdin: Input::Null,
            timeout: None,
            limits: Limits::default(),
            compile_timeout: COMPILE_TIMEOUT,
            artifacts: Vec::new(),
            artifact_bytes: ARTIFACT_BYTES,
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

    /// Gives it another file: a module, a header, data. `path` is relative to where the program is,
    /// and to where it starts if nothing else is said: the account's home. A program that is given
    /// as text is in a file there as well then, `main` with its language's extension.
    ///
    /// What is compiled is compiled in a directory that has these files and nothing else.
    #[must_use]
    pub fn with_file(mut self, path: impl Into<String>, contents: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), contents.into()));
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

    /// What it may use. Where this says nothing, it may have 512 processes and threads, what is left
    /// of the guest's memory, and where its output is collected, as much output as is kept. Its
    /// compiler is not bound by that.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Ends the compiler after this long, if there is one: two minutes if not said. What the program
    /// may take is not touched by that.
    #[must_use]
    pub fn compile_timeout(mut self, timeout: Duration) -> Self {
        self.compile_timeout = timeout;
        self
    }

    /// Collects files after it has ended, whichever way it did: [`Output::artifacts`] has them. A
    /// path, relative to where the program starts or absolute, in which `*`, `?` and `[..]` are as
    /// in a shell, and `**` is any number of directories; a directory comes with all that is in it.
    /// Can be said several times.
    ///
    /// What is not there is no error, but [told](crate::Artifacts::left_out). Of a program that is
    /// [started](crate::Sandbox::start) nothing is collected by itself:
    /// [`Files::collect`](crate::Files::collect) can be asked.
    ///
    /// ```no_run
    /// # async fn example(sandbox: ember_core::Sandbox) -> Result<(), ember_core::Error> {
    /// # use ember_core::Code;
    /// let code = Code::python("open('sum.txt', 'w').write(str(6 * 7)); 1 / 0");
    /// let out = sandbox.run(code.artifact("*.txt")).await?;
    /// let artifacts = out.artifacts.unwrap_or_default();
    /// assert_eq!(artifacts.read("sum.txt")?.as_deref(), Some(&b"42"[..]));
    /// artifacts.unpack("results").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`Output::artifacts`]: crate::Output::artifacts
    #[must_use]
    pub fn artifact(mut self, pattern: impl AsRef<Path>) -> Self {
        self.artifacts
            .push(pattern.as_ref().as_os_str().as_bytes().to_vec());
        self
    }

    /// The most bytes of [artifacts](Self::artifact), as an archive: 16 MiB if not said. Files that
    /// do not fit are left out.
    #[must_use]
    pub fn artifacts_at_most(mut self, bytes: u64) -> Self {
        self.artifact_bytes = bytes;
        self
    }

    /// What it is, for people: its language and text, or its file.
    pub(crate) fn summary(&self) -> String {
        match &self.source {
            Source::Text { language, text } => format!("{language}: {text}"),
            Source::File { path, .. } => path.display().to_string(),
        }
    }

    /// The one of `languages` that it is in: by its name, which may have as much of a version as
    /// matters (`python3.11`), or by its file's extension.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`], with the languages that there are.
    pub fn find_language<'a>(&self, languages: &'a [Language]) -> Result<&'a Language, Error> {
        let mut languages_of = languages.iter();
        let (found, problem) = match self.hint() {
            Hint::Name(name) => (
                languages_of.find(|language| language.answers_to(name)),
                format!("there is no language {name:?} in this image"),
            ),
            Hint::Extension(extension, path) => (
                languages_of.find(|language| language.has_extension(extension)),
                format!(
                    "the name of {} does not tell a language of this image",
                    path.display()
                ),
            ),
        };
        found.ok_or_else(|| {
            let known: Vec<String> = languages.iter().map(Language::summary).collect();
            let known = if known.is_empty() {
                "it has none".to_owned()
            } else {
                format!("it has: {}", known.join("; "))
            };
            Error::new(ErrorKind::InvalidRequest, format!("{problem}; {known}"))
        })
    }

    /// Whether one of `languages` is its, or may be when its version is known.
    pub(crate) fn may_be_in(&self, languages: &[Language]) -> bool {
        languages.iter().any(|language| match self.hint() {
            Hint::Name(name) => language.answers_to(name) || language.may_answer_to(name),
            Hint::Extension(extension, _) => language.has_extension(extension),
        })
    }

    /// What tells its language.
    fn hint(&self) -> Hint<'_> {
        match &self.source {
            Source::Text { language, .. }
            | Source::File {
                language: Some(language),
                ..
            } => Hint::Name(language),
            Source::File { path, .. } => {
                let extension = path.extension().and_then(|extension| extension.to_str());
                Hint::Extension(extension.unwrap_or_default(), path)
            }
        }
    }
}

/// What tells a program's language.
enum Hint<'a> {
    Name(&'a str),
    Extension(&'a str, &'a Path),
}

#[cfg(test)]
mod tests;
