//! Runs commands for one client: an agent of its own, in a process of its own, which the host's agent
//! is not bothered with. When its client goes, it ends all that it has started.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, umask};

use super::super::identity::Identities;
use super::super::server::{Agent, Hooks};
use super::super::sys;
use super::super::tree::Trees;
use crate::protocol::{
    Decoder, Hello, JSON_PROGRAM, MAX_DATA, Message, Outcome, Spawn, Stream, WINDOW,
};

/// The word that makes the program one of these.
pub(super) const ROLE: &str = "backend";

/// The program: serves what is its standard input, until that ends.
pub(super) fn main(cgroup: &Path) -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    sys::forget_parent();
    umask(Mode::from_bits_truncate(0o022));
    let mut stream = Some(io::stdin().as_fd().try_clone_to_owned()?);
    let trees = Trees::cgroups(cgroup)?;
    let mut agent = Agent::new(trees, Identities::nowhere(), Hooks::none())?;
    // There is one connection, and its end is the program's.
    let _ = agent.run(|| match stream.take() {
        Some(stream) => Ok(Some(stream)),
        None => Err(io::ErrorKind::ConnectionAborted.into()),
    });
    agent.end_everything();
    Ok(())
}

/// What came of a command.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) outcome: Outcome,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Why nothing came of it.
#[derive(Debug)]
pub(super) enum Failed {
    /// The client has gone.
    Gone,
    /// What the client is told.
    Because(String),
}

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Because(error.to_string())
    }
}

#[derive(Debug)]
pub(super) struct Backend {
    child: Child,
    cgroup: PathBuf,
    stream: UnixStream,
    decoder: Decoder,
    last: u32,
}

impl Backend {
    pub(super) fn start(cgroup: &Path) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0(std::ffi::OsStr::from_bytes(JSON_PROGRAM))
            .arg(ROLE)
            .arg(cgroup)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        ours.set_nonblocking(true)?;
        let mut backend = Self {
            child,
            cgroup: cgroup.to_owned(),
            stream: ours,
            decoder: Decoder::new(),
            last: 0,
        };
        let mut hello = Vec::new();
        Message::Hello(Hello::ours(0))
            .encode(0, &mut hello)
            .map_err(io::Error::other)?;
        backend.stream.write_all(&hello)?;
        Ok(backend)
    }

    /// Runs a command to its end, unless `client` goes before.
    pub(super) fn run(
        &mut self,
        spawn: &Spawn,
        mut input: &[u8],
        client: Option<BorrowedFd<'_>>,
    ) -> Result<Done, Failed> {
        self.last += 1;
        let request = self.last;
        let mut out = Vec::new();
        Message::Spawn(Cow::Borrowed(spawn)).encode(request, &mut out)?;
        let mut fed = !spawn.stdin;
        let mut credit = WINDOW as usize;
        let mut outputs = [Vec::new(), Vec::new()];
        let mut ended = [false; 2];
        let mut outcome = None;
        let mut buffer = vec![0; MAX_DATA];
        loop {
            while !fed && out.len() < MAX_DATA {
                let count = input.len().min(MAX_DATA).min(credit);
                if count == 0 && !input.is_empty() {
                    break;
                }
                let (part, rest) = input.split_at(count);
                fed = rest.is_empty();
                let data = Message::Data {
                    stream: Stream::Stdin,
                    bytes: part,
                    end: fed,
                };
                data.encode(request, &mut out)?;
                credit -= count;
                input = rest;
            }
            let mut wanted = PollFlags::POLLIN;
            wanted.set(PollFlags::POLLOUT, !out.is_empty());
            let gone = PollFlags::from_bits_retain(libc::POLLRDHUP);
            let mut fds = vec![PollFd::new(self.stream.as_fd(), wanted)];
            fds.extend(client.map(|client| PollFd::new(client, gone)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if fds
                .get(1)
                .is_some_and(|client| client.any().unwrap_or(true))
            {
                return Err(Failed::Gone);
            }
            if !out.is_empty() {
                match self.stream.write(&out) {
                    Ok(count) => drop(out.drain(..count)),
                    Err(error) if is_for_later(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    let message = "what runs programs has ended";
                    return Err(Failed::Because(message.to_owned()));
                }
                Ok(count) => self.decoder.feed(buffer.get(..count).unwrap_or_default()),
                Err(error) if is_for_later(&error) => continue,
                Err(error) => return Err(error.into()),
            }
            while let Some(frame) = self.decoder.next_frame()? {
                let of = frame.request;
                let message = Message::decode(frame)?;
                if let Message::Error(failure) = &message
                    && (of == 0 || of == request)
                {
                    return Err(Failed::Because(failure.message().to_owned()));
                }
                if of != request {
                    continue;
                }
                match message {
                    Message::Data { stream, bytes, end } => {
                        let number = usize::from(stream == Stream::Stderr);
                        // Bounded by the limit that the command has.
                        outputs[number].extend_from_slice(bytes);
                        ended[number] |= end;
                        if !end && !bytes.is_empty() {
                            // At most what a frame carries.
                            let bytes = bytes.len() as u32;
                            Message::Window { stream, bytes }.encode(request, &mut out)?;
                        }
                    }
                    Message::Window { bytes, .. } => {
                        credit = credit.saturating_add(bytes as usize);
                    }
                    Message::Reset { .. } => fed = true,
                    Message::Exited(how) => {
                        fed = true;
                        outcome = Some(how);
                    }
                    _ => {}
                }
            }
            if ended == [true; 2]
                && let Some(outcome) = outcome.take()
            {
                let [stdout, stderr] = outputs;
                return Ok(Done {
                    outcome,
                    stdout,
                    stderr,
                });
            }
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
        // If it was ended before it could, what it has started is still there.
        let _ = std::fs::write(self.cgroup.join("cgroup.kill"), "1");
    }
}
