//! The task behind a session: it alone speaks with the interpreter's keeper.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ember_guest::host::{self, ProcessOutput, ProcessStdin};
use ember_guest::protocol::{
    MAX_SESSION_PART, SESSION_VERSION, SessionDecoder, SessionFrame, Status,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::cell::{CellEnd, CellEvent, CellVerdict, SessionEnd};
use super::events::Budget;
use super::options::Timing;
use super::{Call, Control, Item, Shared};
use crate::error::{Error, ErrorKind};
use crate::sandbox::Guest;

/// How long the guest may take to say how a process ended that has ended, or to end one.
const LAST_WORDS: Duration = Duration::from_secs(5);

pub(super) struct Actor {
    pub(super) process: host::Process,
    pub(super) requests: mpsc::UnboundedSender<Vec<u8>>,
    pub(super) stdout: ProcessOutput,
    pub(super) guest: Arc<Guest>,
    pub(super) shared: Arc<Shared>,
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) controls: mpsc::UnboundedReceiver<Control>,
    pub(super) timing: Timing,
    /// What is kept of a cell: of each stream, and of its values.
    pub(super) most: (usize, usize),
    /// The process is the keeper itself, and not who reaches it in a clone.
    pub(super) is_keeper: bool,
}

/// The cell that runs.
struct Current {
    listener: Option<mpsc::Sender<Item>>,
    /// What the listener has not been told yet. While there is something, nothing more is read.
    pending: VecDeque<Item>,
    budget: Budget,
    begun: Instant,
    deadline: Option<Instant>,
    interrupted: Option<Cause>,
    /// It is interrupted once more then: an interpreter that was just about to begin with the cell
    /// may have missed the first.
    remind_at: Option<Instant>,
    /// It has to have listened by then.
    kill_at: Option<Instant>,
    has_failed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Caller,
    Timeout,
    /// Nobody wants to know what comes of it any more.
    Abandoned,
}

/// When a session ends by itself.
#[derive(Default)]
struct Clock {
    has_begun: bool,
    idle: Option<Instant>,
    time_to_live: Option<Instant>,
    max_age: Option<Instant>,
}

impl Clock {
    /// The interpreter is there. Said again, it is nothing.
    fn begin(&mut self, timing: &Timing) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.time_to_live = after(timing.time_to_live);
            self.max_age = after(timing.max_age);
        }
    }
}

/// Writes what is to be said to a keeper, which need not read it.
pub(super) fn writer(mut stdin: ProcessStdin) -> mpsc::UnboundedSender<Vec<u8>> {
    let (sender, mut requests) = mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Some(bytes) = requests.recv().await {
            // It is over: whoever reads from it will know.
            if stdin.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    sender
}

fn after(limit: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(limit?)
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// What the listener of the current cell allows.
enum Told {
    Some,
    Gone,
}

async fn tell(current: &mut Option<Current>) -> Told {
    let Some((sender, pending)) = current.as_mut().and_then(|current| {
        let sender = current.listener.as_ref()?;
        Some((sender, &mut current.pending))
    }) else {
        return std::future::pending().await;
    };
    if pending.is_empty() {
        sender.closed().await;
        return Told::Gone;
    }
    match sender.reserve().await {
        Ok(permit) => {
            if let Some(item) = pending.pop_front() {
                permit.send(item);
            }
            Told::Some
        }
        Err(_) => Told::Gone,
    }
}

impl Actor {
    /// Until the session ends. `first` is who hears what the interpreter writes while it starts.
    pub(super) async fn run(mut self, first: Option<mpsc::Sender<Item>>) {
        let start = after(Some(self.timing.start));
        // In a clone, a cell may be running; nobody here has asked for it.
        let mut current = Some(self.cell(first, None));
        if self.is_keeper
            && let Some(current) = &mut current
        {
            current.kill_at = start;
        }
        let mut clock = Clock::default();
        if !self.is_keeper {
            clock.begin(&self.timing);
        }
        let (end, error) = self.serve(&mut current, &mut clock).await;
        self.shared.end(end.clone(), error);
        if let Some(current) = current {
            self.last_item(current, end).await;
        }
        let _ = self.requests.send(frame(&SessionFrame::End));
        let over = async {
            let mut buffer = vec![0; MAX_SESSION_PART];
            loop {
                tokio::select! {
                    read = self.stdout.read(&mut buffer) => if !matches!(read, Ok(1..)) { return },
                    // Who has waited for a turn has no answer, and finds the reason.
                    Some(call) = self.calls.recv() => drop(call),
                }
            }
        };
        // If the keeper does not listen either, it ends with its process, when this is dropped.
        let _ = tokio::time::timeout(LAST_WORDS, over).await;
    }

    fn cell(&self, listener: Option<mpsc::Sender<Item>>, timeout: Option<Duration>) -> Current {
        Current {
            listener,
            pending: VecDeque::new(),
            budget: Budget::new(self.most.0, self.most.1),
            begun: Instant::now(),
            deadline: after(timeout),
            interrupted: None,
            remind_at: None,
            kill_at: None,
            has_failed: false,
        }
    }

    async fn serve(
        &mut self,
        current: &mut Option<Current>,
        clock: &mut Clock,
    ) -> (SessionEnd, Option<Error>) {
        let mut decoder = SessionDecoder::default();
        let mut buffer = vec![0; MAX_SESSION_PART];
        loop {
            let (deadline, remind_at, kill_at, is_behind) = match current {
                Some(it) => (
                    it.deadline,
                    it.remind_at,
                    it.kill_at,
                    !it.pending.is_empty(),
                ),
                None => (None, None, None, false),
            };
            let idle = clock.idle.filter(|_| current.is_none());
            tokio::select! {
                biased;
                control = self.controls.recv() => match control {
                    None | Some(Control::Close) => return (SessionEnd::Closed, None),
                    Some(Control::KeepAlive) => {
                        clock.idle = after(self.timing.idle);
                        clock.time_to_live = after(self.timing.time_to_live);
                    }
                    Some(Control::Interrupt(number)) => {
                        if let Some(current) = current && number == self.shared.cell() {
                            self.interrupt(current, Cause::Caller);
                        }
                    }
                },
                () = until(clock.max_age) => return (SessionEnd::MaxAge, None),
                () = until(clock.time_to_live) => return (SessionEnd::TimeToLive, None),
                () = until(idle) => return (SessionEnd::Idle, None),
                () = until(kill_at) => return (SessionEnd::Deaf, None),
                () = until(remind_at) => if let Some(current) = current {
                    current.remind_at = None;
                    let _ = self.requests.send(frame(&SessionFrame::Interrupt));
                },
                () = until(deadline) => if let Some(current) = current {
                    current.deadline = None;
                    self.interrupt(current, Cause::Timeout);
                },
                told = tell(current) => if let (Told::Gone, Some(current)) = (told, &mut *current) {
                    current.listener = None;
                    current.pending.clear();
                    self.interrupt(current, Cause::Abandoned);
                },
                call = self.calls.recv(), if current.is_none() => {
                    let Some(call) = call else { return (SessionEnd::Closed, None) };
                    // A caller that has gone away meanwhile asked for nothing.
                    if !call.listener.is_closed() {
                        let timeout = call.cell.timeout.or(self.timing.cell);
                        *current = Some(self.cell(Some(call.listener), timeout));
                        self.shared.began();
                        let _ = self.requests.send(SessionFrame::pieces(call.cell.code.as_bytes()));
                    }
                }
                read = self.stdout.read(&mut buffer), if !is_behind => {
                    let count = match read {
                        Ok(count @ 1..) => count,
                        Ok(_) | Err(_) => return self.outcome().await,
                    };
                    decoder.feed(buffer.get(..count).unwrap_or_default());
                    loop {
                        let frame = match decoder.next_frame() {
                            Ok(Some(frame)) => frame,
                            Ok(None) => break,
                            Err(_) => return (SessionEnd::Nonsense, None),
                        };
                        if let Some(end) = self.take(frame, current, clock).await {
                            return (end, None);
                        }
                    }
                }
            }
        }
    }

    /// Takes what the keeper says. Gives the session's end, if that is what it is.
    async fn take(
        &mut self,
        frame: SessionFrame,
        current: &mut Option<Current>,
        clock: &mut Clock,
    ) -> Option<SessionEnd> {
        let event = match (frame, &mut *current) {
            (SessionFrame::Welcome { version, busy }, Some(_)) => {
                if version != SESSION_VERSION {
                    return Some(SessionEnd::Nonsense);
                }
                if !busy {
                    self.finish(current, clock).await;
                }
                return None;
            }
            (SessionFrame::Done, Some(_)) => {
                self.finish(current, clock).await;
                return None;
            }
            (SessionFrame::Ended(status), _) => {
                return Some(match status {
                    Status::Exited(code) => SessionEnd::Exited(code),
                    Status::Signaled(signal) => SessionEnd::Signaled(signal),
                    _ => SessionEnd::Lost,
                });
            }
            (SessionFrame::Stdout(bytes), Some(cell)) => cell.budget.output(bytes, true),
            (SessionFrame::Stderr(bytes), Some(cell)) => cell.budget.output(bytes, false),
            (SessionFrame::Event { part, more }, Some(cell)) => cell.budget.event(&part, more),
            // The rest of what was on its way when the cell ended.
            (SessionFrame::Stdout(_) | SessionFrame::Stderr(_), None) => return None,
            _ => return Some(SessionEnd::Nonsense),
        };
        if let (Some(event), Some(cell)) = (event, current) {
            cell.has_failed |= matches!(event, CellEvent::Error(_));
            if cell.listener.is_some() {
                cell.pending.push_back(Item::Event(event));
            }
        }
        None
    }

    async fn finish(&mut self, current: &mut Option<Current>, clock: &mut Clock) {
        clock.begin(&self.timing);
        clock.idle = after(self.timing.idle);
        let Some(current) = current.take() else {
            return;
        };
        let verdict = match (current.interrupted, current.has_failed) {
            (Some(Cause::Timeout), _) => CellVerdict::Timeout,
            (Some(_), true) => CellVerdict::Interrupted,
            (None, true) => CellVerdict::Error,
            (_, false) => CellVerdict::Success,
        };
        self.conclude(current, verdict).await;
    }

    /// Tells the listener the last of a cell.
    async fn conclude(&self, mut current: Current, verdict: CellVerdict) {
        let end = CellEnd {
            verdict,
            wall: current.begun.elapsed(),
            truncated: current.budget.truncated,
        };
        let Some(listener) = current.listener.take() else {
            return;
        };
        // A listener that does not listen keeps nobody but itself waiting: this task's next cell is
        // a matter of another.
        current.pending.push_back(Item::End(end));
        let pending = current.pending;
        if pending.len() <= listener.capacity() {
            for item in pending {
                let _ = listener.try_send(item);
            }
            return;
        }
        tokio::spawn(async move {
            for item in pending {
                if listener.send(item).await.is_err() {
                    return;
                }
            }
        });
    }

    async fn last_item(&self, mut current: Current, end: SessionEnd) {
        let error = match end {
            SessionEnd::GuestDied => self.shared.first_error(),
            _ => None,
        };
        match error {
            Some(error) => {
                if let Some(listener) = current.listener.take() {
                    let pending = std::mem::take(&mut current.pending);
                    tokio::spawn(async move {
                        for item in pending.into_iter().chain([Item::Failed(error)]) {
                            let _ = listener.send(item).await;
                        }
                    });
                }
            }
            None => self.conclude(current, CellVerdict::Ended(end)).await,
        }
    }

    fn interrupt(&self, current: &mut Current, cause: Cause) {
        let is_first = current.interrupted.is_none();
        if is_first || cause != Cause::Caller {
            current.interrupted = Some(cause);
        }
        // Who asks for it decides what to do if it does not help.
        if cause != Cause::Caller && current.kill_at.is_none() {
            current.remind_at = after(Some(self.timing.patience / 2));
            current.kill_at = after(Some(self.timing.patience));
        }
        let _ = self.requests.send(frame(&SessionFrame::Interrupt));
    }

    /// Why there is nothing more to be read.
    async fn outcome(&mut self) -> (SessionEnd, Option<Error>) {
        let outcome = tokio::time::timeout(LAST_WORDS, self.process.wait()).await;
        match outcome {
            Ok(Ok(outcome)) => (
                match outcome.limit {
                    Some(limit) if self.is_keeper => SessionEnd::Limit(limit),
                    _ => SessionEnd::Lost,
                },
                None,
            ),
            Ok(Err(error)) => {
                let error = self.guest.explain(error).await;
                match error.kind() {
                    ErrorKind::Closed => (SessionEnd::Closed, None),
                    _ => (SessionEnd::GuestDied, Some(error)),
                }
            }
            Err(_) => {
                let message = "the guest did not say how a session's interpreter ended";
                let error = Error::new(ErrorKind::GuestDied, message);
                (SessionEnd::GuestDied, Some(error))
            }
        }
    }
}

fn frame(frame: &SessionFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}
