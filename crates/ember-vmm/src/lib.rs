//! A small KVM monitor: a virtual machine as a value.
//!
//! A [`Vm`] owns everything its guest needs: memory, virtual CPUs, interrupt chip and devices. It
//! can be started, paused, resumed and stopped from any thread, and dropping it frees everything.
//! Nothing here is process-wide except the kick signal, whose number the embedder can choose.
#![deny(unsafe_code)]

mod arch;
mod config;
pub mod devices;
mod event_loop;
mod exit;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod hypervisor;
pub mod kernel;
mod memory;
pub mod probe;
mod thread;
mod vcpu;
mod vm;

pub use arch::Processor;
pub use config::{MAX_MEMORY_BYTES, MAX_VCPUS, MIN_MEMORY_BYTES, VmConfig};
pub use exit::ExitReason;
pub use hypervisor::Hypervisor;
pub use vcpu::kick::default_kick_signal;
pub use vm::{
    Backing, BuildError, Checkpoint, Ended, LiveSaveError, MemoryCopy, MemoryRange,
    OutOfMemoryRange, RestoreConfig, RestoreError, SaveError, Saved, Vm, is_exhausted,
};
