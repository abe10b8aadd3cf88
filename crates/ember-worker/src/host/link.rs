//! One worker, as its owner knows it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ember_vmm::ExitReason;

use super::error::WorkerError;
use super::process::Process;
use crate::protocol::{
    Answer, CONSOLE_BYTES, Call, Message, Refusal, RefusalKind, Request, UNANSWERED,
};
use crate::wire;

/// How many pieces of console output may wait for a slow sink; further ones are lost to it.
const CONSOLE_QUEUE: usize = 64;

/// Receives console output.
pub type Sink = Box<dyn FnMut(&[u8]) + Send>;
/// Is called once, with how a VM ended.
pub type OnExit = Box<dyn FnOnce(&ExitReason) + Send>;

/// What there is to know of one worker.
pub(super) struct Link {
    process: Process,
    socket: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    last_id: u32,
    /// Calls under way, and what came of them.
    calls: HashMap<u32, Option<Result<Answer, Refusal>>>,
    ended: Option<ExitReason>,
    callbacks: Vec<OnExit>,
    /// The last of what the guest wrote on its console.
    console: VecDeque<u8>,
    sink: Option<SyncSender<Vec<u8>>>,
    /// Its process has ended, and was reaped.
    gone: bool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("process", &self.process.id())
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(process: Process, socket: OwnedFd) -> Self {
        Self {
            process,
            socket,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn process(&self) -> &Process {
        &self.process
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Asks for something that nobody waits for. Whatever is asked for later is done later.
    pub(super) fn post(&self, request: Request, files: &[BorrowedFd<'_>]) {
        let id = UNANSWERED;
        if let Err(error) = self.send(&Call { id, request }, files) {
            self.broken(&error);
        }
    }

    /// Asks for something, and waits for what comes of it, at most for `patience`.
    pub(super) fn call(
        &self,
        request: Request,
        files: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Answer, WorkerError> {
        self.numbered_call(request, files, patience).1
    }

    /// Asks for something that the guest may keep it waiting for. If there is no answer within
    /// `patience`, none is waited for any more, and the worker is not to blame.
    pub(super) fn call_guest(
        &self,
        request: Request,
        files: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Answer, WorkerError> {
        let id = self.ask(request, files);
        let deadline = Instant::now().checked_add(patience);
        let mut state = self.lock();
        loop {
            if state.gone || state.calls.get(&id).is_none_or(Option::is_some) {
                drop(state);
                return self.outcome(id, patience);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.unwrap_or(patience);
            if left.is_zero() {
                state.calls.remove(&id);
                let text = format!("the guest did not answer within {} s", patience.as_secs());
                return Err(WorkerError::Refused(Refusal::new(RefusalKind::Ended, text)));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// [`call`](Self::call), with the number that the call had.
    pub(super) fn numbered_call(
        &self,
        request: Request,
        files: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> (u32, Result<Answer, WorkerError>) {
        let id = self.ask(request, files);
        (id, self.outcome(id, patience))
    }

    /// Sends a call that is answered, and says its number.
    fn ask(&self, request: Request, files: &[BorrowedFd<'_>]) -> u32 {
        let mut state = self.lock();
        let id = match state.last_id.wrapping_add(1) {
            UNANSWERED => UNANSWERED + 1,
            id => id,
        };
        state.last_id = id;
        state.calls.insert(id, None);
        drop(state);
        if let Err(error) = self.send(&Call { id, request }, files) {
            self.broken(&error);
        }
        id
    }

    fn outcome(&self, id: u32, patience: Duration) -> Result<Answer, WorkerError> {
        let deadline = Instant::now().checked_add(patience);
        let mut state = self.lock();
        loop {
            if let Some(Some(_)) = state.calls.get(&id)
                && let Some(Some(outcome)) = state.calls.remove(&id)
            {
                return outcome.map_err(WorkerError::Refused);
            }
            if state.gone {
                state.calls.remove(&id);
                let reason = state.ended.clone().unwrap_or(ExitReason::Stopped);
                return Err(WorkerError::Ended(reason));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                drop(state);
                let seconds = patience.as_secs();
                let what = format!("it did not answer within {seconds} s");
                self.broken(&io::Error::other(what));
                state = self.lock();
            }
            // Once it was ended, the end of its process is waited for, however long that takes.
            state = match left {
                Some(left) if left > Duration::ZERO => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                _ => self
                    .changed
                    .wait_while(state, |state| !state.gone)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn send(&self, call: &Call, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let frame = call.encode().map_err(io::Error::other)?;
        // It never has so much to do that it does not come to take it.
        wire::send(self.socket(), &frame, files, false)
    }

    /// The worker does not do what it should: it is ended.
    pub(super) fn broken(&self, error: &io::Error) {
        // A socket whose other end is gone says so in one of these ways, by whether there was anything
        // left to be received (unix(7)).
        let is_gone = matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        );
        if !is_gone {
            let what = format!("the worker process {} failed: {error}", self.process.id());
            self.finish(ExitReason::MonitorFailed { what });
        }
        // Else it has ended by itself, and how is known in a moment.
        self.process.kill();
    }

    /// Ends the VM for this reason, unless it has ended.
    pub(super) fn stop(&self) {
        self.finish(ExitReason::Stopped);
        self.process.kill();
    }

    /// The VM has ended; only the first reason counts.
    fn finish(&self, reason: ExitReason) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        let reason = state.ended.insert(reason).clone();
        let callbacks = std::mem::take(&mut state.callbacks);
        drop(state);
        self.changed.notify_all();
        for callback in callbacks {
            callback(&reason);
        }
    }

    /// Has `callback` called when the VM ends, at once if it has.
    pub(super) fn on_exit(&self, callback: OnExit) {
        let mut state = self.lock();
        if let Some(reason) = state.ended.clone() {
            drop(state);
            callback(&reason);
        } else {
            state.callbacks.push(callback);
        }
    }

    /// Hands the console's output to `sink`, on a thread of its own: who does not take it must not
    /// keep others from being heard.
    pub(super) fn set_sink(&self, mut sink: Sink) -> io::Result<()> {
        let (sender, receiver) = sync_channel::<Vec<u8>>(CONSOLE_QUEUE);
        thread::Builder::new()
            .name("ember-console".to_owned())
            .spawn(move || receiver.iter().for_each(|bytes| sink(&bytes)))?;
        self.lock().sink = Some(sender);
        Ok(())
    }

    /// The last of what the guest wrote on its console.
    pub(super) fn console_tail(&self) -> Vec<u8> {
        self.lock().console.iter().copied().collect()
    }

    /// Takes a frame of the worker's. It has been exposed to its guest.
    pub(super) fn take(&self, frame: &[u8]) -> io::Result<()> {
        match Message::decode(frame).map_err(io::Error::other)? {
            Message::Answer { id, outcome } => {
                let mut state = self.lock();
                // What nobody asked for, or answered twice, is nothing.
                if let Some(slot) = state.calls.get_mut(&id) {
                    slot.get_or_insert(outcome);
                }
                drop(state);
                self.changed.notify_all();
            }
            Message::Console(bytes) => {
                let mut state = self.lock();
                // The end came with all that is to be kept.
                if state.ended.is_none() {
                    state.console.extend(bytes.iter());
                    let excess = state.console.len().saturating_sub(CONSOLE_BYTES);
                    state.console.drain(..excess);
                }
                if let Some(sink) = &state.sink {
                    let _ = sink.try_send(bytes.into_vec());
                }
            }
            Message::Ended { reason, console } => {
                let mut state = self.lock();
                if state.ended.is_none() && !console.is_empty() {
                    state.console = console.into_vec().into();
                }
                drop(state);
                self.finish(reason);
            }
        }
        Ok(())
    }

    /// Its process has ended so, and was reaped.
    pub(super) fn buried(&self, how: String) {
        self.finish(ExitReason::MonitorFailed { what: how });
        let mut state = self.lock();
        state.gone = true;
        // Ends the thread that hands the console's output on.
        state.sink = None;
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until its process has ended and was reaped.
    pub(super) fn wait_gone(&self) {
        let state = self.lock();
        drop(self.changed.wait_while(state, |state| !state.gone));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that is somebody's: it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Worker(pub(super) Arc<Link>);

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.stop();
    }
}
