//! Code made ready for one guest.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use ember_guest::host::{Command, Stdin, WarmCommand};

use super::{Code, Input, Source};
use crate::compile::Build;
use crate::error::{Error, ErrorKind};
use crate::files::Wanted;
use crate::language::{Account, Compiler, Language};

/// What the interpreter can be handed as an argument: Linux takes 128 KiB with the zero byte at
/// the end (`MAX_ARG_STRLEN`).
pub(super) const INLINE_MAX: usize = (128 << 10) - 1;
/// The largest file that is taken for a program.
const FILE_MAX: u64 = 64 << 20;
/// The longest part of a path that Linux takes (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// Where compiled programs are kept, in the home of the account that programs run in.
const COMPILED: &str = ".ember";

/// Code made ready for one guest: perhaps files to put there and a program to compile, and what to
/// run.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Files of the guest, by their absolute paths, to be written as the account's user before the
    /// command runs.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// What has to be compiled first.
    pub(crate) build: Option<Build>,
    pub(crate) command: Command,
    pub(crate) input: Vec<u8>,
    /// The same for a guest that keeps the language's interpreter warm.
    pub(crate) warm: Option<WarmProgram>,
    /// What is to be collected after its end.
    pub(crate) artifacts: Option<Wanted>,
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

impl Program {
    /// Ends it if it writes more than this, unless it says something else about that.
    pub(crate) fn output_at_most(mut self, bytes: usize) -> Self {
        self.command = self.command.output_at_most(bytes as u64);
        self.warm = self.warm.map(|warm| WarmProgram {
            command: warm.command.output_at_most(bytes as u64),
            ..warm
        });
        self
    }
}

impl From<Command> for Program {
    fn from(command: Command) -> Self {
        Self {
            files: Vec::new(),
            build: None,
            command,
            input: Vec::new(),
            warm: None,
            artifacts: None,
        }
    }
}

/// The program itself, as the interpreter is given it.
enum Main {
    Inline(String, String),
    File(String),
}

impl Code {
    /// Reads the program, if it is in a file, and says how to run it. Blocks while it reads.
    pub(crate) fn prepare(
        self,
        languages: &[Language],
        account: &Account,
        unique: u64,
    ) -> Result<Program, Error> {
        let language = self.find_language(languages)?;
        let is_plain = self.arguments.is_empty()
            && self.environment.is_empty()
            && self.user.is_none()
            && self.directory.is_none()
            && self.files.is_empty()
            && matches!(self.stdin, Input::Null);
        for (path, _) in &self.files {
            check_path(path)?;
        }
        let home = |name: &str| format!("{}/{name}", account.home);
        let beside = self.files.iter();
        let beside = beside.map(|(path, contents)| (home(path), contents.clone()));
        let mut files: Vec<_> = beside.collect();

        let mut build = None;
        let (main, interpreter) = if let Some(compiler) = &language.compile {
            let (name, contents) = named(self.source, language)?;
            let mut sources = vec![(name, contents)];
            sources.extend(self.files);
            check_names(&sources)?;
            let made = Build::new(language, compiler, sources, account, unique);
            let made = Build {
                timeout: self.compile_timeout,
                ..made
            };
            let path = format!("{}/{}", made.place, compiler.output);
            build = Some(made);
            let into = compiler.into.as_ref();
            let into = into.and_then(|into| languages.iter().find(|it| it.name == *into));
            (Main::File(path), into.unwrap_or(language))
        } else {
            let main = match self.source {
                Source::Text { text, .. }
                    if let Some(inline) = &language.inline
                        && files.is_empty()
                        && text.len() <= INLINE_MAX
                        && !text.contains('\0') =>
                {
                    Main::Inline(inline.clone(), text)
                }
                Source::Text { text, .. } if files.is_empty() => {
                    let path = format!("/tmp/program-{unique}.{}", extension(language));
                    files.push((path.clone(), text.into_bytes()));
                    Main::File(path)
                }
                source => {
                    let (name, contents) = named(source, language)?;
                    let path = home(&name);
                    files.push((path.clone(), contents));
                    check_names(&files)?;
                    Main::File(path)
                }
            };
            (main, language)
        };

        let mut command = Command::from_argv(&interpreter.interpreter);
        let (mut warm, setup) = match main {
            Main::Inline(option, text) => {
                command = command.arg(option).arg(&text);
                (WarmCommand::code(text.clone()), is_plain.then_some(text))
            }
            Main::File(path) => {
                command = match interpreter.interpreter.is_empty() {
                    true => Command::new(&path),
                    false => command.arg(&path),
                };
                (WarmCommand::file(&path), None)
            }
        };
        // A runner's programs run as who the runner is.
        let is_accounts = self.user.is_none();
        let directory = self
            .directory
            .unwrap_or_else(|| account.home.clone().into());
        let (place, who) = (directory.clone(), self.user.clone());
        warm = warm.args(self.arguments.clone()).current_dir(&directory);
        command = command
            .args(self.arguments)
            .user(self.user.unwrap_or_else(|| account.user.clone().into()))
            .current_dir(directory);
        for (name, value) in self.environment {
            warm = warm.env(&name, &value);
            command = command.env(name, value);
        }
        command = command.limits(self.limits).confined();
        warm = warm.limits(self.limits).confined();
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
        let artifacts = (!self.artifacts.is_empty()).then(|| Wanted {
            patterns: self.artifacts,
            // As the guest's agent takes it.
            directory: Path::new("/").join(place),
            user: who,
            bytes: self.artifact_bytes,
        });
        let is_warmable = is_accounts && !interpreter.runner.is_empty();
        let warm = is_warmable.then(|| WarmProgram {
            language: interpreter.name.clone(),
            command: warm,
            setup,
            timeout: self.timeout,
        });
        Ok(Program {
            files,
            build,
            command,
            input,
            warm,
            artifacts,
        })
    }
}

impl Build {
    /// `files`, the first of which is the program's own, to be compiled by `compiler`.
    fn new(
        language: &Language,
        compiler: &Compiler,
        files: Vec<(String, Vec<u8>)>,
        account: &Account,
        unique: u64,
    ) -> Self {
        let mut hash = blake3::Hasher::new();
        let mut add = |part: &[u8]| {
            // With its length, so that nothing can pass from one to the next.
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        for word in std::iter::once(&language.name).chain(&compiler.command) {
            add(word.as_bytes());
        }
        for (path, contents) in &files {
            add(path.as_bytes());
            add(contents);
        }
        let digest = hash.finalize().to_hex();
        let digest = digest.get(..32).unwrap_or(&digest);
        let place = format!("{}/{COMPILED}/{digest}", account.home);
        let scratch = format!("{place}.{unique}");

        // What begins like an option is none.
        let plain = |path: &str| match path.starts_with('-') {
            true => format!("./{path}"),
            false => path.to_owned(),
        };
        let is_source = |path: &&str| {
            let extension = path.rsplit_once('.').map(|(_, extension)| extension);
            extension.is_some_and(|it| language.has_extension(it))
        };
        let paths = || files.iter().map(|(path, _)| path.as_str());
        let main = paths().next().map(plain).unwrap_or_default();
        let others = paths().skip(1).filter(is_source).map(plain);
        let others: Vec<String> = others.collect();
        let output = format!("{scratch}/{}", compiler.output);
        let mut argv = Vec::new();
        for word in &compiler.command {
            if word == "{sources}" {
                argv.push(main.clone());
                argv.extend(others.iter().cloned());
            } else {
                let word = word.replace("{source}", &main);
                argv.push(word.replace("{output}", &output));
            }
        }
        Self {
            place,
            scratch,
            argv,
            files,
            user: account.user.clone(),
            timeout: Duration::ZERO,
        }
    }
}

fn extension(language: &Language) -> &str {
    language.extensions.first().map_or("txt", String::as_str)
}

/// The program as a file with a name, to be beside its other files.
fn named(source: Source, language: &Language) -> Result<(String, Vec<u8>), Error> {
    let main = || format!("main.{}", extension(language));
    match source {
        Source::Text { text, .. } => Ok((main(), text.into_bytes())),
        Source::File { path, .. } => {
            let bytes = read(&path).map_err(|error| {
                let message = format!("cannot read the program {}", path.display());
                Error::because(ErrorKind::InvalidRequest, message, error)
            })?;
            let name = path.file_name().and_then(|name| name.to_str());
            Ok((name.map_or_else(main, str::to_owned), bytes))
        }
    }
}

/// Refuses what leads elsewhere, and what no file of Linux can be called.
fn check_path(path: &str) -> Result<(), Error> {
    let is_plain = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= NAME_MAX && !part.contains('\0')
    };
    if path.split('/').all(is_plain) && path.len() < 4096 {
        return Ok(());
    }
    let message = format!(
        "{path:?} cannot be a file of a program: its path is relative to the program, without `.` \
         and `..`"
    );
    Err(Error::new(ErrorKind::InvalidRequest, message))
}

/// Refuses two files of one name.
fn check_names(files: &[(String, Vec<u8>)]) -> Result<(), Error> {
    let mut names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair.first() == pair.last()) {
        None => Ok(()),
        Some(pair) => {
            let message = format!("a program has two files {:?}", pair.first());
            Err(Error::new(ErrorKind::InvalidRequest, message))
        }
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
