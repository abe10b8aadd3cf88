//! From a description to a guest that answers.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ember_guest::host::Agent;
use ember_guest::volumes::device;
use ember_vmm::devices::serial::ConsoleConfig;
use ember_vmm::devices::virtio::balloon::BalloonConfig;
use ember_vmm::devices::virtio::vsock::VsockConfig;
use ember_vmm::kernel::{Initramfs, KernelImage};
use ember_vmm::{BuildError, ExitReason, Vm, VmConfig, probe};
use ember_worker::host::{BootConfig, RemoteVm, WorkerError, Workers};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::disks::{self, Disk, block_configs, worker_disks};
use super::machine::{Line, Machine};
use super::overlay::{OverlayFile, OverlayPlan};
use super::vm::{GuestVm, worker_error};
use super::volumes::{self, ReadyVolume};
use super::{Fixture, Sandbox, Settings};
use crate::assets::{Assets, Image, Kernel, ReadyImage, ReadyKernel, Volume};
use crate::backing::MemoryUse;
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind};
use crate::overlay::Overlay;
use crate::placement::{Place, Placement};
use crate::size::ByteSize;
use crate::template::{Origin, Source};

/// The host's vsock port that the agent calls.
pub(crate) const AGENT_PORT: u32 = 1024;
/// Far longer than any boot, also of a stock kernel on a busy machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const MEMORY: ByteSize = ByteSize::mib(256);
/// How long a guest that hangs up on its host is given to end.
const HUNG_UP: Duration = Duration::from_secs(1);
const OUTPUT_LIMIT: ByteSize = ByteSize::mib(16);

type Console = Box<dyn FnMut(&[u8]) + Send>;

/// What a sandbox is to be.
pub struct SandboxBuilder {
    image: Image,
    kernel: Kernel,
    assets: Option<Assets>,
    vcpus: u8,
    memory: Option<ByteSize>,
    overlay: Option<Overlay>,
    volumes: Vec<(PathBuf, Volume)>,
    timeout: Option<Duration>,
    boot_timeout: Duration,
    output_limit: ByteSize,
    console: Option<Console>,
    kick_signal: Option<i32>,
    placement: Option<Placement>,
    is_template: bool,
}

/// Everything that a guest is made from, on disk and opened.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) assets: Assets,
    pub(crate) kernel: ReadyKernel,
    pub(crate) image: ReadyImage,
    /// The image's file: from here on, another may come in its place.
    pub(crate) disk: Arc<File>,
    pub(crate) volumes: Vec<ReadyVolume>,
    /// The disk that it is to write to, if it is to have one.
    pub(crate) overlay: Option<OverlayPlan>,
    pub(crate) command_line: String,
    pub(crate) origin: Arc<Origin>,
    pub(crate) place: Place,
}

impl SandboxBuilder {
    pub(super) fn new(image: Image) -> Self {
        Self {
            image,
            kernel: Kernel::default(),
            assets: None,
            vcpus: 1,
            memory: None,
            overlay: None,
            volumes: Vec::new(),
            timeout: None,
            boot_timeout: BOOT_TIMEOUT,
            output_limit: OUTPUT_LIMIT,
            console: None,
            kick_signal: None,
            placement: None,
            is_template: false,
        }
    }

    /// How many processors it has: 1 to 32, and 1 if not said.
    #[must_use]
    pub fn vcpus(mut self, count: u8) -> Self {
        self.vcpus = count;
        self
    }

    /// How much memory it has: at least 64 MiB. If not said, what the pack's recipe says, else
    /// 256 MiB.
    #[must_use]
    pub fn memory(mut self, size: ByteSize) -> Self {
        self.memory = Some(size);
        self
    }

    /// How much may be written over the image, in files and what is in `/tmp` together, and whether the
    /// guest's memory or a [file](Overlay::file) holds it: half of its memory, in it, if not said.
    #[must_use]
    pub fn overlay(mut self, overlay: impl Into<Overlay>) -> Self {
        self.overlay = Some(overlay.into());
        self
    }

    /// Shows it `volume` at the absolute path `place`, besides its image: read-only, for programs and
    /// commands alike, and without meaning of set-user-id bits and devices. The directory is made if
    /// it is not there, and what the image has in it is hidden. Clones have the volumes of what they
    /// are clones of. There can be eight, none within another, and none in `/proc`, `/sys` or `/dev`.
    ///
    /// Each is a disk of its own on the same file of this host for all that have it, so that what one
    /// has read is in the host's memory for the others.
    #[must_use]
    pub fn volume(mut self, place: impl Into<PathBuf>, volume: Volume) -> Self {
        self.volumes.push((place.into(), volume));
        self
    }

    /// Its kernel: the tuned one if it has been built, else the stock one, if not said.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// Where kernel and image are kept, and who is told when they have to be prepared.
    #[must_use]
    pub fn assets(mut self, assets: Assets) -> Self {
        self.assets = Some(assets);
        self
    }

    /// How long a command or program may take that does not say so itself. For ever, if not said.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long it may take to boot: one minute if not said.
    #[must_use]
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// How much is kept of what is written where it is collected: 16 MiB if not said. Of a command,
    /// that is each of its outputs, and what is more is dropped; of a [program](Sandbox::run), both
    /// together, and one that writes more is ended, unless its own [`Limits`](crate::Limits) say how
    /// much it may write. Streams have no limit.
    #[must_use]
    pub fn output_limit(mut self, limit: ByteSize) -> Self {
        self.output_limit = limit;
        self
    }

    /// Hands what the guest writes on its console to `sink` as it comes, and has the kernel write
    /// more there. The sink runs on the VM's device thread and must not block.
    #[must_use]
    pub fn console(mut self, sink: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.console = Some(Box::new(sink));
        self
    }

    /// The real-time signal that the VM's threads use among themselves, if the application needs
    /// the usual one for itself. It is the one thing about a sandbox that is process-wide. One that
    /// runs in a [worker](Placement::Worker) uses none here.
    #[must_use]
    pub fn kick_signal(mut self, number: i32) -> Self {
        self.kick_signal = Some(number);
        self
    }

    /// Where it runs: see [`Placement`].
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(placement);
        self
    }

    /// It is to be cloned: it gets the devices that a clone needs and a guest that boots by itself
    /// does not.
    pub(crate) fn for_template(mut self) -> Self {
        self.is_template = true;
        self
    }

    /// Boots the guest and returns when it answers. Whatever is not in the cache yet is prepared
    /// first, which can take a minute the first time.
    ///
    /// It has to be called on a tokio runtime with time and I/O. Dropping the future ends the
    /// guest.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`] and [`ErrorKind::InvalidRequest`] before there is a VM, the latter
    /// also for a volume that is no squashfs or cannot be where it is to be,
    /// [`ErrorKind::HostUnsupported`] if the host cannot run one, [`ErrorKind::BootFailed`] with
    /// the console's last lines if the guest does not come up.
    pub async fn boot(self) -> Result<Sandbox, Error> {
        self.boot_with(None).await
    }

    /// [`boot`](Self::boot) with what may have been prepared before.
    pub(crate) async fn boot_with(self, prepared: Option<Prepared>) -> Result<Sandbox, Error> {
        let boot_timeout = self.boot_timeout;
        let (sender, mut calls) = mpsc::channel::<UnixStream>(1);
        let line = Line::default();
        let machine_line = line.clone();
        // Preparing, building and even starting a VM all wait for the kernel at places.
        let start = move || self.start(prepared, sender, machine_line);
        let (machine, fixture) = blocking("building a sandbox", start).await?;

        let greeted = async {
            let Some(stream) = calls.recv().await else {
                // The VM is gone, and the reason is known to the machine.
                return std::future::pending().await;
            };
            let connect = async {
                line.set(stream.try_clone()?);
                stream.set_nonblocking(true)?;
                tokio::net::UnixStream::from_std(stream)
            };
            let stream = connect.await.map_err(|error| {
                Error::because(ErrorKind::Internal, "cannot use the guest's channel", error)
            })?;
            Agent::connect(stream).await.map_err(|error| {
                Error::because(
                    ErrorKind::BootFailed,
                    "the guest's agent was not understood",
                    error,
                )
            })
        };
        let why = tokio::select! {
            // A guest that ended may have greeted before: how it ended says more.
            biased;
            reason = machine.watcher().ended() => Failure::Ended(reason),
            agent = greeted => match agent {
                Ok(agent) => return Ok(Sandbox::new(machine, agent, fixture, None)),
                // The end of its channel is seen before its own, if it ends.
                Err(error) => match timeout(HUNG_UP, machine.watcher().ended()).await {
                    Ok(reason) => Failure::Ended(reason),
                    Err(_) => Failure::Greeting(error),
                },
            },
            () = tokio::time::sleep(boot_timeout) => Failure::Late(boot_timeout),
        };
        machine.stop();
        let host = match why {
            Failure::Greeting(_) => None,
            // A host that only pretends to virtualize fails in these ways.
            _ => tokio::task::spawn_blocking(probe::probe).await.ok(),
        };
        Err(why.into_error(host.as_ref(), &machine.watcher().console_tail()))
    }

    /// Prepares what the guest is made from, so that all is known of it. Blocks.
    pub(crate) fn prepare(&self) -> Result<Prepared, Error> {
        let places = volumes::places(&self.volumes)?;
        let overlay = self.overlay.as_ref().map(OverlayPlan::of).transpose()?;
        let overlay = overlay.flatten();
        let place = Place::of(self.placement)?;
        let assets = match &self.assets {
            Some(assets) => assets.clone(),
            None => Assets::of_user()?,
        };
        let kernel = assets.kernel(&self.kernel)?;
        let image = assets.image(&self.image)?;
        let unopened = |what: &str, path: &Path| {
            let message = format!("cannot open the {what} {}", path.display());
            move |error| Error::because(ErrorKind::Unprepared, message, error)
        };
        let disk = File::open(&image.file).map_err(unopened("image", &image.file))?;
        let source = |what, name, path: &Path, file: &File| {
            let stamp = assets.stamp(path, file).map_err(unopened(what, path))?;
            Ok::<_, Error>(Source::file(name, path, stamp))
        };
        let mut ready = Vec::with_capacity(places.len());
        let mut of_volumes = Vec::with_capacity(places.len());
        for (place, (_, volume)) in places.iter().zip(&self.volumes) {
            let volume_file = volumes::prepare(&assets, place, volume)?;
            let (path, file) = (&volume_file.file, &volume_file.disk);
            of_volumes.push(source("volume", volume.to_string(), path, file)?);
            ready.push(volume_file);
        }
        let kernel_file = File::open(&kernel.image).map_err(unopened("kernel", &kernel.image))?;
        let origin = Origin {
            kernel: Some(source(
                "kernel",
                kernel.description.clone(),
                &kernel.image,
                &kernel_file,
            )?),
            image: source("image", self.image.to_string(), &image.file, &disk)?,
            volumes: of_volumes,
            built_from: BTreeMap::new(),
        };
        Ok(Prepared {
            command_line: command_line(
                &image,
                self.console.is_some(),
                self.overlay.as_ref(),
                &places,
            ),
            assets,
            kernel,
            image,
            disk: Arc::new(disk),
            volumes: ready,
            overlay,
            origin: Arc::new(origin),
            place,
        })
    }

    /// How many processors and how much memory it has.
    pub(crate) fn size(&self, image: &ReadyImage) -> (u8, ByteSize) {
        let usual = image
            .memory_mib
            .map_or(MEMORY, |mib| ByteSize::mib(mib.into()));
        (self.vcpus, self.memory.unwrap_or(usual))
    }

    /// The real-time signal that it is to use, if that was said.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.kick_signal
    }

    /// What holds for everything that runs in it.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            timeout: self.timeout,
            output_limit: usize::try_from(self.output_limit.as_bytes()).unwrap_or(usize::MAX),
        }
    }

    /// Prepares everything and starts the VM. Blocks.
    fn start(
        self,
        prepared: Option<Prepared>,
        calls: mpsc::Sender<UnixStream>,
        line: Line,
    ) -> Result<(Machine, Fixture), Error> {
        let Prepared {
            assets,
            kernel,
            image,
            disk,
            volumes,
            overlay,
            command_line,
            origin,
            place,
        } = match prepared {
            Some(prepared) => prepared,
            None => self.prepare()?,
        };
        let settings = self.settings();
        let kick_signal = self.kick_signal;
        let overlay = overlay.as_ref().map(OverlayFile::create).transpose()?;
        let made = Making {
            memory: self.size(&image).1,
            initramfs: assets.initramfs(&kernel)?,
            kernel: &kernel.image,
            disks: disks::all(disks::read_only(&disk, &volumes), overlay.as_ref()),
            command_line,
            calls,
        };
        let vm = match &place {
            Place::InProcess => self.make_here(made)?,
            Place::Worker(workers) => self.make_in_worker(workers, made)?,
        };
        let machine = Machine::new(vm, line);
        machine.start(None)?;
        let fixture = Fixture {
            image,
            disk,
            volumes,
            overlay,
            kick_signal,
            place,
            // What boots has memory of its own.
            memory: MemoryUse::default(),
            settings,
            origin,
            runners: Vec::new(),
        };
        Ok((machine, fixture))
    }

    /// A VM in this process.
    fn make_here(self, made: Making<'_>) -> Result<GuestVm, Error> {
        let kernel = KernelImage::from_path(made.kernel).map_err(|error| {
            let message = format!("cannot use the kernel {}", made.kernel.display());
            Error::because(ErrorKind::InvalidRequest, message, error)
        })?;
        let mut config = VmConfig::new(kernel);
        config.vcpus = self.vcpus;
        config.memory_bytes = made.memory.as_bytes();
        config.initramfs = made.initramfs;
        config.command_line = made.command_line;
        config.disks = block_configs(&made.disks)?;
        config.vsock = Some(VsockConfig::default());
        if self.is_template {
            config.balloon = Some(BalloonConfig::default());
            config.generation_id = Some(random()?);
        }
        config.console = ConsoleConfig {
            sink: self.console,
            ..ConsoleConfig::default()
        };
        if let Some(signal) = self.kick_signal {
            config.kick_signal = signal;
        }
        let vm = Vm::new(config).map_err(build_error)?;
        let Some(vsock) = vm.vsock() else {
            let message = "the VM has no guest channel";
            return Err(Error::new(ErrorKind::Internal, message));
        };
        let calls = made.calls;
        // Only the first call is the agent's; whoever calls later is hung up on.
        let accept = move |stream| drop(calls.try_send(stream));
        vsock
            .listen(AGENT_PORT, Box::new(accept))
            .map_err(|error| {
                let message = "cannot listen for the guest's agent";
                Error::because(ErrorKind::Internal, message, error)
            })?;
        Ok(GuestVm::Local(Box::new(vm)))
    }

    /// A VM in a worker.
    fn make_in_worker(self, workers: &Workers, made: Making<'_>) -> Result<GuestVm, Error> {
        let kernel = File::open(made.kernel).map_err(|error| {
            let message = format!("cannot use the kernel {}", made.kernel.display());
            Error::because(ErrorKind::InvalidRequest, message, error)
        })?;
        let (ours, channel) = channel()?;
        let config = BootConfig {
            vcpus: self.vcpus,
            memory_bytes: made.memory.as_bytes(),
            kernel,
            initramfs: made.initramfs,
            command_line: made.command_line,
            disks: worker_disks(&made.disks),
            balloon: self.is_template,
            generation_id: match self.is_template {
                true => Some(random()?),
                false => None,
            },
            channel,
            port: AGENT_PORT,
            console: self.console,
        };
        let vm = RemoteVm::boot(workers, config).map_err(|error| {
            // The worker has but its contents.
            let kernel = made.kernel.display();
            building(
                &format!("cannot build the VM with the kernel {kernel}"),
                error,
            )
        })?;
        // The agent's first words come out of it once it has called.
        drop(made.calls.try_send(ours));
        Ok(GuestVm::Remote(vm))
    }
}

/// What a VM is made of, wherever that is.
struct Making<'a> {
    memory: ByteSize,
    kernel: &'a Path,
    initramfs: Initramfs,
    /// The image first.
    disks: Vec<Disk>,
    command_line: String,
    /// Who is told when the guest's agent calls.
    calls: mpsc::Sender<UnixStream>,
}

/// Both ends of a guest's channel: the caller's, and the device's. They are made here, and one of
/// them is handed over, so that nobody else can change how this end behaves.
pub(crate) fn channel() -> Result<(UnixStream, UnixStream), Error> {
    UnixStream::pair().map_err(Error::of_host("cannot make a guest's channel"))
}

/// Why a worker has made no VM. That its process has ended says something of the host.
pub(crate) fn building(failed: &str, error: WorkerError) -> Error {
    match error {
        WorkerError::Ended(reason) => {
            let message = format!("{failed}: {reason}; `ember doctor` examines this host");
            Error::new(ErrorKind::HostUnsupported, message)
        }
        error => worker_error(failed, error),
    }
}

/// Random bytes of this host's.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        let message = "this host has no random numbers";
        Error::because(ErrorKind::HostUnsupported, message, error.to_string())
    })?;
    Ok(bytes)
}

/// The kernel's command line.
fn command_line(
    image: &ReadyImage,
    verbose: bool,
    overlay: Option<&Overlay>,
    volumes: &[PathBuf],
) -> String {
    let mut words = vec!["console=ttyS0", "panic=-1", "ember.root=/dev/vda"];
    // A stock kernel spends half its boot, and more in the background, on testing its ciphers.
    words.push("cryptomgr.notests=1");
    // The machine has no PCI, and a kernel that looks for it leaves the VM for each guess.
    words.push("pci=off");
    // A kernel's messages cost exits of the VM for every byte, and a kernel in a machine as bare as
    // this one complains of what it misses. What is critical, a panic above all, still gets out.
    words.push(if verbose { "loglevel=7" } else { "loglevel=3" });
    let file_system = image
        .file_system
        .map(|kind| format!("ember.rootfstype={kind}"));
    words.extend(file_system.as_deref());
    let overlay = overlay.map(|it| match it.directory() {
        Some(_) => format!("ember.overlay={}", device(volumes.len())),
        // A size of zero would be no bound at all (tmpfs(5)).
        None => format!("ember.overlay={}k", (it.size().as_bytes() >> 10).max(1)),
    });
    words.extend(overlay.as_deref());
    let port = format!("ember.port={AGENT_PORT}");
    words.push(&port);
    words.push("ember.hostname=ember");
    let volumes: Vec<String> = volumes::words(volumes).collect();
    words.extend(volumes.iter().map(String::as_str));
    words.join(" ")
}

pub(crate) fn build_error(error: BuildError) -> Error {
    let kind = match &error {
        BuildError::Configuration(_) | BuildError::Kernel(_) => ErrorKind::InvalidRequest,
        _ if error.is_exhausted() => ErrorKind::Exhausted,
        _ => ErrorKind::HostUnsupported,
    };
    let advice = match kind {
        ErrorKind::HostUnsupported => "; `ember doctor` examines this host",
        ErrorKind::Exhausted => {
            ": this process, or the host, has no more of it; a clone needs some 30 descriptors, a \
             thread for each processor and one more, and its memory's addresses"
        }
        _ => "",
    };
    Error::because(kind, format!("cannot build the VM{advice}"), error)
}

/// Why a guest did not come up.
enum Failure {
    Ended(ExitReason),
    Late(Duration),
    Greeting(Error),
}

impl Failure {
    fn into_error(self, host: Option<&probe::Verdict>, console: &str) -> Error {
        if let Some(verdict) = host.filter(|verdict| !verdict.is_real()) {
            let advice = verdict.advice().unwrap_or_default();
            let message = format!("this host's KVM cannot boot a guest ({verdict}); {advice}");
            return Error::new(ErrorKind::HostUnsupported, message);
        }
        let advice = "give it a kernel and an image that belong together (those of \
                      `ember prepare` do), or watch its whole console with `--console`";
        match self {
            Self::Ended(reason) => Error::new(
                ErrorKind::BootFailed,
                format!("the guest ended before it was ready: {reason}; {advice}{console}"),
            ),
            Self::Late(limit) => Error::new(
                ErrorKind::BootFailed,
                format!(
                    "the guest was not ready within {} s; {advice}{console}",
                    limit.as_secs_f64()
                ),
            ),
            Self::Greeting(error) => Error::because(
                ErrorKind::BootFailed,
                format!("the guest came up and its agent did not; {advice}{console}"),
                error,
            ),
        }
    }
}

impl fmt::Debug for SandboxBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxBuilder")
            .field("image", &self.image)
            .field("kernel", &self.kernel)
            .field("vcpus", &self.vcpus)
            .field("memory", &self.memory)
            .field("volumes", &self.volumes)
            .field("timeout", &self.timeout)
            .field("boot_timeout", &self.boot_timeout)
            .finish_non_exhaustive()
    }
}
