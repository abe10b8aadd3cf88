//! One request about files, under way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ember_guest::host::{self, Command, ProcessOutput, ProcessStdin};
use ember_guest::protocol::{FileNote, FileRequest, Outcome, Status, exit_code};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::patience::{Patient, Wanted};
use super::{Files, Who};
use crate::error::{Error, ErrorKind};
use crate::sandbox::Guest;

/// What is kept of what the program in the guest says.
const NOTES: usize = 256 << 10;
/// How much of a text of the guest's is shown.
const SHOWN: usize = 300;

/// A request under way. Dropped, it is ended.
#[derive(Debug)]
pub(super) struct Running {
    process: host::Process,
    guest: Arc<Guest>,
    stdin: Option<Patient<ProcessStdin>>,
    stdout: Option<Patient<ProcessOutput>>,
    /// Dropped, the streams fail, whoever reads or writes them.
    _wanted: [Option<Wanted>; 2],
    notes: JoinHandle<Vec<u8>>,
    what: String,
    patience: Duration,
}

impl Running {
    pub(super) async fn start(files: &Files<'_>, request: FileRequest) -> Result<Self, Error> {
        let sandbox = files.sandbox;
        let account = &sandbox.fixture().image.account;
        let command = Command::files(&request).current_dir(&account.home);
        let command = match &files.who {
            Who::Programs => command.user(&account.user).confined(),
            Who::User(user) => command.user(user).confined(),
            Who::Root => command,
        };
        let (verb, path) = request.summary();
        let what = format!("{verb} {:?}", shown(path));
        let guest = Arc::clone(sandbox.guest());
        let started = tokio::time::timeout(files.patience, sandbox.agent().spawn(command));
        let mut process = match started.await {
            Ok(Ok(process)) => process,
            Ok(Err(error)) => {
                let error = guest.explain(error).await;
                let message = format!("cannot {what} in the guest: {error}");
                return Err(Error::new(error.kind(), message));
            }
            Err(_) => return Err(stands_still(&what, files.patience)),
        };
        let stdin = process.take_stdin();
        let stdout = process.take_stdout();
        let stderr = process.take_stderr();
        let notes = tokio::spawn(async move {
            match stderr {
                Some(stderr) => first_of(stderr).await,
                None => Vec::new(),
            }
        });
        let stdin = stdin.map(|it| Patient::new(it, files.patience));
        let stdout = stdout.map(|it| Patient::new(it, files.patience));
        let (stdin, of_stdin) = stdin.unzip();
        let (stdout, of_stdout) = stdout.unzip();
        Ok(Self {
            process,
            guest,
            stdin,
            stdout,
            _wanted: [of_stdin, of_stdout],
            notes,
            what,
            patience: files.patience,
        })
    }

    /// Its streams, for somebody else to read and write.
    pub(super) fn take_stdout(&mut self) -> Option<Patient<ProcessOutput>> {
        self.stdout.take()
    }

    pub(super) fn take_stdin(&mut self) -> Option<Patient<ProcessStdin>> {
        self.stdin.take()
    }

    /// What it has written next; nothing at its end.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let Some(stdout) = &mut self.stdout else {
            return Ok(0);
        };
        match stdout.read(buffer).await {
            Ok(count) => Ok(count),
            Err(error) => Err(self.broken(&error).await),
        }
    }

    /// The same, of one that may take its time.
    pub(super) async fn read_when_there_is(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let Some(stdout) = &mut self.stdout else {
            return Ok(0);
        };
        match stdout.inner.read(buffer).await {
            Ok(count) => Ok(count),
            Err(error) => Err(self.broken(&error).await),
        }
    }

    /// Says whether it takes more.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(false);
        };
        match stdin.write_all(bytes).await {
            Ok(()) => Ok(true),
            // It has ended, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(self.broken(&error).await),
        }
    }

    /// Ends its input and waits for what comes of it: what it has to say, if it succeeded.
    pub(super) async fn finish(mut self) -> Result<Vec<FileNote>, Error> {
        drop((self.stdin.take(), self.stdout.take()));
        let ended = tokio::time::timeout(self.patience, self.process.wait());
        let outcome = match ended.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return Err(self.guest.explain(error).await),
            Err(_) => return Err(stands_still(&self.what, self.patience)),
        };
        let said = tokio::time::timeout(self.patience, &mut self.notes);
        let said = said.await.ok().and_then(Result::ok).unwrap_or_default();
        let notes = FileNote::decode_all(&said);
        if outcome.success() {
            return Ok(notes.collect());
        }
        let reason = notes.into_iter().find_map(|note| match note {
            FileNote::Failed(text) => Some(text),
            _ => None,
        });
        Err(failed(&self.what, &outcome, reason))
    }

    /// There is more than may be.
    pub(super) fn too_large(&self, most: u64) -> Error {
        let message = format!(
            "cannot {} in the guest: there is more than the {most} bytes that may be moved \
             (Files::max_bytes)",
            self.what
        );
        Error::new(ErrorKind::TooLarge, message)
    }

    /// There are more than may be.
    pub(super) fn too_many(&self, most: u64) -> Error {
        let message = format!(
            "cannot {} in the guest: there are more than {most} files (Files::max_entries)",
            self.what
        );
        Error::new(ErrorKind::TooLarge, message)
    }

    /// Why a stream of it broke off.
    pub(super) async fn broken(&mut self, error: &io::Error) -> Error {
        if error.kind() == io::ErrorKind::TimedOut {
            return stands_still(&self.what, self.patience);
        }
        // The connection is gone, and the process with it.
        match self.process.wait().await {
            Ok(_) => Error::new(
                ErrorKind::GuestDied,
                format!("cannot {} in the guest: its stream broke off", self.what),
            ),
            Err(error) => self.guest.explain(error).await,
        }
    }

    /// What it is about.
    pub(super) fn what(&self) -> &str {
        &self.what
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The process is ended by its own drop.
        self.notes.abort();
    }
}

/// The beginning of a stream, which is read to its end.
async fn first_of(mut stream: ProcessOutput) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = NOTES.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    kept
}

fn stands_still(what: &str, patience: Duration) -> Error {
    let seconds = patience.as_secs_f64();
    let message = format!(
        "cannot {what} in the guest: nothing has come of it for {seconds} s (Files::patience)"
    );
    Error::new(ErrorKind::GuestDied, message)
}

/// Text of a guest's, which may write what it likes, and this goes to terminals.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(SHOWN).collect()
}

/// What a request that did not succeed means to the caller.
fn failed(what: &str, outcome: &Outcome, reason: Option<String>) -> Error {
    let (kind, default) = match outcome.status {
        Status::Exited(exit_code::TOO_MANY_BYTES) => {
            (ErrorKind::TooLarge, "there is too much of it".to_owned())
        }
        Status::Exited(exit_code::TOO_MANY_ENTRIES) => {
            (ErrorKind::TooLarge, "there are too many files".to_owned())
        }
        Status::Exited(exit_code::USAGE) => {
            let reason = "the guest's agent does not know the request";
            (ErrorKind::Internal, reason.to_owned())
        }
        Status::Exited(exit_code::REFUSED) => {
            (ErrorKind::InvalidRequest, "it was refused".to_owned())
        }
        Status::Exited(number) => {
            let error = io::Error::from_raw_os_error(number.into());
            (kind_of(&error), error.to_string())
        }
        // Nobody ends it but the kernel, for want of something.
        status => (ErrorKind::Exhausted, format!("it was ended ({status})")),
    };
    let reason = reason.map(|text| shown(text.as_bytes()));
    let reason = reason.filter(|text| !text.is_empty()).unwrap_or(default);
    Error::new(kind, format!("cannot {what} in the guest: {reason}"))
}

/// What an error of a system means to the caller.
pub(super) fn kind_of(error: &io::Error) -> ErrorKind {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    match errno {
        Some(Errno::NOENT) => ErrorKind::NotFound,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => ErrorKind::PermissionDenied,
        Some(
            Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN,
        ) => ErrorKind::Exhausted,
        Some(Errno::FBIG) => ErrorKind::TooLarge,
        _ => ErrorKind::InvalidRequest,
    }
}
