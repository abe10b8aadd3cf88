//! A sandbox: one guest, from its boot to its end.

pub(crate) mod builder;
pub(crate) mod cap;
pub(crate) mod disks;
pub(crate) mod machine;
pub(crate) mod overlay;
mod process;
pub(crate) mod vm;
mod volumes;

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ember_guest::host::{self, Agent, Command, RunnerId};
use ember_guest::protocol::{ErrorCode, Outcome};

pub(crate) use builder::Prepared;
pub use builder::SandboxBuilder;
pub use process::{Process, UsageWatch};
pub(crate) use volumes::ReadyVolume;

use crate::assets::{Image, ImageConfig, ReadyImage};
use crate::backing::MemoryUse;
use crate::blocking::blocking;
use crate::code::{Code, Program, WarmProgram};
use crate::compile::{Compilation, Compiled};
use crate::error::{Error, ErrorKind};
use crate::language::Language;
use crate::output::{Captured, Output};
use crate::placement::Place;
use crate::size::ByteSize;
use crate::template::{Memory, Origin};
use cap::{CapWatch, Exceeded};
use machine::{Machine, Watcher};
use overlay::OverlayFile;
use vm::GuestVm;

/// A running guest.
///
/// Everything here can be called from any task, many at once. [`close`](Self::close) ends the guest
/// and waits until everything it held is free; dropping the sandbox ends it too and leaves the
/// freeing to a thread, so that it can be dropped anywhere.
///
/// Programs ([`run`](Self::run)) run as the image's own unprivileged user. Commands
/// ([`exec`](Self::exec)) are the guest's administrator's, root, unless they or the image name a
/// user.
#[derive(Debug)]
pub struct Sandbox {
    agent: Agent,
    fixture: Fixture,
    guest: Arc<Guest>,
    programs: AtomicU64,
    pub(crate) compiled: Compiled,
    /// What its memory was when it was made, if it is a clone.
    base: Option<Arc<Memory>>,
    /// Who looks at what it copies, if it has a cap.
    watch: Option<Arc<CapWatch>>,
}

/// What a sandbox has in common with its clones.
#[derive(Debug, Clone)]
pub(crate) struct Fixture {
    pub(crate) image: ReadyImage,
    /// The image's file, open: it may be removed, or another may come in its place.
    pub(crate) disk: Arc<File>,
    pub(crate) volumes: Vec<ReadyVolume>,
    /// What it writes to, if that is a file: of a template, what its clones have a copy of.
    pub(crate) overlay: Option<OverlayFile>,
    pub(crate) kick_signal: Option<i32>,
    /// Where it runs.
    pub(crate) place: Place,
    /// What its clones do with their memory.
    pub(crate) memory: MemoryUse,
    pub(crate) settings: Settings,
    /// The languages whose interpreters are kept warm in the guest.
    pub(crate) runners: Vec<String>,
    /// What the guest was made from.
    pub(crate) origin: Arc<Origin>,
}

impl Fixture {
    /// The files of the guest's disks that are only read, in their order.
    pub(crate) fn read_only_disks(&self) -> impl Iterator<Item = &Arc<File>> {
        disks::read_only(&self.disk, &self.volumes)
    }
}

/// What holds for everything that runs in a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) timeout: Option<Duration>,
    pub(crate) output_limit: usize,
}

/// What outlives the sandbox in the hands of its processes: enough to say what became of it.
#[derive(Debug)]
pub(crate) struct Guest {
    /// There until the sandbox is closed or dropped.
    machine: Mutex<Option<Machine>>,
    watcher: Watcher,
    /// It was ended for this.
    exceeded: OnceLock<Exceeded>,
    /// Held by who stops the guest or lets it go on.
    stillness: Mutex<Stillness>,
    /// Held by who takes its state: there is one at a time.
    pub(crate) captures: Arc<tokio::sync::Mutex<()>>,
}

/// Whether a guest stands still because its owner wants it to.
#[derive(Debug, Default)]
pub(crate) struct Stillness {
    pub(crate) is_wanted: bool,
}

impl Sandbox {
    /// Describes a sandbox with the root file system `image`.
    pub fn builder(image: Image) -> SandboxBuilder {
        SandboxBuilder::new(image)
    }

    pub(crate) fn new(
        machine: Machine,
        agent: Agent,
        fixture: Fixture,
        base: Option<Arc<Memory>>,
    ) -> Self {
        let watcher = machine.watcher().clone();
        Self {
            agent,
            fixture,
            base,
            guest: Arc::new(Guest {
                machine: Mutex::new(Some(machine)),
                watcher,
                exceeded: OnceLock::new(),
                stillness: Mutex::default(),
                captures: Arc::default(),
            }),
            programs: AtomicU64::new(0),
            compiled: Compiled::default(),
            watch: None,
        }
    }

    /// Has it ended when it has copied more than `cap`.
    pub(crate) fn hold_to(&mut self, cap: ByteSize, watch: Arc<CapWatch>) {
        watch.hold(&self.guest, cap);
        self.watch = Some(watch);
    }

    /// The languages that [`run`](Self::run) knows.
    pub fn languages(&self) -> &[Language] {
        &self.fixture.image.languages
    }

    /// Runs a program and collects what it writes.
    ///
    /// However the program ends is an [`Output`]: its exit status, the signal that ended it, the
    /// limit that it hit; [`Output::verdict`] says it in a word. A program in a language that is
    /// compiled is compiled first, once for each content: the same program need not be compiled
    /// again, in this sandbox or its clones. What the compiler refuses is an output as well.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a language that the image does not have,
    /// [`ErrorKind::GuestDied`] if the guest did not live to say how the program ended.
    pub async fn run(&self, code: Code) -> Result<Output, Error> {
        let program = self.program(code).await?;
        self.run_program(program).await
    }

    /// Starts a program, to be fed and read as it runs. If it has to be compiled, that is done
    /// before.
    ///
    /// # Errors
    /// As for [`run`](Self::run), and [`ErrorKind::CompilationFailed`].
    pub async fn start(&self, code: Code) -> Result<Process, Error> {
        let program = self.program(code).await?;
        match self.launch(program).await? {
            Launched::Running(mut process, input, _) => {
                process.feed(input);
                Ok(process)
            }
            Launched::NotCompiled(compilation, _) => {
                let said = compilation.messages.to_string_lossy();
                let message = format!("the program could not be compiled:\n{}", said.trim_end());
                Err(Error::new(ErrorKind::CompilationFailed, message))
            }
        }
    }

    /// Compiles a program without running it, so that running it takes no longer than it does
    /// itself. Says how that went, or nothing if its language is none that is compiled.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub async fn compile(&self, code: Code) -> Result<Option<Compilation>, Error> {
        match self.program(code).await?.build {
            Some(build) => self.compile_program(&build).await.map(Some),
            None => Ok(None),
        }
    }

    /// Runs a command and collects what it writes. Standard input that is
    /// [piped](crate::Stdin::Piped) is at its end: [`spawn`](Self::spawn) can feed it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and [`ErrorKind::NotExecutable`] for the program,
    /// [`ErrorKind::InvalidRequest`] for anything else about the command,
    /// [`ErrorKind::GuestDied`] if the guest did not live to say how the command ended.
    pub async fn exec(&self, command: Command) -> Result<Output, Error> {
        self.exec_with(command, Vec::new()).await
    }

    /// The same of a command that is fed `input`.
    pub(crate) async fn exec_with(
        &self,
        command: Command,
        input: Vec<u8>,
    ) -> Result<Output, Error> {
        let process = self.spawn(command).await?;
        process
            .output_of(input, self.fixture.settings.output_limit)
            .await
    }

    /// Starts a command, to be fed and read as it runs.
    ///
    /// # Errors
    /// As for [`exec`](Self::exec), as far as they concern its start.
    pub async fn spawn(&self, command: Command) -> Result<Process, Error> {
        let config = &self.fixture.image.config;
        let command = command.or_as(
            config.user.as_deref(),
            config.directory.as_deref(),
            &config.environment,
        );
        let command = match (command.time_limit(), self.fixture.settings.timeout) {
            (None, Some(timeout)) => command.timeout(timeout),
            _ => command,
        };
        let limit = command.time_limit();
        let process = match process::within(limit, &self.guest, self.agent.spawn(command)).await? {
            Ok(process) => process,
            Err(error) => return Err(self.guest.explain(error).await),
        };
        Ok(Process::new(process, Arc::clone(&self.guest), limit))
    }

    /// Starts a command of the agent's own that lasts: no time limit holds for it.
    pub(crate) async fn spawn_unlimited(&self, command: Command) -> Result<Process, Error> {
        match self.agent.spawn(command).await {
            Ok(process) => Ok(Process::new(process, Arc::clone(&self.guest), None)),
            Err(error) => Err(self.guest.explain(error).await),
        }
    }

    /// The command that the image is for, with these arguments in place of those that it has:
    /// what `docker run` would run. Nothing if the image names no program and none is given; packs
    /// name none.
    pub fn entry_point<S: Into<String>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Option<Command> {
        let given: Vec<String> = arguments.into_iter().map(Into::into).collect();
        let words = self.fixture.image.config.command_line(&given)?;
        Some(Command::from_argv(words))
    }

    /// What the image says of how it is run.
    pub fn image_config(&self) -> &ImageConfig {
        &self.fixture.image.config
    }

    /// Asks the guest for an answer, and says how long it took.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if there is none.
    pub async fn ping(&self) -> Result<Duration, Error> {
        match self.agent.ping().await {
            Ok(elapsed) => Ok(elapsed),
            Err(error) => Err(self.guest.explain(error).await),
        }
    }

    /// How much of the guest's memory is its own: of a clone, what it has changed and so copied. What
    /// it only reads of its template's counts for nobody. Looks through the page tables, which takes
    /// about a millisecond.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if it has ended, [`ErrorKind::Closed`] if the sandbox is closed.
    pub async fn copied_bytes(&self) -> Result<u64, Error> {
        let vm = self.parts()?.vm;
        let copied = blocking("looking through a VM's memory", move || vm.copied_bytes()).await;
        copied.map_err(|error| self.guest.judge(error))
    }

    /// How much room the file takes on this host that it writes to, if it has
    /// [one](crate::Overlay::file): with what it may share with those of its template and clones.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the host does not say.
    pub fn overlay_bytes(&self) -> Result<Option<u64>, Error> {
        let overlay = self.fixture.overlay.as_ref();
        let bytes = overlay.map(OverlayFile::stored_bytes).transpose();
        bytes.map_err(|error| {
            let message = "cannot examine the file that a guest writes to";
            Error::because(ErrorKind::Internal, message, error)
        })
    }

    /// Holds the guest still: nothing in it runs until [`resume`](Self::resume). Its wall clock goes
    /// on.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if it has ended, [`ErrorKind::Closed`] if the sandbox is closed.
    pub async fn pause(&self) -> Result<(), Error> {
        self.hold_still(true).await
    }

    /// Lets the guest go on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn resume(&self) -> Result<(), Error> {
        self.hold_still(false).await
    }

    async fn hold_still(&self, is_wanted: bool) -> Result<(), Error> {
        let vm = self.parts()?.vm;
        let guest = Arc::clone(&self.guest);
        // It waits for the VM's threads, and for who is taking the guest's state.
        let done = blocking("work on a VM", move || {
            let mut stillness = guest.stillness();
            match is_wanted {
                true => vm.pause()?,
                false => vm.resume()?,
            }
            stillness.is_wanted = is_wanted;
            Ok(())
        });
        done.await.map_err(|error| self.guest.judge(error))
    }

    /// Ends the guest, now, and returns when everything it held is free. What ran in it is over;
    /// nothing that it wrote is kept.
    pub async fn close(self) {
        // A panic in there was reported where it happened, and there is no more to free.
        let _ = tokio::task::spawn_blocking(move || self.end()).await;
    }

    /// Whether the guest has not ended yet.
    pub fn is_alive(&self) -> bool {
        self.guest.watcher.is_alive()
    }

    /// [`close`](Self::close) for a thread that may wait.
    pub(crate) fn end(self) {
        if let Some(machine) = self.guest.take() {
            machine.stop();
            // Who is taking its state for somebody who waits no longer has the VM as well.
            drop(self.guest.stillness());
            machine.end();
        }
        // What it wrote to goes last, and takes its time if it is a large file.
    }

    /// The parts of a running guest that its state is taken from.
    pub(crate) fn parts(&self) -> Result<Parts<'_>, Error> {
        let vm = self
            .guest
            .vm()
            .ok_or_else(|| Error::new(ErrorKind::Closed, "the sandbox is closed"))?;
        Ok(Parts {
            vm,
            agent: &self.agent,
            fixture: &self.fixture,
            guest: &self.guest,
            base: self.base.as_ref(),
        })
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    pub(crate) fn fixture(&self) -> &Fixture {
        &self.fixture
    }

    pub(crate) fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// What an error of the guest's agent means to the caller.
    pub(crate) async fn explain(&self, error: host::Error) -> Error {
        self.guest.explain(error).await
    }

    /// Makes code ready for this guest.
    async fn program(&self, code: Code) -> Result<Program, Error> {
        // To know a language needs no thread; to read a file does.
        code.find_language(&self.fixture.image.languages)?;
        let unique = self.programs.fetch_add(1, Ordering::Relaxed);
        let image = self.fixture.image.clone();
        blocking("reading a program", move || {
            code.prepare(&image.languages, &image.account, unique)
        })
        .await
    }

    /// Runs a program that was made ready for a guest of this image.
    pub(crate) async fn run_program(&self, mut program: Program) -> Result<Output, Error> {
        let wanted = program.artifacts.take();
        let limit = self.fixture.settings.output_limit;
        match self.launch(program.output_at_most(limit)).await? {
            Launched::Running(process, input, compile) => {
                let output = process.output_of(input, limit).await?;
                let artifacts = match wanted {
                    Some(wanted) => Some(self.files().collect_wanted(wanted).await?),
                    None => None,
                };
                Ok(Output {
                    compile,
                    artifacts,
                    ..output
                })
            }
            Launched::NotCompiled(compilation, outcome) => Ok(Output {
                stdout: Captured::default(),
                stderr: compilation.messages.clone(),
                truncated: false,
                outcome,
                compile: Some(compilation),
                artifacts: None,
            }),
        }
    }

    async fn launch(&self, program: Program) -> Result<Launched, Error> {
        let Program {
            files,
            build,
            command,
            input,
            warm,
            artifacts: _,
        } = program;
        self.store(files, &self.fixture.image.account.user).await?;
        let warm = warm.filter(|warm| self.fixture.runners.contains(&warm.language));
        let Some(build) = build else {
            let process = match warm {
                Some(program) => self.spawn_warm(program).await?,
                None => self.spawn(command).await?,
            };
            return Ok(Launched::Running(process, input, None));
        };
        loop {
            let compilation = self.compile_program(&build).await?;
            if let Some(outcome) = compilation.outcome.clone().filter(|it| !it.success()) {
                return Ok(Launched::NotCompiled(compilation, outcome));
            }
            let process = match &warm {
                Some(program) => self.spawn_warm(program.clone()).await,
                None => self.spawn(command.clone()).await,
            };
            match process {
                // It was there: what ran since has removed it.
                Err(error) if error.kind() == ErrorKind::NotFound && compilation.cached => {
                    self.compiled.forget(&build);
                }
                process => return Ok(Launched::Running(process?, input, Some(compilation))),
            }
        }
    }

    /// Starts a program in an interpreter that was kept warm.
    async fn spawn_warm(&self, program: WarmProgram) -> Result<Process, Error> {
        let limit = program.timeout.or(self.fixture.settings.timeout);
        let mut command = program.command;
        if let Some(limit) = limit {
            command = command.timeout(limit);
        }
        let runner = RunnerId::named(program.language);
        let started = self.agent.run_warm(&runner, command);
        let process = match process::within(limit, &self.guest, started).await? {
            Ok(process) => process,
            Err(error) => return Err(self.guest.explain(error).await),
        };
        Ok(Process::new(process, Arc::clone(&self.guest), limit))
    }
}

/// A program that was to be started.
enum Launched {
    /// It runs, is to be fed this, and was compiled so.
    Running(Process, Vec<u8>, Option<Compilation>),
    /// Its compiler ended so.
    NotCompiled(Compilation, Outcome),
}

/// See [`Sandbox::parts`].
pub(crate) struct Parts<'a> {
    pub(crate) vm: Arc<GuestVm>,
    pub(crate) agent: &'a Agent,
    pub(crate) fixture: &'a Fixture,
    pub(crate) guest: &'a Arc<Guest>,
    pub(crate) base: Option<&'a Arc<Memory>>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.guest.take());
    }
}

impl Guest {
    /// Waits for who stops the guest or lets it go on, and is that from then on.
    pub(crate) fn stillness(&self) -> MutexGuard<'_, Stillness> {
        self.stillness
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Machine> {
        self.machine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Its VM, unless the sandbox is closed.
    fn vm(&self) -> Option<Arc<GuestVm>> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.as_ref().and_then(Machine::vm)
    }

    /// Says of an error that it is because the guest was ended, if it was.
    pub(crate) fn judge(&self, error: Error) -> Error {
        match self.exceeded.get() {
            Some(exceeded) if error.kind() == ErrorKind::GuestDied => exceeded.error(&error),
            _ => error,
        }
    }

    /// Ends the guest: it has not done what it must.
    fn stop(&self) {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = machine.as_ref() {
            machine.stop();
        }
    }

    /// What an error of the guest's agent means to the caller.
    pub(crate) async fn explain(&self, error: host::Error) -> Error {
        let kind = match error.kind() {
            host::ErrorKind::Refused(code) => match code {
                ErrorCode::NotFound => ErrorKind::NotFound,
                ErrorCode::NotExecutable | ErrorCode::PermissionDenied => ErrorKind::NotExecutable,
                ErrorCode::OutOfResources | ErrorCode::TooManyRequests => ErrorKind::Exhausted,
                ErrorCode::Internal => ErrorKind::Internal,
                _ => ErrorKind::InvalidRequest,
            },
            host::ErrorKind::Version => ErrorKind::Internal,
            _ => return self.died(error).await,
        };
        // The two say one thing together: what was attempted, and why not.
        let message = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Error::new(kind, message)
    }

    async fn died(&self, error: host::Error) -> Error {
        let closed = self
            .machine
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none();
        if closed {
            let message = format!("{error}: the sandbox is closed");
            return Error::because(ErrorKind::Closed, message, error);
        }
        if let Some(exceeded) = self.exceeded.get() {
            return exceeded.error(&error);
        }
        let console = self.watcher.console_tail();
        let message = match self.watcher.last_words().await {
            Some(reason) => format!("{error}: the guest died ({reason}){console}"),
            None => format!("{error}: the guest's agent is gone{console}"),
        };
        let source = std::error::Error::source(&error).map(ToString::to_string);
        match source {
            Some(source) => Error::because(ErrorKind::GuestDied, message, source),
            None => Error::new(ErrorKind::GuestDied, message),
        }
    }
}
