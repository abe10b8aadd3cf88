//! The lab's init: runs the one command it is told to run and reports how it ended.
//!
//! Started as PID 1 by `boot.sh` in the lab, from the same executable as the host's side.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::wire::{Decoder, Frame, MAX_PAYLOAD};

/// Name of the virtio-serial port between host and init.
pub(crate) const PORT_NAME: &str = "ember.lab";

/// What `boot.sh` has to say to whoever started the lab.
const WARNINGS: &str = "/run/lab-warnings";

/// Status of a command that is not there, as a shell gives it.
const NOT_FOUND: u8 = 127;
/// Status of a command that is there and cannot be run.
const NOT_RUNNABLE: u8 = 126;

/// Runs as PID 1. Only returns when the lab is broken, and the kernel's panic then ends QEMU.
pub(crate) fn run() -> Result<()> {
    let port = open_port()?;
    // A command in the lab may hold thousands of VMs' descriptors, and lock their memory.
    for (resource, soft, hard) in [
        (Resource::RLIMIT_NOFILE, 65_536, 1_048_576),
        (Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX),
    ] {
        setrlimit(resource, soft, hard).context("raising a resource limit")?;
    }
    Frame::Ready.send(&port)?;

    let mut decoder = Decoder::default();
    let request = Request::read(&port, &mut decoder)?;
    let warnings = fs::read(WARNINGS).unwrap_or_default();
    if !warnings.is_empty() {
        Frame::Stderr(warnings).send(&port)?;
    }
    let status = match request.spawn() {
        Ok(child) => Supervisor::new(&port, decoder, child)?.run()?,
        Err((status, message)) => {
            Frame::Stderr(message.into_bytes()).send(&port)?;
            status
        }
    };
    // What the command wrote to the results directory must be on the host before the host ends QEMU.
    nix::unistd::sync();
    Frame::Exit(status).send(&port)?;
    // The host ends QEMU. Init must not return: that is a kernel panic.
    loop {
        std::thread::park();
    }
}

fn open_port() -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("looking for virtio ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT_NAME {
            let device = Path::new("/dev").join(entry.file_name());
            return OpenOptions::new()
                .read(true)
                .write(true)
                .open(&device)
                .with_context(|| format!("opening {}", device.display()));
        }
    }
    bail!("the port {PORT_NAME} is missing");
}

/// The command to run.
#[derive(Debug, Default)]
struct Request {
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
}

impl Request {
    fn read(port: &File, decoder: &mut Decoder) -> Result<Self> {
        let mut request = Self::default();
        loop {
            let Some(frame) = decoder.next()? else {
                if !decoder.fill(port)? {
                    bail!("the host closed the port before it named a command");
                }
                continue;
            };
            match frame {
                Frame::Argument(bytes) => request.arguments.push(OsString::from_vec(bytes)),
                Frame::Environment(bytes) => {
                    if let Some(pair) = split_variable(&bytes) {
                        request.environment.push(pair);
                    }
                }
                Frame::Directory(bytes) => {
                    request.directory = PathBuf::from(OsString::from_vec(bytes));
                }
                Frame::Start => return Ok(request),
                other => bail!("unexpected {other:?} before the command"),
            }
        }
    }

    fn spawn(&self) -> Result<Child, (u8, String)> {
        let Some((program, arguments)) = self.arguments.split_first() else {
            return Err((NOT_FOUND, "lab: no command given\n".to_owned()));
        };
        if let Err(error) = std::env::set_current_dir(&self.directory) {
            let directory = self.directory.display();
            return Err((
                NOT_RUNNABLE,
                format!("lab: cannot enter {directory} in the lab: {error}\n"),
            ));
        }
        Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Signals from the host go to the whole group, as from a terminal.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                let status = match error.kind() {
                    io::ErrorKind::NotFound => NOT_FOUND,
                    _ => NOT_RUNNABLE,
                };
                (
                    status,
                    format!("lab: cannot run {}: {error}\n", program.display()),
                )
            })
    }
}

fn split_variable(bytes: &[u8]) -> Option<(OsString, OsString)> {
    // A name may begin with `=` in theory; an empty one may not be passed on.
    let at = bytes.iter().skip(1).position(|byte| *byte == b'=')? + 1;
    let value = bytes[at + 1..].to_vec();
    let name = bytes[..at].to_vec();
    Some((OsString::from_vec(name), OsString::from_vec(value)))
}

/// Moves bytes between the port and the running command until it has ended.
struct Supervisor<'a> {
    port: &'a File,
    decoder: Decoder,
    group: Pid,
    stdin: Option<ChildStdin>,
    stdin_pending: Vec<u8>,
    stdin_ended: bool,
    stdout: Option<File>,
    stderr: Option<File>,
    children: SignalFd,
}

impl<'a> Supervisor<'a> {
    fn new(port: &'a File, decoder: Decoder, mut child: Child) -> Result<Self> {
        let pipe = |fd: std::os::fd::OwnedFd| -> Result<File> {
            set_nonblocking(fd.as_fd())?;
            Ok(File::from(fd))
        };
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        // Blocked only now: the command must not inherit it. An end that came before is seen by
        // the first `reap`.
        mask.thread_block()?;
        let stdin = child.stdin.take();
        if let Some(stdin) = &stdin {
            set_nonblocking(stdin.as_fd())?;
        }
        Ok(Self {
            port,
            decoder,
            group: Pid::from_raw(i32::try_from(child.id())?),
            stdin,
            stdin_pending: Vec::new(),
            stdin_ended: false,
            stdout: child
                .stdout
                .take()
                .map(|out| pipe(out.into()))
                .transpose()?,
            stderr: child
                .stderr
                .take()
                .map(|out| pipe(out.into()))
                .transpose()?,
            children: SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
        })
    }

    fn run(mut self) -> Result<u8> {
        loop {
            self.forward_commands()?;
            self.feed_stdin();
            if let Some(status) = self.reap()? {
                // Everything the command itself wrote is in the pipes by now. A background
                // process it left behind may hold them open: its output ends here.
                self.drain_outputs(64)?;
                return Ok(status);
            }
            self.wait()?;
            // A little at a time, so that a flood on one stream does not hold up the other.
            self.drain_outputs(4)?;
            while let Ok(Some(_)) = self.children.read_signal() {}
        }
    }

    /// Waits until something can move.
    fn wait(&mut self) -> Result<()> {
        let mut fds = vec![
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.port.as_fd(), PollFlags::POLLIN),
        ];
        let readable = [self.stdout.as_ref(), self.stderr.as_ref()];
        fds.extend(
            readable
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        if let Some(stdin) = self
            .stdin
            .as_ref()
            .filter(|_| !self.stdin_pending.is_empty())
        {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the command"),
        }
        let port_ready = fds[1].any().unwrap_or(false);
        drop(fds);
        if port_ready && !self.decoder.fill(self.port)? {
            bail!("the host closed the port");
        }
        Ok(())
    }

    fn forward_commands(&mut self) -> Result<()> {
        while let Some(frame) = self.decoder.next()? {
            match frame {
                Frame::Stdin(bytes) if bytes.is_empty() => self.stdin_ended = true,
                Frame::Stdin(bytes) => self.stdin_pending.extend_from_slice(&bytes),
                Frame::Signal(number) => {
                    if let Ok(signal) = Signal::try_from(i32::from(number)) {
                        // The group may be gone already; its status is on its way then.
                        let _ = signal::killpg(self.group, signal);
                    }
                }
                Frame::Beat => visit_every_cpu(),
                other => bail!("unexpected {other:?} while the command runs"),
            }
        }
        Ok(())
    }

    fn feed_stdin(&mut self) {
        let mut taken = 0;
        if let Some(stdin) = &mut self.stdin {
            while taken < self.stdin_pending.len() {
                match stdin.write(&self.stdin_pending[taken..]) {
                    Ok(count) => taken += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The command closed its input: what is left has no reader.
                    Err(_) => {
                        self.stdin = None;
                        break;
                    }
                }
            }
        }
        if self.stdin.is_none() {
            taken = self.stdin_pending.len();
        }
        self.stdin_pending.drain(..taken);
        if taken > 0 {
            let count = u32::try_from(taken).unwrap_or(u32::MAX);
            // A host that has gone away is noticed by the next read.
            let _ = Frame::StdinTaken(count).send(self.port);
        }
        if self.stdin_ended && self.stdin_pending.is_empty() {
            self.stdin = None;
        }
    }

    /// Passes on what the pipes hold, at most so many pieces of each: 64 are more than a pipe of
    /// the largest size (`/proc/sys/fs/pipe-max-size`) holds.
    fn drain_outputs(&mut self, pieces: usize) -> Result<()> {
        drain(&mut self.stdout, self.port, pieces, Frame::Stdout)?;
        drain(&mut self.stderr, self.port, pieces, Frame::Stderr)
    }

    /// Reaps everything that has ended; the command's status if it is among them.
    fn reap(&self) -> Result<Option<u8>> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.group => {
                    return Ok(Some(shell_status(ExitStatus::from_raw((code & 0xff) << 8))));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.group => {
                    return Ok(Some(shell_status(ExitStatus::from_raw(signal as i32))));
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
                // An orphan init inherited.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("reaping"),
            }
        }
    }
}

fn drain(
    pipe: &mut Option<File>,
    port: &File,
    pieces: usize,
    frame: fn(Vec<u8>) -> Frame,
) -> Result<()> {
    let Some(file) = pipe else {
        return Ok(());
    };
    let mut piece = vec![0; MAX_PAYLOAD];
    for _ in 0..pieces {
        match file.read(&mut piece) {
            Ok(0) => {
                *pipe = None;
                return Ok(());
            }
            Ok(count) => frame(piece[..count].to_vec()).send(port)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("reading the command's output"),
        }
    }
    Ok(())
}

/// Has every CPU interrupted once. In a boot that hung, an idle CPU's timer had stayed silent; why is
/// not known, though a lost interrupt of QEMU's software CPU is suspected. Such a CPU sleeps until
/// something else interrupts it, and this is something else. It is not shown to have helped yet.
fn visit_every_cpu() {
    let own = Pid::from_raw(0);
    let Ok(all) = sched_getaffinity(own) else {
        return;
    };
    for cpu in (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)) {
        let mut one = CpuSet::new();
        // Only fails for a CPU that is not there.
        let _ = one.set(cpu).and_then(|()| sched_setaffinity(own, &one));
    }
    let _ = sched_setaffinity(own, &all);
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The status a shell would give: the exit code, or 128 + the number of the signal.
pub(crate) fn shell_status(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|number| 128 + number));
    u8::try_from(code.unwrap_or(1)).unwrap_or(1)
}
