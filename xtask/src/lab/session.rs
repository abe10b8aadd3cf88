//! One lab from start to end, seen from the host: QEMU, the port, signals, the time limit.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Job;
use super::qemu::Qemu;
use super::wire::{Decoder, Frame, MAX_PAYLOAD, STDIN_WINDOW};
use crate::say;

/// A boot takes seconds; on a machine that does ten other things, a minute.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// Once in a hundred or so boots on a busy machine the lab's kernel has reported RCU stalls and come
/// no further; why is not known. Nothing of the command has run yet, so such a boot is repeated.
const BOOT_ATTEMPTS: u32 = 3;
/// How long a command has to end after the first Ctrl-C or the time limit's SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// How often every CPU of an ordinary lab is woken; see `visit_every_cpu` in `init.rs`.
const BEAT: Duration = Duration::from_secs(2);
/// Status of a command that ran into its time limit, as `timeout(1)` has it.
pub(crate) const TIMED_OUT: u8 = 124;

/// How a job in the lab ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    /// The command's status as a shell would give it, or 124 after the time limit.
    pub(crate) status: u8,
    /// From starting QEMU to init in the lab.
    pub(crate) boot: Duration,
    /// From init to the command's end.
    pub(crate) command: Duration,
}

/// Where a command's output goes.
pub(crate) trait Output {
    /// Bytes of standard output.
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Bytes of standard error.
    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// The caller's own standard output and error.
#[derive(Debug)]
pub(crate) struct Inherit;

impl Output for Inherit {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }
}

/// Boots QEMU, runs the job and ends QEMU.
pub(crate) fn run(
    qemu: &Qemu<'_>,
    job: &Job,
    environment: &[(OsString, OsString)],
    limit: Option<Duration>,
    output: &mut dyn Output,
) -> Result<Exit> {
    for attempt in 1.. {
        let (ours, theirs) = UnixStream::pair().context("making a socket pair")?;
        let mut session = Session {
            port: ours,
            decoder: Decoder::default(),
            signals: Signals::block()?,
            stdin_open: job.stdin,
            stdin_window: STDIN_WINDOW,
            end: End::Running,
            next_beat: (!qemu.machine.icount).then(|| Instant::now() + BEAT),
            output,
        };
        let started = Instant::now();
        // Ended with this turn of the loop, whichever way that goes.
        let _qemu = Running(qemu.spawn(OwnedFd::from(theirs))?);
        match session
            .wait_for_boot(started)
            .with_context(|| autopsy(qemu))?
        {
            Boot::Ready => {
                let exit = session.run(started.elapsed(), job, environment, limit);
                return exit.with_context(|| autopsy(qemu));
            }
            Boot::Signal(status) => {
                return Ok(Exit {
                    status,
                    boot: started.elapsed(),
                    command: Duration::ZERO,
                });
            }
            Boot::Hangs if attempt < BOOT_ATTEMPTS => {
                let seconds = BOOT_LIMIT.as_secs();
                say!("the lab did not boot within {seconds} s: starting it again");
            }
            Boot::Hangs => break,
        }
    }
    Err(anyhow!("{}", autopsy(qemu))
        .context(format!("the lab did not boot in {BOOT_ATTEMPTS} attempts")))
}

/// What is known about a lab that ended by itself.
fn autopsy(qemu: &Qemu<'_>) -> String {
    let mut text = "the lab ended before the command did".to_owned();
    for (what, path) in [("kernel", qemu.console()), ("QEMU", qemu.messages())] {
        let bytes = fs::read(path).unwrap_or_default();
        let lines = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = lines
            .lines()
            // One for each feature of the CPU model that software does not emulate.
            .filter(|line| !line.contains("TCG doesn't support requested feature"))
            .collect();
        let tail = &lines[lines.len().saturating_sub(30)..];
        if !tail.is_empty() {
            text.push_str(&format!(
                "\n--- {what}'s last messages ---\n{}",
                tail.join("\n")
            ));
        }
    }
    text
}

/// QEMU, ended with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // There is nothing in it to save: results are on the host already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Signals that end a terminal's command, as a descriptor; as they were once dropped.
struct Signals {
    fd: SignalFd,
    mask: SigSet,
}

impl Signals {
    fn block() -> Result<Self> {
        let mask: SigSet = [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ]
        .into_iter()
        .collect();
        mask.thread_block().context("blocking signals")?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { fd, mask })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.mask.thread_unblock();
    }
}

/// How a boot went.
enum Boot {
    /// Init waits for the command.
    Ready,
    /// A signal came instead: the status for it.
    Signal(u8),
    /// Neither.
    Hangs,
}

/// Why a command is being ended.
enum End {
    Running,
    /// By this signal from outside, and by force at that time.
    Interrupted(u8, Instant),
    /// By the time limit.
    TimedOut(Instant),
}

struct Session<'a> {
    port: UnixStream,
    decoder: Decoder,
    signals: Signals,
    stdin_open: bool,
    stdin_window: usize,
    end: End,
    /// Never by the deterministic clock, which it would disturb and which needs none.
    next_beat: Option<Instant>,
    output: &'a mut dyn Output,
}

impl Session<'_> {
    fn run(
        &mut self,
        boot: Duration,
        job: &Job,
        environment: &[(OsString, OsString)],
        limit: Option<Duration>,
    ) -> Result<Exit> {
        self.send_command(job, environment)?;
        let began = Instant::now();
        let deadline = limit.map(|limit| began + limit);
        let name = job
            .command
            .first()
            .map(|name| name.to_string_lossy())
            .unwrap_or_default();
        let status = loop {
            let deadline = match self.end {
                End::Running => deadline,
                End::Interrupted(_, at) | End::TimedOut(at) => Some(at),
            };
            let wake = [deadline, self.next_beat].into_iter().flatten().min();
            self.wait(wake)?;
            self.beat()?;
            if let Some(status) = self.receive()? {
                break match self.end {
                    End::TimedOut(_) => TIMED_OUT,
                    _ => status,
                };
            }
            if let Some(status) = self.interrupt()? {
                break status;
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                match self.end {
                    End::Running => {
                        let seconds = limit.unwrap_or_default().as_secs();
                        say!("{name} ran longer than {seconds} s in the lab: stopped");
                        self.signal(Signal::SIGTERM)?;
                        self.end = End::TimedOut(Instant::now() + GRACE);
                    }
                    End::Interrupted(status, _) => break status,
                    End::TimedOut(_) => break TIMED_OUT,
                }
            }
        };
        Ok(Exit {
            status,
            boot,
            command: began.elapsed(),
        })
    }

    fn wait_for_boot(&mut self, started: Instant) -> Result<Boot> {
        // Standard input is the command's, and there is none yet.
        let stdin_open = std::mem::replace(&mut self.stdin_open, false);
        loop {
            self.wait(Some(started + BOOT_LIMIT))?;
            if let Some(Frame::Ready) = self.decoder.next()? {
                self.stdin_open = stdin_open;
                return Ok(Boot::Ready);
            }
            if let Some(signal) = self.pending_signal()? {
                return Ok(Boot::Signal(128 + signal));
            }
            if started.elapsed() > BOOT_LIMIT {
                return Ok(Boot::Hangs);
            }
        }
    }

    fn send_command(&mut self, job: &Job, environment: &[(OsString, OsString)]) -> Result<()> {
        let mut frames = Vec::new();
        for argument in &job.command {
            frames.push(Frame::Argument(argument.as_bytes().to_vec()));
        }
        for (name, value) in environment {
            frames.push(Frame::Environment(
                [name.as_bytes(), b"=", value.as_bytes()].concat(),
            ));
        }
        frames.push(Frame::Directory(
            job.directory.as_os_str().as_bytes().to_vec(),
        ));
        frames.push(Frame::Start);
        if !job.stdin {
            frames.push(Frame::Stdin(Vec::new()));
        }
        for frame in frames {
            frame.send(&self.port)?;
        }
        Ok(())
    }

    /// Waits until the port, a signal or standard input has something, or the deadline comes.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<()> {
        let stdin = io::stdin();
        let mut fds = vec![
            PollFd::new(self.port.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.fd.as_fd(), PollFlags::POLLIN),
        ];
        if self.stdin_open && self.stdin_window > 0 {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        let timeout = deadline.map_or(PollTimeout::NONE, |at| {
            let left = at
                .saturating_duration_since(Instant::now())
                .min(Duration::from_secs(600));
            // Rounded up, or the last millisecond is spun away.
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for the lab"),
        }
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        let (port, input) = (ready(0), ready(2));
        drop(fds);
        if port && !self.decoder.fill(&self.port)? {
            bail!("QEMU has gone");
        }
        if input {
            self.send_input(&stdin)?;
        }
        Ok(())
    }

    fn send_input(&mut self, stdin: &io::Stdin) -> Result<()> {
        let mut piece = vec![0; self.stdin_window.min(MAX_PAYLOAD)];
        // Unbuffered: `Stdin` reads ahead, and `poll` would not know.
        let file = fs::File::from(stdin.as_fd().try_clone_to_owned()?);
        // An input that cannot be read (a terminal of another process group) has ended.
        let count = (&file).read(&mut piece).unwrap_or(0);
        piece.truncate(count);
        self.stdin_window -= count;
        self.stdin_open = count > 0;
        Frame::Stdin(piece).send(&self.port)?;
        Ok(())
    }

    /// Handles what has come in; the command's status once it is there.
    fn receive(&mut self) -> Result<Option<u8>> {
        while let Some(frame) = self.decoder.next()? {
            match frame {
                Frame::Stdout(bytes) => self.output.stdout(&bytes),
                Frame::Stderr(bytes) => self.output.stderr(&bytes),
                Frame::StdinTaken(count) => {
                    self.stdin_window += count as usize;
                    Ok(())
                }
                Frame::Exit(status) => return Ok(Some(status)),
                other => bail!("unexpected {other:?} from the lab"),
            }
            .context("writing the command's output")?;
        }
        Ok(None)
    }

    fn beat(&mut self) -> Result<()> {
        if self.next_beat.is_some_and(|at| Instant::now() >= at) {
            self.next_beat = Some(Instant::now() + BEAT);
            Frame::Beat.send(&self.port)?;
        }
        Ok(())
    }

    /// Passes a signal on the first time, and gives up at the second.
    fn interrupt(&mut self) -> Result<Option<u8>> {
        let Some(number) = self.pending_signal()? else {
            return Ok(None);
        };
        if !matches!(self.end, End::Running) {
            return Ok(Some(128 + number));
        }
        Frame::Signal(number).send(&self.port)?;
        self.end = End::Interrupted(128 + number, Instant::now() + GRACE);
        Ok(None)
    }

    fn pending_signal(&mut self) -> Result<Option<u8>> {
        let signal = self.signals.fd.read_signal().context("reading a signal")?;
        Ok(signal.and_then(|info| u8::try_from(info.ssi_signo).ok()))
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let number = u8::try_from(signal as i32).context("a signal's number")?;
        Frame::Signal(number).send(&self.port).map_err(Into::into)
    }
}
