//! From a description to a template.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ember_guest::host::{Command, WarmRunner};

use super::{Inner, Origin, Template, cache, capture, give_back, working_set};
use crate::assets::{Assets, Image, Kernel, Volume};
use crate::backing::{Backing, MemoryUse};
use crate::blocking::blocking;
use crate::code::{Code, Program};
use crate::error::{Error, ErrorKind};
use crate::language::Language;
use crate::output::Output;
use crate::overlay::Overlay;
use crate::placement::Placement;
use crate::progress::Progress;
use crate::sandbox::{Fixture, Prepared, Sandbox, SandboxBuilder};
use crate::size::ByteSize;

/// How long the compiler of a first program may take: it reads all that it consists of, and Go's
/// fills its build cache.
const FIRST_PROGRAM: Duration = Duration::from_secs(900);

/// What a template is to be.
pub struct TemplateBuilder {
    sandbox: SandboxBuilder,
    steps: Vec<Step>,
    shells: usize,
    cached: bool,
    is_recorded: bool,
    memory: MemoryUse,
}

/// Something that is done in the guest before it is saved.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Run(Code),
    Exec(Command),
}

impl TemplateBuilder {
    pub(super) fn new(image: Image) -> Self {
        Self {
            sandbox: Sandbox::builder(image).for_template(),
            steps: Vec::new(),
            shells: 0,
            cached: true,
            is_recorded: true,
            memory: MemoryUse::default(),
        }
    }

    fn configure(mut self, with: impl FnOnce(SandboxBuilder) -> SandboxBuilder) -> Self {
        self.sandbox = with(self.sandbox);
        self
    }

    /// How many processors its guests have: 1 to 32, and 1 if not said.
    #[must_use]
    pub fn vcpus(self, count: u8) -> Self {
        self.configure(|sandbox| sandbox.vcpus(count))
    }

    /// How much memory they have: at least 64 MiB. If not said, what the pack's recipe says, else
    /// 256 MiB.
    #[must_use]
    pub fn memory(self, size: ByteSize) -> Self {
        self.configure(|sandbox| sandbox.memory(size))
    }

    /// How much each may write over the image: see [`SandboxBuilder::overlay`].
    #[must_use]
    pub fn overlay(self, overlay: impl Into<Overlay>) -> Self {
        self.configure(|sandbox| sandbox.overlay(overlay))
    }

    /// Shows them `volume` at the absolute path `place`, read-only: see
    /// [`SandboxBuilder::volume`]. What warms the template up has it as well.
    #[must_use]
    pub fn volume(self, place: impl Into<PathBuf>, volume: Volume) -> Self {
        self.configure(|sandbox| sandbox.volume(place, volume))
    }

    /// Their kernel: the tuned one if it has been built, else the stock one, if not said.
    #[must_use]
    pub fn kernel(self, kernel: Kernel) -> Self {
        self.configure(|sandbox| sandbox.kernel(kernel))
    }

    /// Where kernel, image and template are kept, and who is told when they have to be prepared.
    #[must_use]
    pub fn assets(self, assets: Assets) -> Self {
        self.configure(|sandbox| sandbox.assets(assets))
    }

    /// How long a command or program may take that does not say so itself. For ever, if not said.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.configure(|sandbox| sandbox.timeout(timeout))
    }

    /// How much is kept of what is written where it is collected: 16 MiB if not said. Of a command,
    /// that is each of its outputs; of a program, both together, as
    /// [`SandboxBuilder::output_limit`](crate::SandboxBuilder::output_limit) says.
    #[must_use]
    pub fn output_limit(self, limit: ByteSize) -> Self {
        self.configure(|sandbox| sandbox.output_limit(limit))
    }

    /// The real-time signal that the VMs' threads use among themselves. See
    /// [`SandboxBuilder::kick_signal`].
    #[must_use]
    pub fn kick_signal(self, number: i32) -> Self {
        self.configure(|sandbox| sandbox.kick_signal(number))
    }

    /// Where its guests run, and the one that it is made of: see [`Placement`].
    #[must_use]
    pub fn placement(self, placement: Placement) -> Self {
        self.configure(|sandbox| sandbox.placement(placement))
    }

    /// Runs a program before the guest is saved, as often as it is said and in that order.
    ///
    /// Of the languages whose interpreters the image can keep warm, as the packs can, one each is
    /// kept warm in any case, and the program runs in it and leaves there what it imports: all
    /// programs in that language that clones [run](Sandbox::run) start from there, each in a process
    /// of its own. A program with arguments, an environment or input of its own runs by itself: what
    /// it reads is in the page cache of every clone, and what it writes is there.
    #[must_use]
    pub fn warm_up(mut self, code: Code) -> Self {
        self.steps.push(Step::Run(code));
        self
    }

    /// Runs a command before the guest is saved, as its administrator.
    #[must_use]
    pub fn prepare(mut self, command: Command) -> Self {
        self.steps.push(Step::Exec(command));
        self
    }

    /// How clones get the memory that they share: [`Backing::Mapped`] if not said.
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> Self {
        self.memory.backing = backing;
        self
    }

    /// Whether this host's kernel may merge pages of equal content that clones have written, with
    /// each other's and with everybody's that allow it (KSM). It does if `/sys/kernel/mm/ksm/run` is
    /// 1. Off if not said.
    ///
    /// **Merging is a side channel.** To write to a merged page takes longer than to another, so
    /// that a guest can find out whether some other guest has a page of a certain content, and on
    /// some memory flip bits in it (Rowhammer). Allow it only among guests that may know of each
    /// other.
    #[must_use]
    pub fn mergeable(mut self, mergeable: bool) -> Self {
        self.memory.mergeable = mergeable;
        self
    }

    /// How much of its memory each clone may copy, which is what it costs this host: as much as it
    /// has if not said. See [`ForkOptions::memory_cap`](super::ForkOptions::memory_cap).
    #[must_use]
    pub fn memory_cap(mut self, cap: ByteSize) -> Self {
        self.memory.cap = Some(cap);
        self
    }

    /// How many shells are kept ready: clones that only wait to be told who they are. None if not
    /// said. Each costs about a thread for each processor, and no memory to speak of.
    #[must_use]
    pub fn shells(mut self, count: usize) -> Self {
        self.shells = count;
        self
    }

    /// Whether the template is looked for in the cache, and kept there: it is if not said.
    ///
    /// It is found by everything that goes into it: the image, the volumes, the kernel and its command
    /// line, the number of processors and the size of the memory, each step with all that it is given,
    /// the agent, and this host's kind of processor. What a step fetches from elsewhere is not known
    /// beforehand: a template that should fetch it anew has to be [removed](super::Templates), or
    /// not be cached.
    #[must_use]
    pub fn cached(mut self, cached: bool) -> Self {
        self.cached = cached;
        self
    }

    /// Whether it is recorded what clones touch first, so that those that are kept ready have it
    /// already, and the others find what they only read in huge pages: it is if not said. It takes two
    /// clones when the template is built, which answer and run an empty program. A template that few
    /// clones are made of is there sooner without.
    #[must_use]
    pub fn working_set(mut self, recorded: bool) -> Self {
        self.is_recorded = recorded;
        self
    }

    /// Takes the template from the cache, or else boots the guest, warms it up and saves it.
    ///
    /// Several who want the same template, in this process or others, build it once. A cache that
    /// cannot be written to costs only that the next one has to build it again; the [`Assets`]'
    /// progress is told.
    ///
    /// It has to be called on a tokio runtime with time and I/O. Dropping the future ends the
    /// guest.
    ///
    /// # Errors
    /// As for [`SandboxBuilder::boot`]; [`ErrorKind::WarmUpFailed`] with what it wrote if a step
    /// does not succeed.
    pub async fn build(self) -> Result<Template, Error> {
        let Self {
            sandbox,
            steps,
            shells,
            cached,
            is_recorded,
            memory,
        } = self;
        memory.backing.check()?;
        let prepare = move || Plan::new(sandbox, steps);
        let mut plan = blocking("preparing a template", prepare).await?;
        plan.memory = memory;
        plan.is_recorded = is_recorded;
        let inner = if cached {
            cache::find_or_build(plan).await?
        } else {
            plan.build().await?
        };
        Ok(Template::new(inner, shells))
    }
}

/// A template that is known to the last detail, and is still to be made.
pub(super) struct Plan {
    pub(super) sandbox: SandboxBuilder,
    pub(super) prepared: Prepared,
    /// The steps of the warm-up, with all that they are given.
    pub(super) programs: Vec<Program>,
    /// What the steps are, for people.
    summaries: Vec<String>,
    /// What its clones do with their memory.
    memory: MemoryUse,
    /// Whether it is recorded what clones touch first.
    pub(super) is_recorded: bool,
}

impl Plan {
    /// Blocks.
    fn new(sandbox: SandboxBuilder, steps: Vec<Step>) -> Result<Self, Error> {
        let prepared = sandbox.prepare()?;
        Self::with(sandbox, prepared, steps)
    }

    /// Blocks while it reads programs.
    pub(super) fn with(
        sandbox: SandboxBuilder,
        prepared: Prepared,
        steps: Vec<Step>,
    ) -> Result<Self, Error> {
        let image = &prepared.image;
        let timeout = sandbox.settings().timeout;
        let summaries = steps.iter().map(Step::summary).collect();
        let programs = (0..).zip(steps).map(|(number, step)| {
            let mut program = match step {
                Step::Run(code) => code.prepare(&image.languages, &image.account, number)?,
                Step::Exec(command) => command.into(),
            };
            if let (None, Some(timeout)) = (program.command.time_limit(), timeout) {
                program.command = program.command.timeout(timeout);
            }
            Ok(program)
        });
        let programs = programs.collect::<Result<_, Error>>()?;
        Ok(Self {
            sandbox,
            prepared,
            programs,
            summaries,
            memory: MemoryUse::default(),
            is_recorded: true,
        })
    }

    /// What its clones have in common, if it need not be booted.
    pub(super) fn fixture(&self, origin: Origin) -> Fixture {
        Fixture {
            image: self.prepared.image.clone(),
            disk: Arc::clone(&self.prepared.disk),
            volumes: self.prepared.volumes.clone(),
            // What was written to it is in the template's file.
            overlay: None,
            kick_signal: self.sandbox.signal(),
            place: self.prepared.place.clone(),
            memory: self.memory,
            settings: self.sandbox.settings(),
            origin: Arc::new(origin),
            runners: Vec::new(),
        }
    }

    /// What it is made from besides kernel and image, for people.
    fn built_from(&self) -> impl Iterator<Item = (String, String)> {
        let step = |number| format!("warm-up {number}");
        let summaries = self.summaries.iter().cloned();
        (1..).map(step).zip(summaries)
    }

    /// Boots the guest, warms it up and takes its state.
    pub(super) async fn build(self) -> Result<Inner, Error> {
        let progress = self.prepared.assets.progress().clone();
        let mut origin = Origin::clone(&self.prepared.origin);
        origin.built_from.extend(self.built_from());
        let boot = self.sandbox.boot_with(Some(self.prepared));
        let sandbox = progress.during("boot the template's guest", boot).await?;
        for language in &sandbox.parts()?.fixture.image.languages {
            let Some(text) = &language.warm_up else {
                continue;
            };
            let code = Code::new(&language.name, text).compile_timeout(FIRST_PROGRAM);
            let step = format!("run a first program in {}", language.name);
            let run = async {
                let output = sandbox.run(code).await?;
                succeeded(&format!("the first program in {}", language.name), &output)
            };
            progress.during(&step, run).await?;
        }
        let count = self.programs.len();
        let mut runners = Runners::of(&sandbox.parts()?.fixture.image.languages);
        for (index, program) in self.programs.into_iter().enumerate() {
            let step = format!("warm up ({} of {count})", index + 1);
            let Some(program) = runners.take_over(program) else {
                continue;
            };
            let what = format!("warm-up step {}", index + 1);
            let run = async { succeeded(&what, &sandbox.run_program(program).await?) };
            progress.during(&step, run).await?;
        }
        let languages = runners.start(&sandbox, &progress).await?;
        let shrink = give_back::free_memory(&sandbox);
        progress.during("give back free memory", shrink).await?;
        let mut inner = progress
            .during("take the guest's state", capture(&sandbox))
            .await?;
        inner.fixture.origin = Arc::new(origin);
        inner.fixture.runners = languages;
        inner.fixture.memory = self.memory;
        sandbox.close().await;
        if !self.is_recorded {
            let (image, backing) = (inner.memory.image(), inner.fixture.memory.backing);
            inner.ahead = working_set::ahead(image, backing, None)?;
            return Ok(inner);
        }
        let recorded = working_set::recorded(inner);
        progress
            .during("record what clones need first", recorded)
            .await
    }
}

impl Step {
    /// What it is, in a line or two.
    fn summary(&self) -> String {
        const SHOWN: usize = 200;
        let text = match self {
            Self::Run(code) => code.summary(),
            Self::Exec(command) => {
                let words = command
                    .argv()
                    .map(|word| word.to_string_lossy().into_owned());
                words.collect::<Vec<_>>().join(" ")
            }
        };
        match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
            None => text,
        }
    }
}

/// The interpreters that a template keeps warm, each with what it is to have done before.
#[derive(Debug)]
struct Runners(Vec<(Language, String)>);

impl Runners {
    /// All that the image can keep warm.
    fn of(languages: &[Language]) -> Self {
        let warmable = languages.iter().filter(|it| !it.runner.is_empty());
        Self(warmable.map(|it| (it.clone(), String::new())).collect())
    }

    /// Gives a step of the warm-up back, unless it is for an interpreter that is kept warm: then it
    /// runs there, and leaves there what it imports.
    fn take_over(&mut self, program: Program) -> Option<Program> {
        let setup = program.warm.as_ref().and_then(|warm| {
            let setup = warm.setup.as_ref()?;
            Some((&warm.language, setup))
        });
        if let Some((language, setup)) = setup
            && let Some((_, text)) = self.0.iter_mut().find(|(it, _)| it.name == *language)
        {
            text.push_str(setup);
            text.push('\n');
            return None;
        }
        Some(program)
    }

    /// Starts them, and says the languages.
    async fn start(self, sandbox: &Sandbox, progress: &Progress) -> Result<Vec<String>, Error> {
        let mut languages = Vec::new();
        for (language, setup) in self.0 {
            let parts = sandbox.parts()?;
            let account = &parts.fixture.image.account;
            let runner = WarmRunner::new(&language.name, &language.runner)
                .setup(setup)
                .user(&account.user)
                .current_dir(&account.home)
                .confined();
            let step = format!("warm up {}", language.name);
            let started = async {
                match parts.agent.warm(runner).await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(failed(sandbox.explain(error).await)),
                }
            };
            progress.during(&step, started).await?;
            languages.push(language.name);
        }
        Ok(languages)
    }
}

/// What the guest itself is to blame for stays its own.
fn failed(error: Error) -> Error {
    match error.kind() {
        ErrorKind::GuestDied | ErrorKind::Closed => error,
        _ => Error::new(ErrorKind::WarmUpFailed, error.to_string()),
    }
}

/// A template whose warm-up failed is not what its builder wanted.
fn succeeded(what: &str, output: &Output) -> Result<(), Error> {
    if output.success() {
        return Ok(());
    }
    let message = format!(
        "{what} ended with {}{}\n{}{}",
        output.outcome.status,
        if output.outcome.timed_out() {
            ", out of time"
        } else {
            ""
        },
        output.stdout.to_string_lossy(),
        output.stderr.to_string_lossy()
    );
    Err(Error::new(ErrorKind::WarmUpFailed, message.trim_end()))
}

impl fmt::Debug for TemplateBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemplateBuilder")
            .field("sandbox", &self.sandbox)
            .field("steps", &self.steps)
            .field("shells", &self.shells)
            .field("cached", &self.cached)
            .field("memory", &self.memory)
            .finish()
    }
}
