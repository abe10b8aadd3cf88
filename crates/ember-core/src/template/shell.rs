//! A clone that has not run yet, and what makes a sandbox of it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ember_guest::host::{Agent, Error as AgentError};
use ember_guest::protocol::ErrorCode;
use ember_snapshot::pager::PagerOptions;
use ember_snapshot::state::DeviceState;
use ember_vmm::devices::virtio::vsock::VsockConfig;
use ember_vmm::{RestoreConfig, Vm};
use ember_worker::host::{self, Pages, RemoteVm, Workers};

use super::Inner;
use super::options::{ForkOptions, WallClock};
use crate::backing::Backing;
use crate::error::{Error, ErrorKind};
use crate::placement::{Place, Placement};
use crate::sandbox::Sandbox;
use crate::sandbox::builder::{AGENT_PORT, build_error, building, channel, random};
use crate::sandbox::cap::CapWatch;
use crate::sandbox::disks::{self, Disk, block_configs, worker_disks};
use crate::sandbox::machine::{Line, Machine};
use crate::sandbox::overlay::OverlayFile;
use crate::sandbox::vm::GuestVm;

/// Far longer than a guest takes to answer that has nothing to do but that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// By how much a clone's wall clock may be late without being corrected. Programs are promised 5 ms.
const LATENESS: Duration = Duration::from_millis(3);
/// How often it is corrected on a host that is too busy to be quicker.
const CORRECTIONS: usize = 4;

/// A clone of a template that has not run yet, with everything in place that does not depend on
/// who it is to be. Nothing in it is anybody's.
pub struct Shell {
    vm: GuestVm,
    place: Place,
    /// The host's end of the connection that the template's agent had.
    stream: UnixStream,
    /// What it writes to, if that is a file.
    overlay: Option<OverlayFile>,
    template: Arc<Inner>,
}

impl Shell {
    /// Makes one. Takes about a millisecond, most of it in the kernel, and as long as it takes to copy
    /// what it writes to, if that is a file.
    pub(super) fn new(template: Arc<Inner>) -> Result<Self, Error> {
        let place = template.fixture.place.clone();
        let pages = pages(&template);
        Self::placed(template, place, pages)
    }

    /// Makes one that runs somewhere else than usual, or gets its memory in another way.
    pub(super) fn placed(template: Arc<Inner>, place: Place, pages: Pages) -> Result<Self, Error> {
        let overlay = template.fixture.overlay.as_ref();
        let overlay = overlay.map(OverlayFile::copy).transpose()?;
        Self::with(template, place, pages, overlay)
    }

    /// Makes the only one that there will be of this template, placed as is said or as usual.
    pub(super) fn only(mut template: Inner, placement: Option<Placement>) -> Result<Self, Error> {
        let place = match template.fixture.place.other(placement) {
            None => template.fixture.place.clone(),
            Some(placement) => Place::of(Some(placement))?,
        };
        let pages = pages(&template);
        // Nobody else needs it.
        let overlay = template.fixture.overlay.take();
        Self::with(Arc::new(template), place, pages, overlay)
    }

    /// Makes one that writes to `overlay`.
    fn with(
        template: Arc<Inner>,
        place: Place,
        pages: Pages,
        overlay: Option<OverlayFile>,
    ) -> Result<Self, Error> {
        let fixture = &template.fixture;
        let disks = disks::all(fixture.read_only_disks(), overlay.as_ref());
        let (vm, stream) = match &place {
            Place::InProcess => here(&template, &disks, pages)?,
            Place::Worker(workers) => in_worker(workers, &template, &disks, pages)?,
        };
        stream
            .set_nonblocking(true)
            .map_err(Error::of_host("cannot use the guest's channel"))?;
        Ok(Self {
            vm,
            place,
            stream,
            overlay,
            template,
        })
    }

    /// Brings in what the guest touches first, so that it need not wait for each page. Takes as long
    /// as the guest would take for it: worth it where nobody waits.
    #[must_use]
    pub(super) fn warm(self) -> Self {
        if let Some(touched) = &self.template.ahead {
            let parcel = &self.template.parcel;
            self.vm.prefetch(touched, || parcel.working_set(touched));
        }
        self
    }

    /// Lets it run as who `options` say. When this returns, the clone has said that it is unique in
    /// all that it was given; until then nothing of the caller's can run in it.
    ///
    /// # Errors
    /// [`ErrorKind::ForkFailed`] when it does not answer, or could not be made unique;
    /// [`ErrorKind::InvalidRequest`] for options that cannot be, such as another placement than it
    /// has. Either way there is no clone.
    pub async fn start(self, options: ForkOptions) -> Result<Sandbox, Error> {
        if let Some(placement) = self.place.other(options.placement) {
            let message = format!(
                "a shell that was made elsewhere cannot start as `{placement}`; \
                 `Template::fork_with` makes another one"
            );
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let Self {
            vm,
            place,
            stream,
            overlay,
            template,
        } = self;
        let clock = options.clock();
        let identity = options.identity()?;
        let generation_id = random()?;
        let line = Line::default();
        let hang_up = stream
            .try_clone()
            .map_err(Error::of_host("cannot use the guest's channel"))?;
        line.set(hang_up);
        let machine = Machine::new(vm, line);
        let stream = tokio::net::UnixStream::from_std(stream)
            .map_err(Error::of_host("cannot use the guest's channel"))?;
        let agent = Agent::attach(stream, template.hello.clone());
        let mut fixture = template.fixture.clone();
        fixture.place = place;
        fixture.overlay = overlay;
        if let Some(timeout) = options.timeout {
            fixture.settings.timeout = Some(timeout);
        }
        if let Some(limit) = options.output_limit {
            let limit = usize::try_from(limit.as_bytes()).unwrap_or(usize::MAX);
            fixture.settings.output_limit = limit;
        }
        if options.memory_cap.is_some() {
            fixture.memory.cap = options.memory_cap;
        }
        let cap = match fixture.memory.cap {
            Some(cap) => Some((cap, CapWatch::shared()?)),
            None => None,
        };
        let memory = Arc::clone(&template.memory);
        let told = Instant::now();
        let identity = identity.realtime(clock.now());
        let identify = async {
            agent.identify(identity).await?;
            if told.elapsed() > LATENESS {
                correct_clock(&agent, clock).await?;
            }
            Ok(())
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, identify);
        let mut answer = pin!(answer);
        // Said before the guest runs, so that it finds the message when it wakes, and need not be
        // woken again for it. (It can be no answer yet.)
        let early = poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
        tokio::task::yield_now().await;
        machine.start(Some(generation_id))?;
        // From here on a failure is explained by what became of the guest, and ends it.
        let mut sandbox = Sandbox::new(machine, agent.clone(), fixture, Some(memory));
        if let Some((cap, watch)) = cap {
            sandbox.hold_to(cap, watch);
        }
        let answer = match early {
            Poll::Ready(answer) => answer,
            Poll::Pending => answer.await,
        };
        match answer {
            Ok(Ok(())) => {
                // What this tells the guest's kernel, to draw its random numbers from elsewhere, it
                // has just been told in another way. It is for who else listens, and not waited for.
                sandbox.parts()?.vm.announce()?;
                Ok(sandbox)
            }
            Ok(Err(error)) => Err(failed(sandbox.explain(error).await)),
            Err(_) => Err(Error::new(
                ErrorKind::ForkFailed,
                format!(
                    "the clone did not answer within {} s, and was ended",
                    ANSWER_TIMEOUT.as_secs()
                ),
            )),
        }
    }
}

/// Sets the clone's wall clock once more: the first time it was as late as an identity takes to be
/// applied where each page has to be fetched first, and now it is as late as one answer takes.
async fn correct_clock(agent: &Agent, clock: WallClock) -> Result<(), AgentError> {
    for _ in 0..CORRECTIONS {
        match agent.set_clock(|| clock.now()).await {
            Ok(lateness) if lateness > LATENESS => {}
            Ok(_) => break,
            // Of a template that an older agent is in: it is late, as it always was.
            Err(error) if error.code() == Some(ErrorCode::Unsupported) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How the clones of `template` get their memory, if it is not said otherwise.
pub(super) fn pages(template: &Inner) -> Pages {
    match template.fixture.memory.backing {
        Backing::Mapped | Backing::HugePages => Pages::Mapped,
        Backing::OnDemand { window_pages } => Pages::OnDemand {
            window: window_pages,
        },
    }
}

/// A clone in this process, and the host's end of its channel.
fn here(template: &Inner, disks: &[Disk], pages: Pages) -> Result<(GuestVm, UnixStream), Error> {
    let fixture = &template.fixture;
    let backing = match pages {
        Pages::Mapped => ember_vmm::Backing::Mapped,
        Pages::OnDemand { window } => ember_vmm::Backing::Paged {
            source: Arc::clone(template.checkpoint.memory()) as _,
            options: PagerOptions {
                window_pages: window,
                ..PagerOptions::default()
            },
        },
    };
    let mut config = RestoreConfig {
        disks: block_configs(disks)?,
        vsock: VsockConfig {
            carried_ports: vec![AGENT_PORT],
            ..VsockConfig::default()
        },
        backing,
        mergeable: fixture.memory.mergeable,
        ..RestoreConfig::default()
    };
    if let Some(signal) = fixture.kick_signal {
        config.kick_signal = signal;
    }
    let vm = Vm::restore(&template.checkpoint, config).map_err(build_error)?;
    let stream = vm
        .vsock()
        .and_then(|vsock| vsock.take_carried(AGENT_PORT))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                "the template's agent had no connection",
            )
        })?;
    Ok((GuestVm::Local(Box::new(vm)), stream))
}

/// A clone in a worker, and the host's end of its channel.
fn in_worker(
    workers: &Workers,
    template: &Inner,
    disks: &[Disk],
    pages: Pages,
) -> Result<(GuestVm, UnixStream), Error> {
    let state = template.checkpoint.state();
    let file = template.parcel.state(state).map_err(|error| {
        let message = "cannot hand a template's state to a worker";
        Error::because(ErrorKind::Exhausted, message, error)
    })?;
    let (ours, channel) = channel()?;
    let config = host::RestoreConfig {
        state: &file,
        memory: template.checkpoint.memory(),
        memory_bytes: state.memory_bytes,
        has_balloon: state
            .virtio
            .iter()
            .any(|device| matches!(device.device, DeviceState::Balloon(_))),
        disks: worker_disks(disks),
        pages,
        mergeable: template.fixture.memory.mergeable,
        channel,
        port: AGENT_PORT,
    };
    let vm = RemoteVm::restore(workers, config)
        .map_err(|error| building("cannot build the VM", error))?;
    Ok((GuestVm::Remote(vm), ours))
}

/// A request that was wrong stays the caller's; all else means that there is no clone.
fn failed(error: Error) -> Error {
    if error.kind() == ErrorKind::InvalidRequest {
        return error;
    }
    let message = format!("the clone could not be made unique, and was ended: {error}");
    Error::because(ErrorKind::ForkFailed, message, error)
}

impl fmt::Debug for Shell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shell").finish_non_exhaustive()
    }
}
