//! Sessions: interpreters in a sandbox whose variables stay from cell to cell.

mod actor;
mod cell;
mod events;
mod options;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ember_guest::host::{self, Command};
use ember_guest::protocol::{MAX_SESSION_CODE, SessionFrame, SessionRole};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

pub use cell::{
    Cell, CellEnd, CellError, CellEvent, CellOutput, CellVerdict, Data, SessionEnd, TraceFrame,
};
pub use options::SessionOptions;

use crate::error::{Error, ErrorKind};
use crate::language::Language;
use crate::sandbox::{Guest, Sandbox, builder::random};
use actor::Actor;
use options::Timing;

/// How many cells may wait for the one that runs.
const WAITING: usize = 64;
/// How many of a cell's events wait for who listens, before the cell itself does.
const EVENTS: usize = 64;
/// What is shown of what an interpreter says that does not start.
const SHOWN: usize = 4096;

/// A live interpreter in a sandbox: what a cell defines is there for the next.
///
/// Cells are run one at a time, in the order in which they are asked for. Dropping the last handle
/// ends the interpreter, as [`close`](Self::close) does; a clone of this value is another handle.
/// The sandbox has to be kept: with it, its sessions end.
///
/// ```no_run
/// # async fn example(sandbox: ember_core::Sandbox) -> Result<(), ember_core::Error> {
/// use ember_core::SessionOptions;
///
/// let session = sandbox.session(SessionOptions::python()).await?;
/// session.run("x = 6").await?;
/// let out = session.run("print('multiplied')\nx * 7").await?;
/// assert_eq!(out.text(), Some("42"));
/// assert_eq!(out.stdout, "multiplied\n");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Session {
    calls: mpsc::Sender<Call>,
    controls: mpsc::UnboundedSender<Control>,
    shared: Arc<Shared>,
    setup: Arc<Setup>,
    guest: Arc<Guest>,
}

/// What a session has in common with its continuation in a clone.
#[derive(Debug, Clone)]
struct Setup {
    name: String,
    /// Where its keeper listens.
    socket: Vec<u8>,
    timing: Timing,
    most: (usize, usize),
}

/// A cell to be run.
struct Call {
    cell: Cell,
    listener: mpsc::Sender<Item>,
}

enum Control {
    /// The cell of this number.
    Interrupt(u64),
    KeepAlive,
    Close,
}

/// What the listener of a cell is told.
enum Item {
    Event(CellEvent),
    End(CellEnd),
    Failed(Error),
}

/// What is known of a session by all who have to do with it.
#[derive(Debug, Default)]
struct Shared {
    /// The number of the cell that began last.
    cell: AtomicU64,
    ended: Mutex<Option<Ended>>,
}

#[derive(Debug)]
struct Ended {
    why: SessionEnd,
    /// For the first who asks.
    error: Option<Error>,
}

impl Shared {
    fn ended(&self) -> MutexGuard<'_, Option<Ended>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: SessionEnd, error: Option<Error>) {
        *self.ended() = Some(Ended { why, error });
    }

    fn first_error(&self) -> Option<Error> {
        self.ended().as_mut().and_then(|ended| ended.error.take())
    }

    fn cell(&self) -> u64 {
        self.cell.load(Ordering::Acquire)
    }

    fn began(&self) {
        self.cell.fetch_add(1, Ordering::AcqRel);
    }
}

/// A cell that runs. Dropped, it is interrupted.
#[derive(Debug)]
pub struct RunningCell {
    items: mpsc::Receiver<Item>,
    end: Option<CellEnd>,
    session: Session,
}

impl Sandbox {
    /// Starts an interpreter whose variables stay from cell to cell. There can be any number of them in
    /// a sandbox. It runs as programs do: in the image's account for programs, and
    /// [confined](Command::confined), each kept from the others but for what is in files.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a language that has no sessions in this image, or an
    /// interpreter that does not start, with what it says; [`ErrorKind::GuestDied`].
    pub async fn session(&self, options: SessionOptions) -> Result<Session, Error> {
        let image = &self.fixture().image;
        let language = find(&image.languages, &options.language)?;
        let id: [u8; 8] = random()?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let account = &image.account;
        let socket = format!("{}/.ember/session-{id}", account.home).into_bytes();
        let argv = language
            .session
            .iter()
            .map(|word| word.clone().into_bytes());
        let role = SessionRole::Keep {
            socket: socket.clone(),
            argv: argv.collect(),
        };
        let directory = options
            .directory
            .unwrap_or_else(|| account.home.clone().into());
        let mut command = Command::session(&role)
            .user(&account.user)
            .current_dir(directory)
            .limits(options.limits)
            .confined();
        for (name, value) in options.environment {
            command = command.env(name, value);
        }
        let mut timing = options.timing;
        timing.cell = timing.cell.or(self.fixture().settings.timeout);
        let setup = Setup {
            name: options.name.unwrap_or_else(|| language.name.clone()),
            socket,
            timing,
            most: (
                options
                    .output
                    .unwrap_or(self.fixture().settings.output_limit),
                options.data,
            ),
        };
        Session::start(self, Arc::new(setup), command, true).await
    }
}

/// The language of this name that has sessions.
fn find<'a>(languages: &'a [Language], wanted: &str) -> Result<&'a Language, Error> {
    let has_sessions = |language: &&Language| !language.session.is_empty();
    let mut able = languages.iter().filter(has_sessions);
    able.find(|it| it.answers_to(wanted)).ok_or_else(|| {
        let able = languages.iter().filter(has_sessions);
        let names: Vec<String> = able.map(Language::summary).collect();
        let names = match names.is_empty() {
            true => "none of its languages has sessions".to_owned(),
            false => format!("sessions can be in: {}", names.join("; ")),
        };
        let message = format!("there are no sessions in {wanted:?} in this image; {names}");
        Error::new(ErrorKind::InvalidRequest, message)
    })
}

impl Session {
    async fn start(
        sandbox: &Sandbox,
        setup: Arc<Setup>,
        command: Command,
        is_keeper: bool,
    ) -> Result<Self, Error> {
        let guest = Arc::clone(sandbox.guest());
        let started = tokio::time::timeout(setup.timing.start, sandbox.agent().spawn(command));
        let mut process = match started.await {
            Ok(Ok(process)) => process,
            Ok(Err(error)) => return Err(guest.explain(error).await),
            Err(_) => return Err(late(&setup)),
        };
        let streams = (
            process.take_stdin(),
            process.take_stdout(),
            process.take_stderr(),
        );
        let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
            let message = "a session's process has no streams";
            return Err(Error::new(ErrorKind::Internal, message));
        };
        // What the keeper says, which is nothing unless it fails.
        let complaint = tokio::spawn(beginning(stderr));
        let requests = actor::writer(stdin);
        if !is_keeper {
            let mut bytes = Vec::new();
            SessionFrame::Reseed.encode(&mut bytes);
            let _ = requests.send(bytes);
        }
        let (calls, for_calls) = mpsc::channel(WAITING);
        let (controls, for_controls) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let actor = Actor {
            process,
            requests,
            stdout,
            guest: Arc::clone(&guest),
            shared: Arc::clone(&shared),
            calls: for_calls,
            controls: for_controls,
            timing: setup.timing,
            most: (SHOWN.max(setup.most.0), setup.most.1),
            is_keeper,
        };
        let session = Self {
            calls,
            controls,
            shared,
            setup,
            guest,
        };
        let (listener, items) = mpsc::channel(EVENTS);
        if !is_keeper {
            // It need not be idle: the first cell waits for that.
            tokio::spawn(actor.run(None));
            return Ok(session);
        }
        tokio::spawn(actor.run(Some(listener)));
        let starting = RunningCell {
            items,
            end: None,
            session: session.clone(),
        };
        let output = starting.collect().await?;
        let CellVerdict::Ended(why) = output.verdict else {
            return Ok(session);
        };
        if why == SessionEnd::Deaf {
            return Err(late(&session.setup));
        }
        let said = complaint.await.unwrap_or_default();
        let said = [output.stderr.into_bytes(), said].concat();
        let said = String::from_utf8_lossy(&said);
        let name = &session.setup.name;
        let message = format!("the session {name:?} has not started: {why}\n{said}");
        Err(Error::new(ErrorKind::InvalidRequest, message.trim_end()))
    }

    /// This session in `clone`, a clone of its sandbox that was made while the session was there: its
    /// interpreter goes on in both, with the same variables, of which each has its own from then on.
    ///
    /// A cell that was running when the clone was made goes on in the clone as well; nothing is heard
    /// of it there, and the next cell waits for its end. [`interrupt`](Self::interrupt) reaches it.
    /// What is random in the interpreter is made different in the clone before its first cell, as far
    /// as its language can (`docs/sessions.md`). Times to live begin anew.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for the session's own sandbox, [`ErrorKind::Closed`] if the
    /// session has ended, and [`ErrorKind::GuestDied`]. That the clone does not have it is told by
    /// the first cell.
    pub async fn in_clone(&self, clone: &Sandbox) -> Result<Self, Error> {
        if Arc::ptr_eq(&self.guest, clone.guest()) {
            let name = &self.setup.name;
            let message = format!("the session {name:?} is in this sandbox itself, not in a clone");
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        if let Some(error) = self.error() {
            return Err(error);
        }
        let account = &clone.fixture().image.account;
        let role = SessionRole::Attach {
            socket: self.setup.socket.clone(),
        };
        let command = Command::session(&role)
            .user(&account.user)
            .current_dir("/")
            .confined();
        Self::start(clone, Arc::clone(&self.setup), command, false).await
    }

    /// Runs a cell and collects what comes of it.
    ///
    /// What the cell raises is in the [`CellOutput`], and so is that the interpreter ended with it.
    /// Dropping the future interrupts the cell.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if the guest ended: once, and then [`ErrorKind::Closed`], which is
    /// what a session that has ended says. [`ErrorKind::Unavailable`] when too many cells wait,
    /// [`ErrorKind::TooLarge`] for more than 4 MiB of code.
    pub async fn run(&self, cell: impl Into<Cell>) -> Result<CellOutput, Error> {
        self.begin(cell.into())?.collect().await
    }

    /// Runs a cell whose events are told as they come. It is begun when those before it have ended.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn begin(&self, cell: impl Into<Cell>) -> Result<RunningCell, Error> {
        let cell = cell.into();
        if cell.code.len() > MAX_SESSION_CODE {
            let message = format!("a cell is at most {} MiB", MAX_SESSION_CODE >> 20);
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        if let Some(error) = self.error() {
            return Err(error);
        }
        let (listener, items) = mpsc::channel(EVENTS);
        let call = Call { cell, listener };
        match self.calls.try_send(call) {
            Ok(()) => Ok(RunningCell {
                items,
                end: None,
                session: self.clone(),
            }),
            Err(mpsc::error::TrySendError::Full(_)) => {
                let name = &self.setup.name;
                let message = format!(
                    "{WAITING} cells wait in the session {name:?} already; try again later"
                );
                Err(Error::new(ErrorKind::Unavailable, message))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.gone()),
        }
    }

    /// Interrupts the cell that runs, as Ctrl-C does. If none runs, nothing happens. Whether it listens
    /// is the cell's matter: what comes of it is its [`CellOutput`], and a cell's timeout ends one
    /// that does not.
    pub fn interrupt(&self) {
        let _ = self.controls.send(Control::Interrupt(self.shared.cell()));
    }

    /// Gives the session its time to live, and its time to be idle, anew.
    pub fn keep_alive(&self) {
        let _ = self.controls.send(Control::KeepAlive);
    }

    /// Ends the interpreter, and all that it has started.
    pub async fn close(self) {
        let _ = self.controls.send(Control::Close);
        self.calls.closed().await;
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Why it has ended, if it has.
    pub fn ended(&self) -> Option<SessionEnd> {
        self.shared.ended().as_ref().map(|ended| ended.why.clone())
    }

    /// What whoever asks something of it is told, if it has ended.
    fn error(&self) -> Option<Error> {
        let mut ended = self.shared.ended();
        let ended = ended.as_mut()?;
        Some(match ended.error.take() {
            Some(error) => error,
            None => self.over(&ended.why),
        })
    }

    fn over(&self, why: &SessionEnd) -> Error {
        let message = format!("the session {:?} has ended: {why}", self.setup.name);
        Error::new(ErrorKind::Closed, message)
    }

    fn gone(&self) -> Error {
        self.error()
            .unwrap_or_else(|| self.over(&SessionEnd::Closed))
    }
}

fn late(setup: &Setup) -> Error {
    let message = format!(
        "the session {:?} has not started within {} s (SessionOptions::start_timeout)",
        setup.name,
        setup.timing.start.as_secs_f64()
    );
    Error::new(ErrorKind::GuestDied, message)
}

/// The beginning of a stream, which is read to its end.
async fn beginning(mut stream: host::ProcessOutput) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; SHOWN];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = SHOWN.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    kept
}

impl RunningCell {
    /// What comes of it next; nothing at its end. An event that is not taken has the cell wait, once
    /// there are some.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub async fn next(&mut self) -> Result<Option<CellEvent>, Error> {
        if self.end.is_some() {
            return Ok(None);
        }
        match self.items.recv().await {
            Some(Item::Event(event)) => Ok(Some(event)),
            Some(Item::End(end)) => {
                self.end = Some(end);
                Ok(None)
            }
            Some(Item::Failed(error)) => Err(error),
            None => Err(self.session.gone()),
        }
    }

    /// How it ended, once there is [nothing more](Self::next).
    pub fn end(&self) -> Option<&CellEnd> {
        self.end.as_ref()
    }

    /// Waits for its end and collects what has not been taken.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub async fn collect(mut self) -> Result<CellOutput, Error> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut value, mut displays, mut error) = (None, Vec::new(), None);
        while let Some(event) = self.next().await? {
            match event {
                CellEvent::Stdout(bytes) => stdout.extend(bytes),
                CellEvent::Stderr(bytes) => stderr.extend(bytes),
                CellEvent::Display(data) => displays.push(data),
                CellEvent::Value(data) => value = Some(data),
                CellEvent::Error(raised) => error = Some(raised),
            }
        }
        let Some(end) = self.end.take() else {
            return Err(self.session.gone());
        };
        Ok(CellOutput {
            value,
            displays,
            stdout: stdout.into(),
            stderr: stderr.into(),
            error,
            verdict: end.verdict,
            wall: end.wall,
            truncated: end.truncated,
        })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.setup.name)
            .field("ended", &self.ended())
            .finish_non_exhaustive()
    }
}
