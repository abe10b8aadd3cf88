//! Compiling programs inside a guest, once for each content.
//!
//! A program is compiled in a directory that has its files and nothing else, by the account that
//! runs it, and what is made of it moves as a whole to a place that is named by everything that went
//! into it. There it is found when the same program is run again, in this guest or in a clone of it.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ember_guest::host::{Command, Stdin};
use ember_guest::protocol::{Outcome, Status};

use crate::error::{Error, ErrorKind};
use crate::output::Captured;
use crate::sandbox::Sandbox;

/// How a program was compiled before it ran, or that it was before.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Compilation {
    /// The same program was compiled before in this guest, or in one that it is a clone of: nothing
    /// was compiled now.
    pub cached: bool,
    /// What the compiler said. Of one that was cached, nothing.
    pub messages: Captured,
    /// How the compiler ended, and what it used. None if it was cached.
    pub outcome: Option<Outcome>,
}

impl Compilation {
    /// Whether there is a program now that can be run.
    pub fn success(&self) -> bool {
        self.outcome.as_ref().is_none_or(Outcome::success)
    }

    /// How long it took. None if it was cached.
    pub fn time(&self) -> Option<Duration> {
        self.outcome.as_ref().map(|outcome| outcome.wall)
    }

    fn cached() -> Self {
        Self {
            cached: true,
            messages: Captured::default(),
            outcome: None,
        }
    }
}

/// A program that is to be compiled.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    /// Where what is made of it is kept in the guest: named by all that goes into it.
    pub(crate) place: String,
    /// Where it is compiled. No other program's is there.
    pub(crate) scratch: String,
    /// The compiler and its arguments.
    pub(crate) argv: Vec<String>,
    /// The program's files, by their paths in [`sources`](Self::sources).
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// The account that it is compiled in.
    pub(crate) user: String,
    pub(crate) timeout: Duration,
}

impl Build {
    /// The directory of the files in the one where it is compiled, and where the compiler runs.
    pub(crate) const SOURCES: &str = "src";

    fn sources(&self) -> String {
        format!("{}/{}", self.scratch, Self::SOURCES)
    }
}

/// What was compiled in a guest, as far as its sandbox has seen.
#[derive(Debug, Default)]
pub(crate) struct Compiled(Mutex<HashSet<String>>);

impl Compiled {
    fn places(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is not there any more: a program can remove what its account owns.
    pub(crate) fn forget(&self, build: &Build) {
        self.places().remove(&build.place);
    }
}

/// Exits with [`FOUND`] if it is there, and else puts the files where they are compiled.
const UNPACK: &str = "test -e \"$1\" && exit 3; \
                      rm -rf \"$0\" && mkdir -p \"$0/src\" && tar -xf - -C \"$0/src\"";
const FOUND: Status = Status::Exited(3);
/// Puts what was made in its place, unless another run of the same was faster.
const KEEP: &str = "rm -rf \"$0/src\"; mv -T \"$0\" \"$1\" 2>/dev/null || \
                    { rm -rf \"$0\"; test -e \"$1\"; }";
/// How long the guest may take to store files.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

impl Sandbox {
    /// Compiles `build`, unless that was done before.
    pub(crate) async fn compile_program(&self, build: &Build) -> Result<Compilation, Error> {
        if self.compiled.places().contains(&build.place) {
            return Ok(Compilation::cached());
        }
        let compilation = self.compile_unknown(build).await?;
        if compilation.success() {
            self.compiled.places().insert(build.place.clone());
        }
        Ok(compilation)
    }

    async fn compile_unknown(&self, build: &Build) -> Result<Compilation, Error> {
        let shell = |script: &str| {
            Command::from_argv(["/bin/sh", "-c", script, &build.scratch, &build.place])
                .user(&build.user)
                .timeout(WRITE_TIMEOUT)
        };
        let archive = archive(&build.files)?;
        let unpack = shell(UNPACK).stdin(Stdin::Piped);
        let unpacked = self.exec_with(unpack, archive).await?;
        match unpacked.outcome.status {
            FOUND => return Ok(Compilation::cached()),
            _ if unpacked.success() => {}
            _ => return Err(not_stored(&build.scratch, &unpacked.stderr)),
        }

        let command = Command::from_argv(&build.argv)
            .user(&build.user)
            .current_dir(build.sources())
            .timeout(build.timeout);
        let output = self.exec(command).await?;
        // Compilers differ in which of the two they complain on.
        let messages = [output.stdout.into_bytes(), output.stderr.into_bytes()].concat();
        let compilation = Compilation {
            cached: false,
            messages: messages.into(),
            outcome: Some(output.outcome),
        };
        if !compilation.success() {
            let remove = Command::from_argv(["rm", "-rf", &build.scratch]);
            self.exec(remove.user(&build.user).timeout(WRITE_TIMEOUT))
                .await?;
            return Ok(compilation);
        }
        let kept = self.exec(shell(KEEP)).await?;
        match kept.success() {
            true => Ok(compilation),
            false => Err(not_stored(&build.place, &kept.stderr)),
        }
    }

    /// Puts files into the guest, by their absolute paths. Not as root: what ran before may have left
    /// a link there that leads elsewhere.
    pub(crate) async fn store(
        &self,
        files: Vec<(String, Vec<u8>)>,
        user: &str,
    ) -> Result<(), Error> {
        let Some((first, _)) = files.first() else {
            return Ok(());
        };
        let first = first.clone();
        let (command, input) = match <[_; 1]>::try_from(files) {
            // For one alone no image needs a `tar`.
            Ok([(path, contents)]) => (
                Command::from_argv(["/bin/sh", "-c", "cat > \"$0\"", &path]),
                contents,
            ),
            Err(files) => {
                let command = Command::from_argv(["tar", "-xf", "-", "-C", "/"]);
                (command, archive(&files)?)
            }
        };
        let command = command
            .user(user)
            .stdin(Stdin::Piped)
            .timeout(WRITE_TIMEOUT);
        let written = self.exec_with(command, input).await?;
        match written.success() {
            true => Ok(()),
            false => Err(not_stored(&first, &written.stderr)),
        }
    }
}

fn not_stored(path: &str, said: &Captured) -> Error {
    let said = said.to_string_lossy();
    let message = format!(
        "cannot write the program to {path} in the guest: {}",
        said.trim_end()
    );
    Error::new(ErrorKind::Exhausted, message)
}

/// The files as a tar archive. Their paths lose the slash at the beginning, as `tar` has them.
fn archive(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, Error> {
    let mut builder = tar::Builder::new(Vec::new());
    let write = |builder: &mut tar::Builder<Vec<u8>>| {
        for (path, contents) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            let path = path.trim_start_matches('/');
            builder.append_data(&mut header, path, contents.as_slice())?;
        }
        builder.finish()
    };
    write(&mut builder)
        .and_then(|()| builder.into_inner())
        .map_err(|error| {
            let message = "cannot pack the program's files";
            Error::because(ErrorKind::InvalidRequest, message, error)
        })
}
