//! What handles and the driver of one connection share.
//!
//! Everything is behind one lock, which is never held while anything waits. Handles put frames
//! into `outgoing` and wake the driver; the driver puts what arrives where the handles find it
//! and wakes them. Nothing here does I/O.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Closed;
use super::channel::Channel;
use crate::protocol::{
    EncodeError, ErrorCode, Failure, Frame, Kind, Malformed, Message, Stream, Usage, WINDOW,
};

/// With more than this waiting to be written, who has bulk to send waits.
const OUTGOING_HIGH: usize = 1024 * 1024;

/// One connection. The driver and every handle hold it; [`Link`] counts the handles.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(state: State) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
        })
    }

    /// Looks at the state with the lock held, then wakes who has to know, without it: what a
    /// waker does is not ours to know, and it may come back here.
    ///
    /// A panic in here is a bug of ours that is reported where it happens; the state is whole
    /// between any two statements, so others may go on.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        result
    }
}

/// The handles' hold on a connection: when the last is dropped, the driver ends it.
#[derive(Debug)]
pub(super) struct Link(pub(super) Arc<Shared>);

impl Drop for Link {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.abandoned = true;
            state.wake_driver();
        });
    }
}

impl std::ops::Deref for Link {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The answer to a request that is not a command.
#[derive(Debug)]
pub(super) enum Answer {
    Waiting(Option<Waker>),
    /// Nobody waits for it any more.
    Forgotten,
    Pong,
    PoweringOff,
    Frozen,
    Thawed,
    Identified,
    ClockSet,
    Failed(Failure),
}

/// How far the agent has been silenced.
#[derive(Debug, Default)]
enum Silence {
    #[default]
    None,
    /// It was frozen when its guest was cloned, and has no identity yet.
    Attached,
    /// It was asked to freeze: nothing may be sent but what is about that.
    Asked { request: u32, held: Vec<u8> },
    /// It has said that it is frozen, and may only answer.
    Kept(Vec<u8>),
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) outgoing: Vec<u8>,
    /// Whether the agent is frozen, and what it is told when it has been thawed.
    silence: Silence,
    /// Who is woken when the lock is released.
    wakers: Vec<Waker>,
    pub(super) driver: Option<Waker>,
    /// No handle is left.
    pub(super) abandoned: bool,
    /// The agent can say what commands use.
    pub(super) measures: bool,
    /// The agent said that it powers the guest off.
    powering_off: bool,
    closed: Option<Closed>,
    closed_waiters: Vec<Waker>,
    /// Who waits for `outgoing` to get shorter.
    blocked: Vec<Waker>,
    last_request: u32,
    channels: HashMap<u32, Channel>,
    answers: HashMap<u32, Answer>,
}

/// Keeps the waker of the task that polls, so that it alone is woken.
pub(super) fn keep_waker(slot: &mut Option<Waker>, context: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(context.waker()),
        None => *slot = Some(context.waker().clone()),
    }
}

fn unidentified() -> Failure {
    let message = "this is a clone that has no identity yet: it has to be identified first";
    Failure::new(ErrorCode::Frozen, message)
}

/// For handles.
impl State {
    /// Of an agent that was frozen, in a clone of its guest.
    pub(super) fn attached() -> Self {
        Self {
            silence: Silence::Attached,
            ..Self::default()
        }
    }

    pub(super) fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    pub(super) fn poll_closed(&mut self, context: &Context<'_>) -> Poll<Closed> {
        match &self.closed {
            Some(closed) => Poll::Ready(closed.clone()),
            None => {
                self.closed_waiters
                    .retain(|waker| !waker.will_wake(context.waker()));
                self.closed_waiters.push(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Ready when there is room for bulk.
    pub(super) fn poll_room(&mut self, context: &Context<'_>) -> Poll<()> {
        let held = match &self.silence {
            Silence::None | Silence::Attached => 0,
            Silence::Asked { held, .. } | Silence::Kept(held) => held.len(),
        };
        if self.outgoing.len() + held < OUTGOING_HIGH || self.closed.is_some() {
            return Poll::Ready(());
        }
        self.blocked
            .retain(|waker| !waker.will_wake(context.waker()));
        self.blocked.push(context.waker().clone());
        Poll::Pending
    }

    /// Sends a message. On a closed connection it goes nowhere, as it would have a moment earlier.
    pub(super) fn send(&mut self, request: u32, message: &Message<'_>) -> Result<(), EncodeError> {
        if self.closed.is_none() {
            match &mut self.silence {
                Silence::None | Silence::Attached => {
                    message.encode(request, &mut self.outgoing)?;
                    self.wake_driver();
                }
                Silence::Asked { held, .. } | Silence::Kept(held) => {
                    message.encode(request, held)?;
                }
            }
        }
        Ok(())
    }

    /// Sends a message that a frozen agent takes.
    fn send_through(&mut self, request: u32, message: &Message<'_>) -> Result<(), EncodeError> {
        if self.closed.is_none() {
            message.encode(request, &mut self.outgoing)?;
            self.wake_driver();
        }
        Ok(())
    }

    /// The agent listens again.
    fn end_silence(&mut self) {
        let silence = std::mem::take(&mut self.silence);
        if let Silence::Asked { held, .. } | Silence::Kept(held) = silence {
            self.outgoing.extend_from_slice(&held);
            self.wake_driver();
        }
    }

    pub(super) fn wake_driver(&mut self) {
        self.wakers.extend(self.driver.take());
    }

    fn new_request(&mut self) -> u32 {
        loop {
            self.last_request = self.last_request.wrapping_add(1);
            let request = self.last_request;
            if request != 0
                && !self.channels.contains_key(&request)
                && !self.answers.contains_key(&request)
            {
                return request;
            }
        }
    }

    /// Asks something whose answer is one frame.
    pub(super) fn ask(&mut self, message: &Message<'_>) -> Result<u32, Failure> {
        let refuse = |why: &str| Err(Failure::new(ErrorCode::InvalidRequest, why));
        match (message.kind(), &self.silence) {
            (Kind::Freeze | Kind::Thaw | Kind::Clock, Silence::Attached) => {
                return Err(unidentified());
            }
            (Kind::Freeze, Silence::Asked { .. } | Silence::Kept(_)) => {
                return refuse("it has been frozen, or is being frozen, already");
            }
            (Kind::Thaw, Silence::None | Silence::Asked { .. }) => {
                return refuse("it is not frozen");
            }
            (Kind::Clock, Silence::Asked { .. } | Silence::Kept(_)) => {
                return refuse("it is frozen, or is being frozen");
            }
            (Kind::Identify, Silence::Asked { .. } | Silence::Kept(_)) => {
                return refuse(
                    "it was frozen through this connection: it can only be thawed, or cloned and \
                     the clone attached to",
                );
            }
            _ => {}
        }
        let request = self.new_request();
        let sent = match message.kind() {
            // Before its answer to `Freeze` the agent may not be told anything.
            Kind::Ping | Kind::PowerOff if matches!(self.silence, Silence::Asked { .. }) => {
                self.send(request, message)
            }
            _ => self.send_through(request, message),
        };
        sent.map_err(|error| match error {
            EncodeError::Identity(error) => error.into(),
            error => Failure::new(ErrorCode::Internal, error.to_string()),
        })?;
        if let Message::Freeze = message {
            let held = Vec::new();
            self.silence = Silence::Asked { request, held };
        }
        self.answers.insert(request, Answer::Waiting(None));
        Ok(request)
    }

    pub(super) fn poll_answer(
        &mut self,
        request: u32,
        context: &Context<'_>,
    ) -> Poll<Result<Answer, Closed>> {
        match self.answers.get_mut(&request) {
            Some(Answer::Waiting(waker)) => match &self.closed {
                Some(closed) => Poll::Ready(Err(closed.clone())),
                None => {
                    keep_waker(waker, context);
                    Poll::Pending
                }
            },
            _ => match self.answers.remove(&request) {
                Some(answer) => Poll::Ready(Ok(answer)),
                None => Poll::Ready(Err(self.closed.clone().unwrap_or(Closed::ByHost))),
            },
        }
    }

    /// Nobody waits for the answer any more. It may still come, and is then dropped.
    pub(super) fn forget_answer(&mut self, request: u32) {
        match self.answers.get_mut(&request) {
            Some(answer @ Answer::Waiting(_)) if self.closed.is_none() => {
                *answer = Answer::Forgotten;
            }
            _ => {
                self.answers.remove(&request);
            }
        }
    }

    /// Asks for a command, on behalf of one handle.
    pub(super) fn start(&mut self, message: &Message<'_>) -> Result<u32, Failure> {
        let spawn = match message {
            Message::Spawn(spawn) => &**spawn,
            Message::Warm(warm) | Message::Run(warm) => &warm.command,
            other => {
                let message = format!("a {:?} frame starts no command", other.kind());
                return Err(Failure::new(ErrorCode::Internal, message));
            }
        };
        if let Silence::Attached = self.silence {
            return Err(unidentified());
        }
        let request = self.new_request();
        self.send(request, message).map_err(|error| match error {
            EncodeError::Spawn(error) => error.into(),
            EncodeError::Warm(error) => error.into(),
            error => Failure::new(ErrorCode::Internal, error.to_string()),
        })?;
        self.channels.insert(
            request,
            Channel {
                handles: 1,
                cold: matches!(message, Message::Warm(_)),
                ..Channel::new(spawn)
            },
        );
        Ok(request)
    }

    /// The channel of a handle that exists, which keeps it in the map.
    pub(super) fn channel(&mut self, request: u32) -> Option<&mut Channel> {
        self.channels.get_mut(&request)
    }

    /// One more handle for the same command.
    pub(super) fn add_handle(&mut self, request: u32) {
        if let Some(channel) = self.channels.get_mut(&request) {
            channel.handles += 1;
        }
    }

    pub(super) fn drop_handle(&mut self, request: u32) {
        if let Some(channel) = self.channels.get_mut(&request) {
            channel.handles -= 1;
        }
        self.collect(request);
    }

    /// Forgets a command that neither side speaks of any more.
    fn collect(&mut self, request: u32) {
        let closed = self.closed.is_some();
        if let Some(channel) = self.channels.get(&request)
            && channel.handles == 0
            && (closed || channel.finished())
        {
            self.channels.remove(&request);
        }
    }

    /// Waits for what `ready` looks for in a channel.
    pub(super) fn poll_channel<T>(
        &mut self,
        request: u32,
        context: &Context<'_>,
        ready: impl FnOnce(&Channel) -> Option<T>,
    ) -> Poll<Result<T, Closed>> {
        let closed = self.closed.clone();
        let Some(channel) = self.channels.get_mut(&request) else {
            return Poll::Ready(Err(closed.unwrap_or(Closed::ByHost)));
        };
        if let Some(value) = ready(channel) {
            return Poll::Ready(Ok(value));
        }
        if let Some(closed) = closed {
            return Poll::Ready(Err(closed));
        }
        keep_waker(&mut channel.waiter, context);
        Poll::Pending
    }

    /// Asks what a command uses. Says the number of the question.
    pub(super) fn measure(&mut self, request: u32) -> Result<u64, Failure> {
        if !self.measures {
            let message = "the agent cannot say it";
            return Err(Failure::new(ErrorCode::Unsupported, message));
        }
        let Some(channel) = self.channels.get_mut(&request) else {
            return Ok(0);
        };
        if channel.outcome.is_some() {
            return Ok(0);
        }
        channel.usage.asked += 1;
        let number = channel.usage.asked;
        // Only commands and bulk can be refused by `send`.
        let _ = self.send(request, &Message::Measure);
        Ok(number)
    }

    /// Waits for the answer to this question, or for the command's end: then there is none.
    pub(super) fn poll_measured(
        &mut self,
        request: u32,
        number: u64,
        context: &Context<'_>,
    ) -> Poll<Result<Option<Usage>, Closed>> {
        let closed = self.closed.clone();
        let Some(channel) = self.channels.get_mut(&request) else {
            return Poll::Ready(Err(closed.unwrap_or(Closed::ByHost)));
        };
        let usage = &mut channel.usage;
        if channel.outcome.is_some() {
            Poll::Ready(Ok(None))
        } else if usage.answered >= number {
            Poll::Ready(Ok(usage.last.clone()))
        } else if let Some(closed) = closed {
            Poll::Ready(Err(closed))
        } else {
            usage.waiters.retain(|it| !it.will_wake(context.waker()));
            usage.waiters.push(context.waker().clone());
            Poll::Pending
        }
    }

    /// Counts bytes of an output as read and lets the agent send more.
    pub(super) fn consume(&mut self, request: u32, stream: Stream, bytes: usize) {
        let Some(channel) = self.channels.get_mut(&request) else {
            return;
        };
        if let Some(bytes) = channel.output(stream).consume(bytes) {
            // Only commands and bulk can be refused by `send`.
            let _ = self.send(request, &Message::Window { stream, bytes });
        }
    }

    /// Drops what has come of an output and whatever still comes.
    pub(super) fn discard(&mut self, request: u32, stream: Stream) {
        let Some(channel) = self.channels.get_mut(&request) else {
            return;
        };
        let output = channel.output(stream);
        output.discard = true;
        let held = std::mem::take(&mut output.buffer).len();
        self.consume(request, stream, held);
    }
}

/// For the driver.
impl State {
    /// The driver has taken what was outgoing.
    pub(super) fn wake_blocked(&mut self) {
        self.wakers.append(&mut self.blocked);
    }

    /// The connection is over; everybody who waits hears why.
    pub(super) fn close(&mut self, reason: Closed) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(match reason {
            Closed::ByAgent | Closed::Io(_) if self.powering_off => Closed::PoweredOff,
            reason => reason,
        });
        self.outgoing = Vec::new();
        self.wakers.append(&mut self.closed_waiters);
        self.wake_blocked();
        for answer in self.answers.values_mut() {
            if let Answer::Waiting(waker) = answer {
                self.wakers.extend(waker.take());
            }
        }
        self.answers
            .retain(|_, answer| !matches!(answer, Answer::Forgotten));
        self.wakers
            .extend(self.channels.values_mut().flat_map(Channel::take_wakers));
        self.channels.retain(|_, channel| channel.handles > 0);
    }

    /// Takes a frame in. An error is the agent's breach of the protocol.
    pub(super) fn receive(&mut self, frame: Frame<'_>) -> Result<(), Received> {
        let Frame { kind, request, .. } = frame;
        let message = Message::decode(frame)?;
        let unexpected = Err(Received::Malformed(Malformed::Unexpected { kind }));
        match message {
            Message::Error(failure) if request == 0 => return Err(Received::Refused(failure)),
            Message::Pong => return self.answer(request, kind, Answer::Pong),
            Message::ClockSet => return self.answer(request, kind, Answer::ClockSet),
            Message::PoweringOff => {
                self.powering_off = true;
                return self.answer(request, kind, Answer::PoweringOff);
            }
            Message::Frozen => return self.frozen(request),
            Message::Thawed => {
                let Silence::Kept(_) = self.silence else {
                    return unexpected;
                };
                self.end_silence();
                return self.answer(request, kind, Answer::Thawed);
            }
            Message::Identified => {
                if let Silence::Attached = self.silence {
                    self.silence = Silence::None;
                }
                return self.answer(request, kind, Answer::Identified);
            }
            Message::Error(failure) if self.answers.contains_key(&request) => {
                // It cannot be frozen.
                if matches!(self.silence, Silence::Asked { request: it, .. } if it == request) {
                    self.end_silence();
                }
                return self.answer(request, kind, Answer::Failed(failure));
            }
            // A frozen agent does nothing but answer.
            _ if matches!(self.silence, Silence::Kept(_) | Silence::Attached) => {
                return unexpected;
            }
            _ => {}
        }
        let Some(channel) = self.channels.get_mut(&request) else {
            return unexpected;
        };
        match message {
            Message::Started { pid } if channel.started.is_none() => {
                channel.started = Some(Ok(pid));
                self.wakers.extend(channel.waiter.take());
            }
            Message::Error(failure) if channel.started.is_none() => {
                channel.started = Some(Err(failure));
                self.wakers.extend(channel.take_wakers());
            }
            // Everything below is about a command that has been started.
            _ if !matches!(channel.started, Some(Ok(_))) => return unexpected,
            Message::Data {
                stream: Stream::Stdin,
                ..
            } => return unexpected,
            Message::Data { stream, bytes, end } => {
                let output = channel.output(stream);
                if output.ended {
                    return unexpected;
                }
                // A frame's length is at most `MAX_DATA`.
                let length = bytes.len() as u32;
                let Some(window) = output.window.checked_sub(length) else {
                    return Err(Malformed::Window { request, stream }.into());
                };
                output.window = window;
                output.ended = end;
                self.wakers.extend(output.waker.take());
                if output.discard {
                    self.consume(request, stream, bytes.len());
                } else {
                    output.buffer.extend(bytes);
                }
            }
            Message::Window {
                stream: Stream::Stdin,
                bytes,
            } => {
                let stdin = &mut channel.stdin;
                let credit = stdin
                    .credit
                    .checked_add(bytes)
                    .filter(|&credit| credit <= WINDOW);
                let Some(credit) = credit else {
                    return Err(Malformed::Window {
                        request,
                        stream: Stream::Stdin,
                    }
                    .into());
                };
                stdin.credit = credit;
                self.wakers.extend(stdin.waker.take());
            }
            Message::Reset {
                stream: Stream::Stdin,
            } => {
                channel.stdin.closed = true;
                self.wakers.extend(channel.stdin.waker.take());
            }
            Message::Warmed if channel.cold => {
                channel.cold = false;
                channel.warm = true;
                self.wakers.extend(channel.waiter.take());
            }
            Message::Measured(usage)
                if channel.usage.answered < channel.usage.asked && channel.outcome.is_none() =>
            {
                channel.usage.answered += 1;
                channel.usage.last = Some(usage);
                self.wakers.append(&mut channel.usage.waiters);
            }
            Message::Exited(outcome) if channel.outcome.is_none() => {
                channel.outcome = Some(outcome);
                channel.stdin.closed = true;
                self.wakers.extend(channel.take_wakers());
            }
            _ => return unexpected,
        }
        self.collect(request);
        Ok(())
    }

    fn frozen(&mut self, request: u32) -> Result<(), Received> {
        let kind = Kind::Frozen;
        match std::mem::take(&mut self.silence) {
            Silence::Asked { held, .. } => self.silence = Silence::Kept(held),
            _ => return Err(Malformed::Unexpected { kind }.into()),
        }
        let forgotten = matches!(self.answers.get(&request), Some(Answer::Forgotten));
        self.answer(request, kind, Answer::Frozen)?;
        if forgotten {
            // Who asked has gone, and nobody else would thaw it.
            if let Ok(request) = self.ask(&Message::Thaw) {
                self.forget_answer(request);
            }
        }
        Ok(())
    }

    fn answer(&mut self, request: u32, kind: Kind, answer: Answer) -> Result<(), Received> {
        match self.answers.get_mut(&request) {
            Some(slot @ Answer::Waiting(_)) => {
                if let Answer::Waiting(waker) = std::mem::replace(slot, answer) {
                    self.wakers.extend(waker);
                }
                Ok(())
            }
            Some(Answer::Forgotten) => {
                self.answers.remove(&request);
                Ok(())
            }
            _ => Err(Malformed::Unexpected { kind }.into()),
        }
    }
}

/// Why a connection has to be closed after a frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum Received {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Refused(Failure),
}
