//! A command or program that runs in a sandbox.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ember_guest::host::{self, ProcessControl, ProcessOutput, ProcessStdin};
use ember_guest::protocol::{LimitHit, Outcome, PtySize, Usage};
use tokio::io::AsyncWriteExt;
use tokio::time::{Interval, MissedTickBehavior};

use super::Guest;
use crate::error::{Error, ErrorKind};
use crate::output::Output;

/// How much later than a command's own time limit the guest must have said that it was over. A
/// guest whose kernel still works ends commands in time by itself; one that does not is stopped.
const GRACE: Duration = Duration::from_secs(5);
/// How often what a command uses is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// A command or program that runs in a sandbox.
///
/// Dropped before its outcome is known, it is ended, with everything that it has started.
pub struct Process {
    inner: host::Process,
    guest: Arc<Guest>,
    deadline: Option<Deadline>,
}

/// When the guest must have ended it.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    limit: Duration,
    at: Instant,
}

impl Deadline {
    /// For something that begins now. A limit beyond the clock's end is none.
    fn after(limit: Option<Duration>) -> Option<Self> {
        let limit = limit?;
        let at = Instant::now().checked_add(limit)?.checked_add(GRACE)?;
        Some(Self { limit, at })
    }
}

impl Process {
    pub(super) fn new(inner: host::Process, guest: Arc<Guest>, limit: Option<Duration>) -> Self {
        Self {
            inner,
            guest,
            deadline: Deadline::after(limit),
        }
    }

    /// Its process number in the guest.
    pub fn pid(&self) -> u32 {
        self.inner.pid()
    }

    /// Its standard input, if it was asked for and has not been taken.
    pub fn take_stdin(&mut self) -> Option<ProcessStdin> {
        self.inner.take_stdin()
    }

    /// Its standard output, if it has not been taken. What is taken has to be read, as with a
    /// pipe: until it is, the process waits.
    pub fn take_stdout(&mut self) -> Option<ProcessOutput> {
        self.inner.take_stdout()
    }

    /// Its standard error, if it has not been taken. Empty on a terminal.
    pub fn take_stderr(&mut self) -> Option<ProcessOutput> {
        self.inner.take_stderr()
    }

    /// A handle to signal it with while something else waits for it.
    pub fn control(&self) -> ProcessControl {
        self.inner.control()
    }

    /// Sends the signal `number`, 1 to 64, to its process group.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for another number.
    pub fn signal(&self, number: i32) -> Result<(), Error> {
        self.inner.signal(number).map_err(|error| {
            Error::because(ErrorKind::InvalidRequest, "cannot send the signal", error)
        })
    }

    /// Changes the size of its terminal, if it has one.
    pub fn resize(&self, size: PtySize) {
        self.inner.resize(size);
    }

    /// Ends it and everything that it has started.
    pub fn kill(&self) {
        self.inner.kill();
    }

    /// What it uses now, and has used. `None`: it has ended, and its outcome says what it has used.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if the guest does not live to tell, [`ErrorKind::InvalidRequest`] in a
    /// clone of a template that was made before guests could.
    pub async fn usage(&self) -> Result<Option<Usage>, Error> {
        usage(&self.inner.control(), &self.guest).await
    }

    /// Watches what it uses, also while something else waits for it.
    pub fn watch_usage(&self) -> UsageWatch {
        let mut interval = tokio::time::interval(SAMPLE);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        UsageWatch {
            control: self.inner.control(),
            guest: Arc::clone(&self.guest),
            interval,
        }
    }

    /// Waits for its end. Standard input that was not taken is closed, output that was not taken
    /// is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if the guest did not live to tell, or did not end it in time.
    pub async fn wait(&mut self) -> Result<Outcome, Error> {
        match until(self.deadline, &self.guest, self.inner.wait()).await? {
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(self.guest.explain(error).await),
        }
    }

    /// Waits for its end and collects up to `limit` bytes of each output that was not taken.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub async fn output(self, limit: usize) -> Result<Output, Error> {
        self.output_of(Vec::new(), limit).await
    }

    /// Feeds it `input` and collects what it writes.
    pub(super) async fn output_of(mut self, input: Vec<u8>, limit: usize) -> Result<Output, Error> {
        let guest = Arc::clone(&self.guest);
        let deadline = self.deadline;
        let stdin = self.take_stdin();
        let fed = async {
            if let Some(mut stdin) = stdin {
                // A program need not read what it is given.
                let _ = stdin.write_all(&input).await;
            }
        };
        let collected = self.inner.output(limit);
        let both = async { tokio::join!(collected, fed).0 };
        match until(deadline, &guest, both).await? {
            Ok(output) => Ok(Output {
                stdout: output.stdout.into(),
                stderr: output.stderr.into(),
                truncated: output.truncated || output.outcome.limit == Some(LimitHit::Output),
                outcome: output.outcome,
                compile: None,
                artifacts: None,
            }),
            Err(error) => Err(guest.explain(error).await),
        }
    }

    /// Feeds it `input` in the background, if there is any.
    pub(super) fn feed(&mut self, input: Vec<u8>) {
        if input.is_empty() {
            return;
        }
        if let Some(mut stdin) = self.take_stdin() {
            // Ends with the process, at the latest: writing fails then.
            tokio::spawn(async move {
                // A program need not read what it is given.
                let _ = stdin.write_all(&input).await;
            });
        }
    }
}

/// Looks every 100 ms at what a command or program uses. See [`Process::watch_usage`].
///
/// Each look is a question to the guest's agent, and costs the guest the reading of some files of its
/// kernel's; a program that nobody watches is not looked at. Peaks are the kernel's own, so that what
/// comes and goes between two looks is in them.
pub struct UsageWatch {
    control: ProcessControl,
    guest: Arc<Guest>,
    interval: Interval,
}

impl UsageWatch {
    /// The next look, the first at once. `None`: it has ended, and its outcome says what it has used.
    ///
    /// # Errors
    /// As for [`Process::usage`].
    pub async fn next(&mut self) -> Result<Option<Usage>, Error> {
        self.interval.tick().await;
        usage(&self.control, &self.guest).await
    }
}

async fn usage(control: &ProcessControl, guest: &Guest) -> Result<Option<Usage>, Error> {
    match control.usage().await {
        Ok(usage) => Ok(usage),
        Err(error) => Err(guest.explain(error).await),
    }
}

impl fmt::Debug for UsageWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageWatch").finish_non_exhaustive()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.pid())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// Awaits `work`, which takes `limit` or little longer in a guest that works.
pub(super) async fn within<T>(
    limit: Option<Duration>,
    guest: &Guest,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    until(Deadline::after(limit), guest, work).await
}

async fn until<T>(
    deadline: Option<Deadline>,
    guest: &Guest,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    let Some(deadline) = deadline else {
        return Ok(work.await);
    };
    match tokio::time::timeout_at(deadline.at.into(), work).await {
        Ok(done) => Ok(done),
        Err(_) => {
            guest.stop();
            let message = format!(
                "the guest did not end a command after its {} s, nor within {} s more, and was \
                 stopped{}",
                deadline.limit.as_secs_f64(),
                GRACE.as_secs(),
                guest.watcher.console_tail()
            );
            Err(Error::new(ErrorKind::GuestDied, message))
        }
    }
}
