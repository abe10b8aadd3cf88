//! A command that runs in the guest, and its streams.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::channel::Channel;
use super::link::{Link, State, keep_waker};
use super::{Closed, Command, Error, RunnerId, WarmCommand, WarmRunner};
use crate::protocol::{
    ErrorCode, Failure, MAX_DATA, MAX_MESSAGE, Message, Outcome, PtySize, Stream, Usage,
};

/// One user of a command's channel, which lasts until the last is dropped.
#[derive(Debug)]
struct Handle {
    link: Arc<Link>,
    request: u32,
}

impl Handle {
    fn another(&self) -> Self {
        self.link.with(|state| state.add_handle(self.request));
        Self {
            link: Arc::clone(&self.link),
            request: self.request,
        }
    }

    /// Looks at the channel with the lock held.
    fn with<T>(&self, act: impl FnOnce(&mut State, u32) -> T) -> T {
        self.link.with(|state| act(state, self.request))
    }

    /// Sends a message that has no limits to break.
    fn send(&self, message: &Message<'_>) {
        // Only commands and bulk can be refused by `State::send`.
        let _ = self.with(|state, request| state.send(request, message));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.with(|state| state.drop_handle(self.request));
    }
}

/// A command that runs in the guest.
///
/// Dropped before its outcome is known, it ends the command and everything it has started.
#[derive(Debug)]
pub struct Process {
    handle: Handle,
    name: String,
    pid: u32,
    stdin: Option<ProcessStdin>,
    stdout: Option<ProcessOutput>,
    stderr: Option<ProcessOutput>,
    /// It lives on when this is dropped.
    let_go: bool,
}

/// The most that is kept of each output of a runner that does not get warm.
const MAX_SAID: usize = 64 * 1024;

/// What a command that ran to its end has written, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub outcome: Outcome,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// More was written than asked for; the rest was dropped.
    pub truncated: bool,
}

impl Process {
    pub(super) async fn spawn(link: &Arc<Link>, command: Command) -> Result<Self, Error> {
        let name = command.name();
        let spawn = command.into_spawn();
        let piped = spawn.wants_stdin();
        Self::start(link, name, piped, &Message::Spawn(Cow::Owned(spawn))).await
    }

    pub(super) async fn run_warm(
        link: &Arc<Link>,
        runner: &RunnerId,
        program: WarmCommand,
    ) -> Result<Self, Error> {
        let warm = program.into_wire(runner);
        let piped = warm.command.wants_stdin();
        let name = format!("a program of {runner}");
        Self::start(link, name, piped, &Message::Run(Cow::Owned(warm))).await
    }

    /// Starts a runner and lets it go once it is warm.
    pub(super) async fn warm(link: &Arc<Link>, runner: WarmRunner) -> Result<(), Error> {
        let name = format!("the runner {}", runner.id());
        let message = Message::Warm(Cow::Owned(runner.into_wire()));
        let mut process = Self::start(link, name, false, &message).await?;
        let outputs = [process.take_stdout(), process.take_stderr()];
        let mut said = outputs.map(|output| Collected::new(output, MAX_SAID));
        let ended = poll_fn(|context| {
            for output in &mut said {
                let _ = output.poll(context);
            }
            process.handle.with(|state, request| {
                state.poll_channel(request, context, |channel| {
                    match (&channel.outcome, channel.warm) {
                        (Some(outcome), _) => Some(Some(outcome.status)),
                        (None, true) => Some(None),
                        (None, false) => None,
                    }
                })
            })
        })
        .await
        .map_err(|closed| Error::closed(process.attempt("warm up"), closed))?;
        let Some(status) = ended else {
            process.let_go = true;
            // What it still writes is dropped as it comes.
            for stream in [Stream::Stdout, Stream::Stderr] {
                process
                    .handle
                    .with(|state, request| state.discard(request, stream));
            }
            said.into_iter().for_each(Collected::let_go);
            return Ok(());
        };
        // The end of what it wrote is behind its outcome at the latest.
        poll_fn(|context| {
            let pending = said
                .iter_mut()
                .any(|output| output.poll(context).is_pending());
            if pending {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        let text: Vec<u8> = said.into_iter().flat_map(|output| output.bytes).collect();
        // Interpreters say last what matters most.
        let last = text.len().saturating_sub(MAX_MESSAGE - 100);
        let text = String::from_utf8_lossy(&text[last..]);
        let message = format!(
            "it ended before it was warm ({status}):\n{}",
            text.trim_end()
        );
        let failure = Failure::new(ErrorCode::WarmUp, message);
        Err(Error::refused(process.attempt("warm up"), failure))
    }

    async fn start(
        link: &Arc<Link>,
        name: String,
        piped: bool,
        message: &Message<'_>,
    ) -> Result<Self, Error> {
        poll_fn(|context| link.with(|state| state.poll_room(context))).await;
        let request = link
            .with(|state| state.start(message))
            .map_err(|failure| Error::refused(format!("run {name:?} in the guest"), failure))?;
        let handle = Handle {
            link: Arc::clone(link),
            request,
        };
        let stream = |stream| ProcessOutput {
            handle: handle.another(),
            stream,
            let_go: false,
        };
        let stdin = piped.then(|| ProcessStdin {
            handle: handle.another(),
        });
        let stdout = Some(stream(Stream::Stdout));
        let stderr = Some(stream(Stream::Stderr));
        let mut process = Self {
            handle,
            name,
            pid: 0,
            stdin,
            stdout,
            stderr,
            let_go: false,
        };
        // From here on, dropping this future drops the process and so ends the command.
        process.pid = process
            .poll_until(|channel| channel.started.clone())
            .await
            .map_err(|closed| Error::closed(process.attempt("run"), closed))?
            .map_err(|failure| Error::refused(process.attempt("run"), failure))?;
        Ok(process)
    }

    fn attempt(&self, what: &str) -> String {
        format!("{what} {:?} in the guest", self.name)
    }

    async fn poll_until<T>(&self, ready: impl Fn(&Channel) -> Option<T>) -> Result<T, Closed> {
        poll_fn(|context| {
            self.handle
                .with(|state, request| state.poll_channel(request, context, &ready))
        })
        .await
    }

    /// Its process number in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its number on this connection.
    pub fn id(&self) -> u32 {
        self.handle.request
    }

    /// Its standard input, if it was asked for and has not been taken.
    pub fn take_stdin(&mut self) -> Option<ProcessStdin> {
        self.stdin.take()
    }

    /// Its standard output, if it has not been taken.
    pub fn take_stdout(&mut self) -> Option<ProcessOutput> {
        self.stdout.take()
    }

    /// Its standard error, if it has not been taken. Empty on a terminal.
    pub fn take_stderr(&mut self) -> Option<ProcessOutput> {
        self.stderr.take()
    }

    /// What can be done to it while something else waits for it.
    pub fn control(&self) -> ProcessControl {
        ProcessControl {
            handle: Arc::new(self.handle.another()),
        }
    }

    /// See [`ProcessControl::signal`].
    pub fn signal(&self, number: i32) -> Result<(), Error> {
        signal(&self.handle, number)
    }

    /// See [`ProcessControl::resize`].
    pub fn resize(&self, size: PtySize) {
        self.handle.send(&Message::Resize(size));
    }

    /// See [`ProcessControl::kill`].
    pub fn kill(&self) {
        self.handle.send(&Message::Kill);
    }

    /// Waits for its outcome: its own end and that of its outputs, or its timeout.
    ///
    /// Standard input that was not taken is closed, and output that was not taken is dropped as it
    /// comes, so that neither can keep the command from ending. Output that was taken has to be
    /// read, as with a pipe.
    pub async fn wait(&mut self) -> Result<Outcome, Error> {
        drop(self.stdin.take());
        for output in [&self.stdout, &self.stderr].into_iter().flatten() {
            output
                .handle
                .with(|state, request| state.discard(request, output.stream));
        }
        self.poll_until(|channel| channel.outcome.clone())
            .await
            .map_err(|closed| Error::closed(self.attempt("learn the outcome of"), closed))
    }

    /// Waits for its outcome and collects up to `limit` bytes of each output that was not taken.
    pub async fn output(mut self, limit: usize) -> Result<Output, Error> {
        drop(self.stdin.take());
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let mut collected = [Collected::new(stdout, limit), Collected::new(stderr, limit)];
        poll_fn(|context| {
            let mut pending = false;
            for output in &mut collected {
                pending |= output.poll(context).is_pending();
            }
            if pending {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        let outcome = self.wait().await?;
        let [stdout, stderr] = collected;
        let truncated = stdout.truncated || stderr.truncated;
        Ok(Output {
            outcome,
            stdout: stdout.bytes,
            stderr: stderr.bytes,
            truncated,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let alive = self.handle.with(|state, request| {
            state.channel(request).is_some_and(|channel| {
                channel.outcome.is_none() && !matches!(channel.started, Some(Err(_)))
            })
        });
        if alive && !self.let_go {
            self.kill();
        }
    }
}

/// An output on its way into memory.
struct Collected {
    output: Option<ProcessOutput>,
    bytes: Vec<u8>,
    limit: usize,
    truncated: bool,
}

impl Collected {
    fn new(output: Option<ProcessOutput>, limit: usize) -> Self {
        Self {
            output,
            bytes: Vec::new(),
            limit,
            truncated: false,
        }
    }

    /// Drops the output without a word to the agent.
    fn let_go(mut self) {
        if let Some(output) = &mut self.output {
            output.let_go = true;
        }
    }

    /// Ready at the end of the output, whichever way it came: if the connection broke, waiting for
    /// the outcome says so.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(output) = &self.output {
            let (bytes, limit, truncated) = (&mut self.bytes, self.limit, &mut self.truncated);
            let read = output.poll_take(context, usize::MAX, |slice| {
                let room = limit - bytes.len();
                *truncated |= slice.len() > room;
                bytes.extend_from_slice(slice.get(..room).unwrap_or(slice));
            });
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => self.output = None,
                Poll::Ready(Ok(_)) => {}
            }
        }
        Poll::Ready(())
    }
}

/// Signals, resizes and ends a command. Any number may exist; dropping one does nothing.
#[derive(Clone, Debug)]
pub struct ProcessControl {
    handle: Arc<Handle>,
}

impl ProcessControl {
    /// Sends a signal, 1 to 64, to the command's process group, as a terminal does. On a command
    /// that has ended it does nothing.
    pub fn signal(&self, number: i32) -> Result<(), Error> {
        signal(&self.handle, number)
    }

    /// Changes the size of its terminal. Without one, nothing happens.
    pub fn resize(&self, size: PtySize) {
        self.handle.send(&Message::Resize(size));
    }

    /// Ends the command and everything it has started, at once (`SIGKILL`).
    pub fn kill(&self) {
        self.handle.send(&Message::Kill);
    }

    /// What the command uses now, and has used. `None`: it has ended, and its
    /// [`Outcome`] says what it has used.
    ///
    /// # Errors
    /// If the agent is gone, or of a time when agents could not say it.
    pub async fn usage(&self) -> Result<Option<Usage>, Error> {
        const ATTEMPT: &str = "see what a command uses";
        let asked = self.handle.with(State::measure);
        let number = asked.map_err(|failure| Error::refused(ATTEMPT, failure))?;
        let answer = poll_fn(|context| {
            self.handle
                .with(|state, request| state.poll_measured(request, number, context))
        });
        answer
            .await
            .map_err(|closed| Error::closed(ATTEMPT, closed))
    }
}

fn signal(handle: &Handle, number: i32) -> Result<(), Error> {
    match u8::try_from(number) {
        Ok(number @ 1..=64) => {
            handle.send(&Message::Signal { number });
            Ok(())
        }
        _ => Err(Error::refused(
            format!("send signal {number}"),
            Failure::new(
                ErrorCode::InvalidRequest,
                "signals are numbered from 1 to 64",
            ),
        )),
    }
}

/// A command's standard input. Dropping it, or shutting it down, is the end of the input.
///
/// A write is complete when the bytes are on their way; the command may not have read them yet.
#[derive(Debug)]
pub struct ProcessStdin {
    handle: Handle,
}

impl ProcessStdin {
    fn close(&self) {
        self.handle.with(|state, request| {
            let Some(channel) = state.channel(request) else {
                return;
            };
            if !std::mem::replace(&mut channel.stdin.closed, true) {
                let end = Message::Data {
                    stream: Stream::Stdin,
                    bytes: &[],
                    end: true,
                };
                // Only commands and bulk can be refused by `State::send`.
                let _ = state.send(request, &end);
            }
        });
    }
}

impl AsyncWrite for ProcessStdin {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.handle.with(|state, request| {
            let open = state.closed().is_none();
            let room = state.poll_room(context);
            let Some(channel) = state.channel(request).filter(|_| open) else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            if channel.stdin.closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if bytes.is_empty() {
                return Poll::Ready(Ok(0));
            }
            if channel.stdin.credit == 0 {
                keep_waker(&mut channel.stdin.waker, context);
                return Poll::Pending;
            }
            std::task::ready!(room);
            let count = bytes.len().min(MAX_DATA).min(channel.stdin.credit as usize);
            channel.stdin.credit -= count as u32;
            let data = Message::Data {
                stream: Stream::Stdin,
                bytes: &bytes[..count],
                end: false,
            };
            state.send(request, &data).map_err(io::Error::other)?;
            Poll::Ready(Ok(count))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ProcessStdin {
    fn drop(&mut self) {
        self.close();
    }
}

/// A command's standard output or standard error.
///
/// Not reading it makes the command wait once the window and its pipe are full; dropping it makes
/// the command's next write fail, as closing a pipe does.
#[derive(Debug)]
pub struct ProcessOutput {
    handle: Handle,
    stream: Stream,
    /// The command may go on to write when this is dropped.
    let_go: bool,
}

impl ProcessOutput {
    /// Hands up to `limit` bytes to `take`, in one or two slices. Zero bytes are the end.
    fn poll_take(
        &self,
        context: &Context<'_>,
        limit: usize,
        mut take: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        self.handle.with(|state, request| {
            let open = state.closed().is_none();
            let Some(channel) = state.channel(request) else {
                return Poll::Ready(Ok(0));
            };
            let refused = matches!(channel.started, Some(Err(_)));
            let output = channel.output(self.stream);
            let count = output.buffer.len().min(limit);
            if count == 0 {
                if output.ended || refused || limit == 0 {
                    return Poll::Ready(Ok(0));
                }
                if !open {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                keep_waker(&mut output.waker, context);
                return Poll::Pending;
            }
            let (first, second) = output.buffer.as_slices();
            take(&first[..first.len().min(count)]);
            if let Some(rest @ 1..) = count.checked_sub(first.len()) {
                take(&second[..rest]);
            }
            output.buffer.drain(..count);
            state.consume(request, self.stream, count);
            Poll::Ready(Ok(count))
        })
    }
}

impl AsyncRead for ProcessOutput {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        self.poll_take(context, room, |bytes| buffer.put_slice(bytes))
            .map_ok(|_| ())
    }
}

impl Drop for ProcessOutput {
    fn drop(&mut self) {
        self.handle.with(|state, request| {
            let Some(channel) = state.channel(request) else {
                return;
            };
            let output = channel.output(self.stream);
            let wanted = !output.ended && !output.discard && !self.let_go;
            state.discard(request, self.stream);
            if wanted {
                // Only commands and bulk can be refused by `State::send`.
                let _ = state.send(
                    request,
                    &Message::Reset {
                        stream: self.stream,
                    },
                );
            }
        });
    }
}
