//! A virtual machine as a value.

mod build;
mod devices;
mod error;
mod live;
mod restore;
mod save;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ember_snapshot::pager::Pager;

use crate::arch::layout;
use crate::config::VmConfig;
use crate::devices::bus::Bus;
use crate::devices::generation_id::GenerationId;
use crate::devices::serial::Console;
use crate::devices::virtio::balloon::BalloonHandle;
use crate::devices::virtio::vsock::VsockHandle;
use crate::event_loop::EventLoop;
use crate::exit::ExitReason;
use crate::hypervisor::Hypervisor;
use crate::memory::VmWithMemory;
use crate::vcpu::{Mode, Vcpu, VcpuControl};

use error::host;
pub use error::{BuildError, is_exhausted};
pub use live::{LiveSaveError, MemoryCopy, Saved};
use restore::SavedTime;
pub use restore::{Backing, Checkpoint, RestoreConfig, RestoreError};
pub use save::{MemoryRange, SaveError};

/// A virtual machine.
///
/// It is built paused; [`Vm::start`] lets it run. Every method can be called from any thread. A VM
/// that ended stays ended. Dropping it stops it, waits for its threads (some milliseconds), and
/// frees everything it held.
pub struct Vm {
    control: Arc<VcpuControl>,
    event_loop: EventLoop,
    vcpu_threads: Mutex<Vec<JoinHandle<()>>>,
    vcpus: Vec<Vcpu>,
    bus: Arc<Bus>,
    vsock: Option<VsockHandle>,
    balloon: Option<BalloonHandle>,
    generation_id: Option<GenerationId>,
    /// Held while a change between running and paused is on its way, so that none sees another's
    /// half. Stopping does not take it. It guards the time of a restored VM that has not started:
    /// it stands still until then.
    transition: Mutex<Option<SavedTime>>,
    /// Fills the memory on demand, if anything does. It must not end before the guest has.
    pager: Option<Pager>,
    hypervisor: Hypervisor,
    vm: VmWithMemory,
}

/// The VM ended, so it can be neither started nor paused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the VM has ended: {0}")]
pub struct Ended(pub ExitReason);

/// A range that is not wholly within the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has no memory at {address:#x} to {address:#x} + {len:#x}")]
pub struct OutOfMemoryRange {
    /// The guest-physical address the range begins at.
    pub address: u64,
    /// Its length in bytes.
    pub len: usize,
}

impl Vm {
    /// Builds a VM that is ready to start: memory, vCPUs, devices and threads exist, and no
    /// instruction of the guest has been executed.
    ///
    /// # Errors
    /// If the configuration is out of bounds, or the host refuses a part of it; nothing is left
    /// behind.
    pub fn new(config: VmConfig) -> Result<Self, BuildError> {
        build::build(config)
    }

    /// Builds a VM that goes on from where the one was that `checkpoint` was made of, when it is
    /// [started](Self::start). Any number can be made of one checkpoint.
    ///
    /// # Errors
    /// If `config` does not give it what it had, or the host refuses a part of it; nothing is left
    /// behind.
    pub fn restore(checkpoint: &Checkpoint, config: RestoreConfig) -> Result<Self, BuildError> {
        restore::restore(checkpoint, config)
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// If the VM has ended.
    pub fn start(&self) -> Result<(), Ended> {
        let mut saved_time = self.transition();
        if let Some(time) = saved_time.take()
            && let Err(error) = time.set(&self.vm, &self.vcpus)
        {
            // It cannot be set half: such a guest must not run.
            let what = format!("the guest's time cannot be set: {error}");
            self.control.finish(ExitReason::MonitorFailed { what });
        }
        self.event_loop.resume();
        self.set_mode(Mode::Running)
    }

    /// Returns when no vCPU is in the guest and no device works. Until [`Vm::resume`], nothing
    /// changes the guest's memory or state.
    ///
    /// # Errors
    /// If the VM has ended.
    pub fn pause(&self) -> Result<(), Ended> {
        let _transition = self.transition();
        self.set_mode(Mode::Paused)?;
        self.control.wait_parked();
        self.event_loop.pause();
        Ok(())
    }

    /// Goes on after [`Vm::pause`].
    ///
    /// # Errors
    /// If the VM has ended.
    pub fn resume(&self) -> Result<(), Ended> {
        self.start()
    }

    /// Ends the VM, now. The guest notices nothing; it has no time to write anything back.
    pub fn stop(&self) {
        self.control.finish(ExitReason::Stopped);
    }

    /// Waits until the VM ends and says why.
    pub fn wait(&self) -> ExitReason {
        // Without a deadline there is always an answer.
        self.control.wait_exit(None).unwrap_or(ExitReason::Stopped)
    }

    /// Waits at most `timeout` for the VM to end. `None`: it has not.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<ExitReason> {
        self.control.wait_exit(Instant::now().checked_add(timeout))
    }

    /// Why the VM ended, if it did.
    pub fn exit(&self) -> Option<ExitReason> {
        self.control.exit()
    }

    /// Has `callback` called once when the VM ends: on the thread that ended it, so it must be
    /// quick, or at once if it has ended.
    pub fn on_exit(&self, callback: Box<dyn FnOnce(&ExitReason) + Send>) {
        self.control.on_exit(callback);
    }

    /// The guest channel, if the VM has one.
    pub fn vsock(&self) -> Option<VsockHandle> {
        self.vsock.clone()
    }

    /// The balloon, if the VM has one.
    pub fn balloon(&self) -> Option<BalloonHandle> {
        self.balloon.clone()
    }

    /// The VM generation id, if the VM has one.
    pub fn generation_id(&self) -> Option<GenerationId> {
        self.generation_id.clone()
    }

    /// The serial console.
    pub fn console(&self) -> Console {
        self.bus.serial.console().clone()
    }

    /// The size of the guest's memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        layout::memory_bytes(self.vm.memory())
    }

    /// A copy of `len` bytes of guest memory from the guest-physical address `address` on. Only of
    /// a paused VM is it a copy of one moment.
    ///
    /// # Errors
    /// If the range is not wholly within the guest's memory.
    pub fn read_memory(&self, address: u64, len: usize) -> Result<Vec<u8>, OutOfMemoryRange> {
        use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
        let start = GuestAddress(address);
        if !self.vm.memory().check_range(start, len) {
            return Err(OutOfMemoryRange { address, len });
        }
        let mut bytes = vec![0; len];
        self.vm
            .memory()
            .read_slice(&mut bytes, start)
            .map_err(|_| OutOfMemoryRange { address, len })?;
        Ok(bytes)
    }

    fn transition(&self) -> MutexGuard<'_, Option<SavedTime>> {
        self.transition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_mode(&self, mode: Mode) -> Result<(), Ended> {
        if self.control.set_mode(mode) {
            return Ok(());
        }
        Err(Ended(self.control.exit().unwrap_or(ExitReason::Stopped)))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
        let threads = std::mem::take(
            &mut *self
                .vcpu_threads
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for thread in threads {
            // A panic of the thread was reported where it happened.
            let _ = thread.join();
        }
        self.event_loop.stop();
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}
