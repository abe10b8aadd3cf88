//! The host's half of the guest channel, for tokio.
//!
//! [`Agent::connect`] takes any byte stream to an agent and starts one task that drives it. An
//! [`Agent`] and everything that comes from it are handles on that task: cheap to clone, usable
//! from any thread, and when the last one is dropped the connection ends, and with it every
//! command on it.
//!
//! What the agent sends is not trusted: a breach of the protocol ends the connection, and what it
//! can make this side hold is bounded.

mod blocking;
mod channel;
mod command;
mod driver;
mod error;
mod identity;
mod link;
mod process;
#[cfg(test)]
mod tests;
mod warm;

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use blocking::{BlockingReader, BlockingWriter};
pub use command::{Command, Stdin};
pub use error::{Closed, Error, ErrorKind};
pub use identity::Identity;
pub use process::{Output, Process, ProcessControl, ProcessOutput, ProcessStdin};
pub use warm::{RunnerId, WarmCommand, WarmRunner};

use crate::protocol::{
    Decoder, ErrorCode, FEATURE_CLOCK, FEATURE_FILES, FEATURE_FREEZE, FEATURE_SESSIONS,
    FEATURE_USAGE, FEATURE_WARM, Failure, Hello, Kind, Malformed, Message,
};

use driver::Driver;
use link::{Answer, Link, Shared, State};

/// A connection to the agent of one guest.
#[derive(Clone, Debug)]
pub struct Agent {
    link: Arc<Link>,
    hello: Arc<Hello>,
}

impl Agent {
    /// Greets the agent at the other end of `stream` and takes the stream over.
    ///
    /// Has to be called on a tokio runtime, which from then on runs the connection. It waits for
    /// the agent's hello for as long as that takes: the caller sets the time.
    pub async fn connect<S>(mut stream: S) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        const ATTEMPT: &str = "greet the guest's agent";
        let failed = |closed| Error::closed(ATTEMPT, closed);
        let broken = |error: io::Error| failed(Closed::Io(Arc::new(error)));

        let mut ours = Vec::new();
        // A hello of ours is within its limits.
        let _ = Message::Hello(Hello::ours(0)).encode(0, &mut ours);
        stream.write_all(&ours).await.map_err(broken)?;

        let mut decoder = Decoder::new();
        let hello = loop {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).await.map_err(broken)?;
            if count == 0 {
                return Err(failed(Closed::ByAgent));
            }
            decoder.feed(&buffer[..count]);
            let malformed = |error| failed(Closed::Malformed(error));
            let Some(frame) = decoder.next_frame().map_err(malformed)? else {
                continue;
            };
            match Message::decode(frame).map_err(malformed)? {
                Message::Hello(hello) => break hello,
                Message::Error(failure) => return Err(failed(Closed::Refused(failure))),
                other => return Err(malformed(Malformed::Unexpected { kind: other.kind() })),
            }
        };
        hello
            .agree()
            .map_err(|mismatch| Error::version(ATTEMPT, mismatch))?;

        Ok(Self::drive(stream, decoder, hello, State::default()))
    }

    /// Takes over a stream to an agent that was frozen, in a clone of its guest. `hello` is what
    /// the agent said when the connection was made ([`Agent::hello`]). Nothing is exchanged: the
    /// first thing to do is [`Agent::identify`].
    ///
    /// Has to be called on a tokio runtime, which from then on runs the connection.
    pub fn attach<S>(stream: S, hello: Hello) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::drive(stream, Decoder::new(), hello, State::attached())
    }

    fn drive<S>(stream: S, decoder: Decoder, hello: Hello, mut state: State) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        state.measures = hello.features & FEATURE_USAGE != 0;
        let shared = Shared::new(state);
        tokio::spawn(Driver::new(stream, Arc::clone(&shared), decoder).run());
        Self {
            link: Arc::new(Link(shared)),
            hello: Arc::new(hello),
        }
    }

    /// What the agent said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks the agent for an answer; says how long it took.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let start = Instant::now();
        self.ask("ping the guest's agent", &Message::Ping).await?;
        Ok(start.elapsed())
    }

    /// Starts a command. An error says why it could not be started; how a command that was
    /// started ends is its [`Outcome`](crate::protocol::Outcome).
    ///
    /// Dropping the future ends the command if it was started meanwhile.
    pub async fn spawn(&self, command: Command) -> Result<Process, Error> {
        if command.is_session() {
            self.require(FEATURE_SESSIONS, "keep a session", "cannot")?;
        } else if command.is_builtin() {
            self.require(FEATURE_FILES, "work on the guest's files", "cannot")?;
        }
        Process::spawn(&self.link, command).await
    }

    /// Starts a runner, and returns when it is warm: when the code that warms it up has run, and a
    /// process stands ready for the first program. It lives as long as the connection, and in
    /// clones of the guest as long as theirs.
    ///
    /// An error says what the runner wrote if it ended before. Dropping the future ends it.
    pub async fn warm(&self, runner: WarmRunner) -> Result<RunnerId, Error> {
        let id = runner.id();
        self.require(FEATURE_WARM, "warm a runner up", "does not keep runners")?;
        Process::warm(&self.link, runner).await?;
        Ok(id)
    }

    /// Runs a program in a fresh process of a warm runner. See [`Agent::spawn`].
    pub async fn run_warm(
        &self,
        runner: &RunnerId,
        program: WarmCommand,
    ) -> Result<Process, Error> {
        self.require(FEATURE_WARM, "run a program", "does not keep runners")?;
        Process::run_warm(&self.link, runner, program).await
    }

    /// Makes the agent fall silent, with nothing under way in either direction, so that the guest
    /// can be saved. When this returns, it sends nothing until [`Agent::thaw`], and in each clone
    /// until [`Agent::identify`] on a stream that was [attached](Agent::attach).
    ///
    /// Commands go on, as far as they can without their output being read. What handles on this
    /// connection have to say waits until the agent is thawed.
    ///
    /// If the future is dropped, the agent is thawed as soon as it is frozen.
    pub async fn freeze(&self) -> Result<(), Error> {
        const ATTEMPT: &str = "freeze the guest's agent";
        self.require_freeze(ATTEMPT)?;
        self.ask(ATTEMPT, &Message::Freeze).await
    }

    /// Lets a frozen agent go on as if nothing had been.
    pub async fn thaw(&self) -> Result<(), Error> {
        const ATTEMPT: &str = "thaw the guest's agent";
        self.require_freeze(ATTEMPT)?;
        self.ask(ATTEMPT, &Message::Thaw).await
    }

    /// Tells the guest who it is. When this returns, all of it has been applied; an error means
    /// that the guest is nobody, and must not be used.
    ///
    /// In a clone this also lets the agent go on. The commands of the guest that it was cloned
    /// from go on in the clone, too, but nothing is heard of them.
    pub async fn identify(&self, identity: Identity) -> Result<(), Error> {
        const ATTEMPT: &str = "give the guest an identity";
        self.require_freeze(ATTEMPT)?;
        let identity = Message::Identify(Cow::Owned(identity.into_wire()));
        self.ask(ATTEMPT, &identity).await
    }

    /// Sets the guest's wall clock to what `now` says when this is sent; gives how long the answer took,
    /// which is by how much it can be late. An identity has set it before, but is applied more slowly.
    pub async fn set_clock(&self, now: impl FnOnce() -> SystemTime) -> Result<Duration, Error> {
        const ATTEMPT: &str = "set the guest's wall clock";
        self.require(FEATURE_CLOCK, ATTEMPT, "cannot")?;
        let start = Instant::now();
        let since = now().duration_since(SystemTime::UNIX_EPOCH);
        let nanoseconds = since.map(|time| time.as_nanos()).unwrap_or_default();
        // Later than the kernel counts: the agent would take it for a broken frame.
        let nanoseconds = i64::try_from(nanoseconds)
            .unwrap_or(i64::MAX)
            .unsigned_abs();
        self.ask(ATTEMPT, &Message::Clock { nanoseconds }).await?;
        Ok(start.elapsed())
    }

    fn require_freeze(&self, attempt: &str) -> Result<(), Error> {
        self.require(FEATURE_FREEZE, attempt, "cannot be frozen")
    }

    fn require(&self, feature: u64, attempt: &str, lack: &str) -> Result<(), Error> {
        if self.hello.features & feature != 0 {
            return Ok(());
        }
        let message = format!("the agent ({}) {lack}", self.hello.software);
        let failure = Failure::new(ErrorCode::Unsupported, message);
        Err(Error::refused(attempt, failure))
    }

    /// Asks the agent to end everything and power the guest off. Returns when that has begun;
    /// [`Agent::closed`] tells when it has gone as far as the agent can say.
    pub async fn power_off(&self) -> Result<(), Error> {
        self.ask("power the guest off", &Message::PowerOff).await
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> Closed {
        poll_fn(|context| self.link.with(|state| state.poll_closed(context))).await
    }

    async fn ask(&self, attempt: &str, message: &Message<'_>) -> Result<(), Error> {
        /// Gives the answer up when the future is dropped.
        struct Question<'a>(&'a Link, u32);
        impl Drop for Question<'_> {
            fn drop(&mut self) {
                self.0.with(|state| state.forget_answer(self.1));
            }
        }

        let request = self
            .link
            .with(|state| state.ask(message))
            .map_err(|failure| Error::refused(attempt, failure))?;
        let question = Question(&self.link, request);
        let answer =
            poll_fn(|context| question.0.with(|state| state.poll_answer(request, context))).await;
        match (answer, message.kind()) {
            (Ok(Answer::Pong), Kind::Ping)
            | (Ok(Answer::PoweringOff), Kind::PowerOff)
            | (Ok(Answer::Frozen), Kind::Freeze)
            | (Ok(Answer::Thawed), Kind::Thaw)
            | (Ok(Answer::Identified), Kind::Identify)
            | (Ok(Answer::ClockSet), Kind::Clock) => Ok(()),
            (Ok(Answer::Failed(failure)), _) => Err(Error::refused(attempt, failure)),
            // An answer of the wrong kind, which a correct agent never gives.
            (Ok(_), kind) => Err(Error::closed(
                attempt,
                Closed::Malformed(Malformed::Unexpected { kind }),
            )),
            (Err(closed), _) => Err(Error::closed(attempt, closed)),
        }
    }
}
