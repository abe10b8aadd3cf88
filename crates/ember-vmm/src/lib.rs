//! A small KVM monitor: a virtual machine as a value.
//!
//! A `Vm` owns everything its guest needs: memory, virtual CPUs, interrupt chip and devices. It
//! can be started, paused, resumed and stopped from any thread, and dropping it frees everything.
//! Nothing here is process-wide except the kick signal, whose number the embedder can choose.

#![allow(dead_code, unused_imports)] // until the parts below are put together

mod arch;
pub mod devices;
mod event_loop;
mod exit;
pub mod kernel;
mod memory;
pub mod probe;
mod thread;
mod vcpu;

pub use exit::ExitReason;
pub use vcpu::kick::default_kick_signal;
