//! Whoever else has to know that the guest is somebody else now.
//!
//! A process that keeps random numbers, or anything else that must not be the same in two guests,
//! connects to the UNIX socket `/run/ember/reseed`. At each identity it reads the line
//! `reseed NUMBER`, does what it has to, and writes `done NUMBER`. Programs in
//! `/etc/ember/reseed.d` are run at each identity, all at once, and have to exit with 0. Until all
//! have, the guest has no identity; if one does not in time, it gets none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};

use crate::agent::sys::Reaped;
use crate::protocol::{ErrorCode, Failure, Status};

/// How long all hooks together may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// The most processes that listen, and the most programs.
const MAX_HOOKS: usize = 64;
/// One that says more than this many times 64 bytes at a time is not listened to any more.
const MAX_READS: usize = 64;
/// `done 18446744073709551615` and the line's end.
const MAX_LINE: usize = 26;

/// Everybody who has to be told.
#[derive(Debug)]
pub(crate) struct Hooks {
    listener: Option<UnixListener>,
    /// Where the programs are.
    directory: PathBuf,
    programs: Vec<PathBuf>,
    clients: BTreeMap<u32, Client>,
    last: u32,
    /// The number of the last identity.
    generation: u64,
    /// Programs that run for it, by their processes.
    running: BTreeMap<i32, PathBuf>,
    /// Why it has failed.
    failure: Option<String>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    pid: i32,
    /// The start of a line.
    line: Vec<u8>,
    /// It has been told, and has not answered.
    owes: bool,
}

impl Hooks {
    /// Nobody.
    pub(crate) fn none() -> Self {
        Self::new(None, PathBuf::new())
    }

    /// Those who connect to `socket`, and the programs in `directory`.
    pub(crate) fn listen(socket: &Path, directory: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        // Whoever they run as.
        fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
        Ok(Self::new(Some(listener), directory.to_owned()))
    }

    fn new(listener: Option<UnixListener>, directory: PathBuf) -> Self {
        Self {
            listener,
            directory,
            programs: Vec::new(),
            clients: BTreeMap::new(),
            last: 0,
            generation: 0,
            running: BTreeMap::new(),
            failure: None,
        }
    }

    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Looks for programs, ahead of time.
    pub(super) fn prepare(&mut self) {
        // No directory is no programs.
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let executable = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
        };
        let paths = entries.flatten().map(|entry| entry.path());
        self.programs = paths.filter(executable).take(MAX_HOOKS).collect();
    }

    /// Takes a process in that has connected. Gives its number and stream to be watched.
    pub(super) fn accept(&mut self) -> Option<(u32, BorrowedFd<'_>)> {
        loop {
            let (stream, _) = self.listener.as_ref()?.accept().ok()?;
            if self.clients.len() >= MAX_HOOKS || stream.set_nonblocking(true).is_err() {
                // Its end tells it.
                continue;
            }
            let pid = getsockopt(&stream, sockopt::PeerCredentials).map_or(0, |peer| peer.pid());
            self.last = self.last.wrapping_add(1);
            let client = Client {
                stream,
                pid,
                line: Vec::new(),
                owes: false,
            };
            let client = self
                .clients
                .entry(self.last)
                .insert_entry(client)
                .into_mut();
            return Some((self.last, client.stream.as_fd()));
        }
    }

    /// A new identity: tells everybody, and gives the programs that are to be run.
    pub(super) fn begin(&mut self) -> Vec<PathBuf> {
        self.generation += 1;
        self.failure = None;
        self.running.clear();
        let line = format!("reseed {}\n", self.generation);
        // A line fits into a socket that is read. One that takes none is not.
        self.clients.retain(|_, client| {
            client.line.clear();
            match client.stream.write(line.as_bytes()) {
                Ok(count) if count == line.len() => client.owes = true,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return false,
                _ => {
                    let pid = client.pid;
                    self.failure = Some(format!("the process {pid} does not read its socket"));
                }
            }
            true
        });
        self.programs.clone()
    }

    /// A program runs.
    pub(super) fn started(&mut self, pid: i32, program: PathBuf) {
        self.running.insert(pid, program);
    }

    /// A program could not be started.
    pub(super) fn refused(&mut self, program: &Path, failure: &Failure) {
        self.failure = Some(format!("{}: {failure}", program.display()));
    }

    /// A process has ended, perhaps one of them.
    pub(super) fn ended(&mut self, reaped: &Reaped) {
        if let Some(program) = self.running.remove(&reaped.pid)
            && reaped.status != Status::Exited(0)
        {
            let program = program.display();
            self.failure = Some(format!("{program} ended with {}", reaped.status));
        }
    }

    /// Something has come from a client.
    pub(super) fn hear(&mut self, number: u32) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let expected = format!("done {}", self.generation).into_bytes();
        let mut bytes = [0; 64];
        for _ in 0..MAX_READS {
            match client.stream.read(&mut bytes) {
                Ok(count @ 1..) => {
                    for &byte in &bytes[..count] {
                        if byte == b'\n' {
                            // An answer to an earlier question is late, and none.
                            client.owes &= client.line != expected;
                            client.line.clear();
                        } else if client.line.len() < MAX_LINE {
                            client.line.push(byte);
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It has gone, and with it what it had to reseed.
                Ok(0) | Err(_) => break,
            }
        }
        self.clients.remove(&number);
    }

    /// Whether all have done what they had to, if that is known.
    pub(super) fn result(&self) -> Option<Result<(), Failure>> {
        if let Some(why) = &self.failure {
            return Some(Err(failed(why)));
        }
        let done = self.running.is_empty() && self.clients.values().all(|client| !client.owes);
        done.then_some(Ok(()))
    }

    /// The processes of programs that still run.
    pub(super) fn running(&self) -> Vec<i32> {
        self.running.keys().copied().collect()
    }

    /// Who has not, when the time is up.
    pub(super) fn overdue(&self) -> Failure {
        let process = self.clients.values().find(|client| client.owes);
        let what = match (process, self.running.values().next()) {
            (Some(client), _) => format!("the process {}", client.pid),
            (None, Some(program)) => program.display().to_string(),
            (None, None) => "somebody".to_owned(),
        };
        failed(&format!(
            "{what} has not reseeded itself within {PATIENCE:?}"
        ))
    }
}

fn failed(why: &str) -> Failure {
    let message = format!("cannot reseed the guest's processes for an identity: {why}");
    Failure::new(ErrorCode::Identity, message)
}

/// An identity that has been applied, but for the hooks.
#[derive(Debug)]
pub(super) struct Identifying {
    pub(super) request: u32,
    pub(super) deadline: Instant,
}
