//! The agent's own program for sessions: it keeps one interpreter, and whoever speaks with it.
//!
//! The agent starts it like any command, so nothing of it is special: it is a user of the guest's, in
//! a room, with a command's limits. The interpreter is its child and runs a *driver*, a small program
//! of the image. The two speak on a socket, whose number is the driver's last argument:
//!
//! ```text
//! keeper -> driver   run NUMBER LENGTH\n and so many bytes of code; reseed\n
//! driver -> keeper   an event: {..}\n, JSON on one line; done NUMBER\n (done 0\n when it is ready)
//! ```
//!
//! What the interpreter writes before it says something is passed on before that. A cell is
//! interrupted by a SIGINT to the interpreter's process group, as a terminal does.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{Pid, read, write};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::protocol::{
    MAX_SESSION_CODE, MAX_SESSION_PART, SESSION_VERSION, SessionDecoder, SessionFrame, SessionRole,
    Status, exit_code,
};

/// With so much on its way to the host, no more is read of what the interpreter writes.
const FULL: usize = 256 * 1024;
/// What a pipe has at most if nobody has made it larger (pipe(7)); so much was there before
/// something that the driver has said.
const PIPE: usize = 64 * 1024;
/// How often the channel of an interpreter that has ended is read.
const LAST_WORDS: usize = 8;
/// No word of the driver's but an event is longer.
const WORD: usize = 64;

/// The program. Its name has been taken off its arguments.
pub(super) fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    // Who writes to somebody that is gone is told so, and has more to do.
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let _ = pipe.thread_block();
    let arguments: Vec<Vec<u8>> = arguments.map(OsString::into_vec).collect();
    let (what, result) = match SessionRole::parse(&arguments) {
        Some(SessionRole::Keep { socket, argv }) => {
            ("cannot keep an interpreter", keep(&socket, argv))
        }
        Some(SessionRole::Attach { socket }) => ("cannot reach the interpreter", attach(&socket)),
        None => return exit_code::USAGE.into(),
    };
    result.unwrap_or_else(|error| {
        super::complain(&format_args!("{what}: {error}"));
        i32::from(exit_code::REFUSED)
    })
}

/// Passes bytes on, both ways, until the keeper is gone.
fn attach(socket: &[u8]) -> io::Result<i32> {
    let mut stream = UnixStream::connect(Path::new(std::ffi::OsStr::from_bytes(socket)))?;
    let mut to_keeper = stream.try_clone()?;
    std::thread::spawn(move || {
        let _ = pump(&mut io::stdin().lock(), &mut to_keeper);
        let _ = to_keeper.shutdown(std::net::Shutdown::Both);
    });
    pump(&mut stream, &mut io::stdout().lock())?;
    Ok(0)
}

fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; MAX_SESSION_PART];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(&buffer[..count])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn keep(socket: &[u8], argv: Vec<Vec<u8>>) -> io::Result<i32> {
    let mut keeper = Keeper::start(socket, argv)?;
    let status = keeper.serve()?;
    keeper.say(&SessionFrame::Ended(status));
    keeper.flush();
    Ok(match status {
        Status::Exited(code) => code.into(),
        Status::Signaled(signal) => 128 + i32::from(signal),
    })
}

/// Whom the keeper speaks with.
struct Link {
    input: Option<OwnedFd>,
    output: OwnedFd,
    decoder: SessionDecoder,
    /// The code of a cell, as far as it has come.
    code: Vec<u8>,
    /// What is on its way.
    said: Vec<u8>,
}

/// What the driver is saying.
enum Line {
    /// A word, as far as it has come.
    Word(Vec<u8>),
    Event,
}

struct Keeper {
    child: Child,
    ended: OwnedFd,
    channel: UnixStream,
    to_driver: Vec<u8>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    listener: UnixListener,
    link: Option<Link>,
    /// The number of the cell that runs, or ran last.
    cell: u64,
    running: bool,
    line: Line,
}

/// Whom there is news of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Ended,
    Listener,
    Input,
    Output,
    Channel,
    Stdout,
    Stderr,
}

impl Keeper {
    fn start(socket: &[u8], argv: Vec<Vec<u8>>) -> io::Result<Self> {
        let socket = Path::new(std::ffi::OsStr::from_bytes(socket));
        if let Some(directory) = socket.parent() {
            std::fs::create_dir_all(directory)?;
        }
        // Of a keeper that was here before.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let (channel, far) = UnixStream::pair()?;
        channel.set_nonblocking(true)?;
        // This one the interpreter inherits.
        fcntl(&far, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let mut argv = argv.into_iter().map(OsString::from_vec);
        let program = argv.next().unwrap_or_default();
        let mut child = Command::new(&program)
            .args(argv)
            .arg(std::os::fd::AsRawFd::as_raw_fd(&far).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", program.display()))
            })?;
        drop(far);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        for output in stdout.iter().chain(&stderr) {
            nonblocking(output.as_fd())?;
        }
        let number = rustix::process::Pid::from_child(&child);
        let ended = pidfd_open(number, PidfdFlags::empty())?;
        let mut keeper = Self {
            child,
            ended,
            channel,
            to_driver: Vec::new(),
            stdout,
            stderr,
            listener,
            link: None,
            cell: 0,
            running: true,
            line: Line::Word(Vec::new()),
        };
        let own = |stream: BorrowedFd<'_>| stream.try_clone_to_owned();
        keeper.link(own(io::stdin().as_fd())?, own(io::stdout().as_fd())?)?;
        Ok(keeper)
    }

    /// Speaks with these from now on, and with nobody else.
    fn link(&mut self, input: OwnedFd, output: OwnedFd) -> io::Result<()> {
        nonblocking(input.as_fd())?;
        nonblocking(output.as_fd())?;
        self.link = Some(Link {
            input: Some(input),
            output,
            decoder: SessionDecoder::default(),
            code: Vec::new(),
            said: Vec::new(),
        });
        self.say(&SessionFrame::Welcome {
            version: SESSION_VERSION,
            busy: self.running,
        });
        Ok(())
    }

    fn say(&mut self, frame: &SessionFrame) {
        if let Some(link) = &mut self.link {
            frame.encode(&mut link.said);
        }
    }

    /// Until the interpreter ends.
    fn serve(&mut self) -> io::Result<Status> {
        loop {
            let news = self.wait()?;
            let has = |source| news.contains(&source);
            if has(Source::Channel) || has(Source::Ended) {
                self.hear(has(Source::Ended));
            }
            if has(Source::Ended)
                && let Some(status) = self.child.try_wait()?
            {
                return Ok(status_of(status));
            }
            if has(Source::Stdout) {
                self.pass_on(Source::Stdout, MAX_SESSION_PART);
            }
            if has(Source::Stderr) {
                self.pass_on(Source::Stderr, MAX_SESSION_PART);
            }
            if has(Source::Listener)
                && let Ok((stream, _)) = self.listener.accept()
            {
                let output = stream.try_clone()?;
                self.link(stream.into(), output.into())?;
                continue;
            }
            if has(Source::Input) {
                self.take_requests();
            }
            self.write_to_driver();
            if has(Source::Output) {
                self.write_to_host();
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let (read, write) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let mut of = vec![
            (Source::Ended, self.ended.as_fd(), read),
            (Source::Listener, self.listener.as_fd(), read),
        ];
        let mut is_full = false;
        if let Some(link) = &self.link {
            is_full = link.said.len() >= FULL;
            if let Some(input) = &link.input {
                of.push((Source::Input, input.as_fd(), read));
            }
            if !link.said.is_empty() {
                of.push((Source::Output, link.output.as_fd(), write));
            }
        }
        let mut channel = PollFlags::empty();
        if !self.to_driver.is_empty() {
            channel |= write;
        }
        // Without a host, or a cell, it waits in the pipes.
        if self.running && self.link.is_some() && !is_full {
            channel |= read;
            let outputs = [
                (Source::Stdout, &self.stdout),
                (Source::Stderr, &self.stderr),
            ];
            for (source, output) in outputs {
                if let Some(output) = output {
                    of.push((source, output.as_fd(), read));
                }
            }
        }
        // An end that is not waited for is told all the same, again and again.
        if !channel.is_empty() {
            of.push((Source::Channel, self.channel.as_fd(), channel));
        }
        let mut fds: Vec<_> = (of.iter())
            .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let news = of.iter().zip(&fds);
        Ok(news
            .filter(|(_, fd)| fd.any().unwrap_or(true))
            .map(|((source, ..), _)| *source)
            .collect())
    }

    /// Hears what the driver has to say. What was written before is passed on before.
    fn hear(&mut self, to_the_end: bool) {
        let mut buffer = vec![0; MAX_SESSION_PART];
        // Somebody else may hold the other end, and never stop.
        for _ in 0..if to_the_end { LAST_WORDS } else { 1 } {
            let count = self.channel.read(&mut buffer).unwrap_or_default();
            self.pass_on(Source::Stdout, PIPE);
            self.pass_on(Source::Stderr, PIPE);
            self.understand(&buffer[..count]);
            if count == 0 {
                return;
            }
        }
    }

    fn understand(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            if let Line::Word(word) = &self.line
                && word.is_empty()
                && *first == b'{'
            {
                self.line = Line::Event;
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            match &mut self.line {
                Line::Event => {
                    let (part, more) = (part.to_vec(), end.is_none());
                    self.say(&SessionFrame::Event { part, more });
                }
                Line::Word(word) => {
                    let room = WORD - word.len();
                    word.extend(part.iter().take(room));
                }
            }
            if end.is_some()
                && let Line::Word(word) = std::mem::replace(&mut self.line, Line::Word(Vec::new()))
                && self.running
                && word == format!("done {}", self.cell).as_bytes()
            {
                self.running = false;
                self.say(&SessionFrame::Done);
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
    }

    /// Passes on what was written, `most` bytes of it.
    fn pass_on(&mut self, source: Source, most: usize) {
        let is_stdout = source == Source::Stdout;
        let mut buffer = vec![0; MAX_SESSION_PART];
        let mut total = 0;
        while total < most {
            let output = if is_stdout {
                &mut self.stdout
            } else {
                &mut self.stderr
            };
            let Some(fd) = output else { return };
            match read(&*fd, &mut buffer) {
                Ok(0) => *output = None,
                Ok(count) => {
                    total += count;
                    let bytes = buffer[..count].to_vec();
                    self.say(&match is_stdout {
                        true => SessionFrame::Stdout(bytes),
                        false => SessionFrame::Stderr(bytes),
                    });
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Does what the host asks for. One that makes no sense is left.
    fn take_requests(&mut self) {
        let Some(link) = &mut self.link else { return };
        let Some(input) = &link.input else { return };
        let mut buffer = vec![0; MAX_SESSION_PART];
        match read(input, &mut buffer) {
            Ok(0) => link.input = None,
            Ok(count) => link.decoder.feed(&buffer[..count]),
            Err(_) => {}
        }
        loop {
            let Some(link) = &mut self.link else { return };
            match link.decoder.next_frame() {
                Ok(Some(frame)) => self.perform(frame),
                Ok(None) => return,
                Err(_) => self.link = None,
            }
        }
    }

    fn perform(&mut self, frame: SessionFrame) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        match frame {
            SessionFrame::Run { part, more } => {
                let Some(link) = &mut self.link else { return };
                if self.running || link.code.len() + part.len() > MAX_SESSION_CODE {
                    self.link = None;
                    return;
                }
                link.code.extend(part);
                if more {
                    return;
                }
                let code = std::mem::take(&mut link.code);
                self.cell += 1;
                self.running = true;
                let head = format!("run {} {}\n", self.cell, code.len());
                self.to_driver.extend(head.as_bytes());
                self.to_driver.extend(code);
            }
            // One that comes while nothing runs is none for what runs next.
            SessionFrame::Interrupt => {
                if self.running && self.cell > 0 {
                    let _ = killpg(group, Signal::SIGINT);
                }
            }
            SessionFrame::Reseed => self.to_driver.extend(b"reseed\n"),
            SessionFrame::End => {
                let _ = killpg(group, Signal::SIGKILL);
            }
            _ => self.link = None,
        }
    }

    fn write_to_driver(&mut self) {
        while !self.to_driver.is_empty() {
            match self.channel.write(&self.to_driver) {
                Ok(count) => drop(self.to_driver.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is ending, or has closed its end: there is nobody to tell.
                Err(_) => self.to_driver.clear(),
            }
        }
    }

    fn write_to_host(&mut self) {
        let Some(link) = &mut self.link else { return };
        while !link.said.is_empty() {
            match write(&link.output, &link.said) {
                Ok(count) => drop(link.said.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.link = None;
                    return;
                }
            }
        }
    }

    /// Writes all that is on its way, however long that takes.
    fn flush(&mut self) {
        while let Some(link) = &self.link {
            if link.said.is_empty() {
                return;
            }
            let mut fds = [PollFd::new(link.output.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, PollTimeout::NONE);
            self.write_to_host();
        }
    }
}

fn nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn status_of(status: ExitStatus) -> Status {
    let number = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.code(), status.signal()) {
        (Some(code), _) => Status::Exited(number(code)),
        (None, signal) => Status::Signaled(number(signal.unwrap_or_default())),
    }
}
