//! From a saved VM to any number of VMs that go on from there.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use ember_snapshot::PageSource;
use ember_snapshot::pager::{Pager, PagerOptions};
use ember_snapshot::state::{ClockState, VmState};
use kvm_ioctls::Kvm;

use super::build::{Parts, assemble, new_vm};
use super::devices::Devices;
use super::{BuildError, Vm, host};
use crate::arch::state::{self, PreparedChips, PreparedVcpu, StateError};
use crate::arch::{self, HostFeatures, layout};
use crate::config::{MAX_MEMORY_BYTES, MAX_VCPUS, MIN_MEMORY_BYTES};
use crate::devices::serial::ConsoleConfig;
use crate::devices::virtio::block::BlockConfig;
use crate::devices::virtio::network::NetworkConfig;
use crate::devices::virtio::vsock::VsockConfig;
use crate::event_loop::EventLoop;
use crate::exit::ExitReason;
use crate::hypervisor::Hypervisor;
use crate::memory::{self, VmWithMemory};
use crate::vcpu::kick::{self, default_kick_signal};
use crate::vcpu::{Vcpu, VcpuControl};

/// A saved VM that was checked against this host: what clones are made of. A clone of this value
/// shares everything with it.
#[derive(Clone)]
pub struct Checkpoint(Arc<Inner>);

struct Inner {
    hypervisor: Hypervisor,
    state: VmState,
    memory: Arc<File>,
    prepared: Arc<Prepared>,
}

/// The parts of the state that belong to the processors, in KVM's form.
struct Prepared {
    vcpus: Vec<PreparedVcpu>,
    chips: PreparedChips,
    clock: ClockState,
}

/// A state that cannot be restored on this host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// There is no usable `/dev/kvm`.
    #[error("cannot open /dev/kvm; `BuildError::Kvm` says what usually helps")]
    Kvm(#[source] kvm_ioctls::Error),
    /// The host lacks something that the guest was told it has.
    #[error("{0}")]
    Unsupported(String),
    /// The state is not one that this monitor saved.
    #[error("{0}")]
    Invalid(String),
    /// KVM refused a step.
    #[error("cannot ask KVM what a vCPU of this host is like")]
    Host(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Checkpoint {
    /// Checks `state` against this host. `memory` is the guest's memory: all of it, in the order of
    /// its addresses, without the hole below 4 GiB. It must not change for as long as any VM lives
    /// that was made of it: seal it if it is a memfd.
    ///
    /// # Errors
    /// If this host cannot run such a VM; the message names what it lacks.
    pub fn new(state: VmState, memory: Arc<File>) -> Result<Self, RestoreError> {
        let kvm = Kvm::new().map_err(RestoreError::Kvm)?;
        Self::with(Hypervisor::from(kvm), state, memory)
    }

    /// [`new`](Self::new) with a KVM that is open already.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with(
        hypervisor: Hypervisor,
        state: VmState,
        memory: Arc<File>,
    ) -> Result<Self, RestoreError> {
        check(&state, &memory)?;
        let kvm = hypervisor.kvm();
        let error = |error: arch::SetupError| RestoreError::Host(Box::new(error));
        let host = HostFeatures::read(kvm).map_err(error)?;
        let (vcpus, chips) = state::prepare(kvm, &host, &state).map_err(|error| match error {
            StateError::Unsupported(error) => RestoreError::Unsupported(error.to_string()),
            StateError::Invalid(_) => RestoreError::Invalid(error.to_string()),
            StateError::Kvm(error) => RestoreError::Host(Box::new(error)),
        })?;
        let prepared = Prepared {
            vcpus,
            chips,
            clock: state.clock,
        };
        Ok(Self(Arc::new(Inner {
            hypervisor,
            state,
            memory,
            prepared: Arc::new(prepared),
        })))
    }

    /// The state.
    pub fn state(&self) -> &VmState {
        &self.0.state
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<File> {
        &self.0.memory
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("memory_bytes", &self.0.state.memory_bytes)
            .field("vcpus", &self.0.state.vcpus.len())
            .finish_non_exhaustive()
    }
}

fn check(state: &VmState, memory: &File) -> Result<(), RestoreError> {
    let invalid = |message: String| Err(RestoreError::Invalid(message));
    let vcpus = state.vcpus.len();
    if !(1..=usize::from(MAX_VCPUS)).contains(&vcpus) {
        return invalid(format!("a VM has 1 to {MAX_VCPUS} vCPUs, not {vcpus}"));
    }
    let bytes = state.memory_bytes;
    if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes)
        || !bytes.is_multiple_of(layout::PAGE_SIZE)
    {
        return invalid(format!("a VM cannot have {bytes} bytes of memory"));
    }
    match memory.metadata() {
        Ok(metadata) if metadata.len() < bytes => invalid(format!(
            "the VM has {bytes} bytes of memory and its file only {}",
            metadata.len()
        )),
        Ok(_) => Ok(()),
        Err(error) => invalid(format!(
            "the file of the VM's memory cannot be used: {error}"
        )),
    }
}

/// How a restored VM gets its memory.
#[derive(Clone, Default)]
pub enum Backing {
    /// The checkpoint's file is mapped: pages that no VM has written to are shared by all.
    #[default]
    Mapped,
    /// Each page is read from a source when it is first touched. Needs userfaultfd. A source that
    /// fails ends the VM, with its reason.
    Paged {
        /// Where the pages are.
        source: Arc<dyn PageSource>,
        /// How many are read at once.
        options: PagerOptions,
    },
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped => f.write_str("Mapped"),
            Self::Paged { options, .. } => f.debug_tuple("Paged").field(options).finish(),
        }
    }
}

/// What fills the memory of a VM that is being put together.
pub(super) struct PendingPager {
    source: Arc<dyn PageSource>,
    options: PagerOptions,
}

impl PendingPager {
    pub(super) fn start(
        self,
        vm: &VmWithMemory,
        control: Arc<VcpuControl>,
    ) -> Result<Pager, BuildError> {
        let mapping =
            memory::mapping(vm.memory()).map_err(host("cannot page the guest's memory"))?;
        Pager::start(mapping, self.source, self.options, move |failure| {
            let source = std::error::Error::source(&failure)
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            let what = format!("{failure}{source}");
            control.finish(ExitReason::MonitorFailed { what });
            // What cannot be filled reads as something else from now on: nobody may see it.
            control.wait_stopped();
        })
        .map_err(host("cannot page the guest's memory"))
    }
}

/// What a restored VM gets of this host.
#[derive(Debug)]
pub struct RestoreConfig {
    /// See [`VmConfig::kick_signal`](crate::VmConfig::kick_signal).
    pub kick_signal: i32,
    /// Where the serial console goes.
    pub console: ConsoleConfig,
    /// Its disks, in the order that they had. Each must be of the size that it had, and what is on
    /// it must be what was on it.
    pub disks: Vec<BlockConfig>,
    /// Its network cards, in the order that they had. They keep their addresses.
    pub networks: Vec<NetworkConfig>,
    /// Its guest channel. The guest keeps its context id.
    pub vsock: VsockConfig,
    /// Where its memory is.
    pub backing: Backing,
    /// Whether the host's kernel may merge pages of equal content that the guest has written, with
    /// its own and with those of others that may be merged (KSM). That is a side channel among
    /// them: a write to a merged page takes longer.
    pub mergeable: bool,
}

impl Default for RestoreConfig {
    /// No disks, no network cards, and the usual of everything else.
    fn default() -> Self {
        Self {
            kick_signal: default_kick_signal(),
            console: ConsoleConfig::default(),
            disks: Vec::new(),
            networks: Vec::new(),
            vsock: VsockConfig::default(),
            backing: Backing::default(),
            mergeable: false,
        }
    }
}

/// The time in a restored VM that has not started yet: it stands still.
pub(super) struct SavedTime(Arc<Prepared>);

impl SavedTime {
    /// Lets it go on.
    pub(super) fn set(&self, vm: &VmWithMemory, vcpus: &[Vcpu]) -> Result<(), arch::SetupError> {
        for (index, (vcpu, state)) in vcpus.iter().zip(&self.0.vcpus).enumerate() {
            let boot_vcpu = vcpus.first().filter(|_| index > 0).map(Vcpu::lock);
            state::restore_time(&vcpu.lock(), state, boot_vcpu.as_deref())?;
        }
        state::restore_clock(vm.fd(), &self.0.clock)
    }
}

pub(super) fn restore(
    checkpoint: &Checkpoint,
    mut config: RestoreConfig,
) -> Result<Vm, BuildError> {
    let Inner {
        hypervisor,
        state,
        memory,
        prepared,
    } = &*checkpoint.0;
    kick::install_handler(config.kick_signal).map_err(host("cannot take the kick signal"))?;
    let (memory, pager) = match std::mem::take(&mut config.backing) {
        Backing::Mapped => (memory::map_private(memory, state.memory_bytes), None),
        Backing::Paged { source, options } => (
            memory::map_anonymous(state.memory_bytes),
            Some(PendingPager { source, options }),
        ),
    };
    let memory = memory.map_err(host(format!(
        "cannot map {} MiB of guest memory",
        state.memory_bytes >> 20
    )))?;
    if config.mergeable {
        memory::allow_merging(&memory).map_err(host(
            "cannot have equal pages merged, which takes a kernel with KSM",
        ))?;
    }
    let vm = new_vm(hypervisor.kvm(), memory)?;
    let event_loop = EventLoop::new().map_err(host("cannot create the device thread's epoll"))?;
    let devices = Devices::restore(&mut config, state, &vm)?;
    devices.connect(&vm, &event_loop)?;
    let vcpus = u8::try_from(state.vcpus.len()).unwrap_or(MAX_VCPUS);
    let value = assemble(
        Parts {
            hypervisor: hypervisor.clone(),
            vm,
            event_loop,
            devices,
            kick_signal: config.kick_signal,
            vcpus,
            time: Some(SavedTime(Arc::clone(prepared))),
            pager,
        },
        |index, vcpu| match prepared.vcpus.get(usize::from(index)) {
            Some(state) => state::restore_vcpu(vcpu, state),
            None => Ok(()),
        },
    )?;
    state::restore_chips(value.vm.fd(), &prepared.chips)
        .map_err(host("cannot restore the interrupt chips"))?;
    // After the chips, which would forget it.
    for device in &value.bus.virtio {
        device.raise_unseen();
    }
    value.bus.serial.raise_unseen();
    Ok(value)
}
