//! Virtio devices (Virtual I/O Device specification, version 1.2), each the same shape:
//!
//! - `mod.rs`: what the embedder configures and holds (configuration, handles);
//! - `device.rs`: the `VirtioDevice` itself, driven by the VM's one device thread;
//! - files that parse what the guest wrote, without I/O, so that a fuzzer can call them;
//! - `tests.rs`.
//!
//! The transport (virtio over MMIO) owns negotiation, queue setup and interrupts; a device only
//! sees a validated `Activation`.

pub mod balloon;
pub mod block;
pub mod entropy;
pub(crate) mod mmio;
pub mod network;
pub mod vsock;

mod chain;
mod config_space;
mod positioned_io;
mod queue;
#[cfg(test)]
mod testing;

use std::fmt;
use std::io;

use ember_snapshot::state::DeviceState;
use vmm_sys_util::epoll::EventSet;

use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

pub(crate) use virtio_queue::Queue;

/// One virtio device, as the transport and the device thread see it.
///
/// The device is behind a mutex. Register accesses of a vCPU reach [`read_config`], [`write_config`],
/// [`activate`] and [`reset`]; everything else is called by the device thread only. Whatever the
/// guest wrote is hostile: every call is bounded in time and memory, and none panics. A device that
/// cannot go on because the driver broke the rules stops serving its queues until it is reset.
///
/// [`read_config`]: VirtioDevice::read_config
/// [`write_config`]: VirtioDevice::write_config
/// [`activate`]: VirtioDevice::activate
/// [`reset`]: VirtioDevice::reset
pub(crate) trait VirtioDevice: Send + fmt::Debug {
    /// A short name for messages, such as `block`.
    fn name(&self) -> &'static str;

    /// The virtio device id (specification section 5).
    fn device_type(&self) -> u32;

    /// The feature bits this device offers. The transport adds `VIRTIO_F_VERSION_1`; a device adds
    /// `VIRTIO_RING_F_EVENT_IDX` if it honours it.
    fn features(&self) -> u64;

    /// The largest size of each queue, one entry per queue; each a power of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads device configuration space. Bytes beyond its end read as zero (`data` comes zeroed).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space. Writes beyond its end are ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Called once, before the VM runs, with the way to have host descriptors watched.
    /// Registrations may be made here and at any later time.
    fn attach(&mut self, _events: EventRegistry) -> io::Result<()> {
        Ok(())
    }

    /// The driver set `DRIVER_OK`; all queues of `activation` that it enabled are valid in guest
    /// memory. From now on the device may use them. Queues the driver left unready have
    /// `queue.ready() == false`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver reset the device: forget the queues and all of the guest's state.
    fn reset(&mut self);

    /// The driver rang the doorbell, for whichever queue. Never called before `activate` or after
    /// `reset`.
    fn notified(&mut self) {
        for index in 0..self.queue_max_sizes().len() {
            self.queue_notified(index);
        }
    }

    /// There may be something new in queue `index` (always below `queue_max_sizes().len()`). Never
    /// called before `activate` or after `reset`.
    fn queue_notified(&mut self, index: usize);

    /// A host descriptor that was registered under `token` is ready. May be late: the device may
    /// have removed the descriptor in the meantime, so tokens are not to be reused.
    fn host_event(&mut self, _token: u32, _readiness: EventSet) {}

    /// The queues, between `activate` and `reset`; none when the driver broke the rules.
    fn active(&self) -> Option<&queue::Active>;

    /// What is particular to this device, to be saved. The device thread stands still.
    fn save(&self) -> DeviceState;

    /// Becomes what `saved` says, before anything else is called.
    fn restore(&mut self, saved: &DeviceState) -> Result<(), RestoreError>;
}

/// A saved device cannot be put back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    /// What the embedder gave is not what the guest knows.
    #[error("{device}: {why}")]
    Different {
        /// The device.
        device: &'static str,
        /// What differs.
        why: String,
    },
    /// The state of a queue cannot be.
    #[error("the saved queue {0} cannot be")]
    Queue(usize),
    /// The device cannot work on its queues.
    #[error("the device cannot go on")]
    Activate(#[from] ActivateError),
}

impl RestoreError {
    fn different(device: &'static str, why: impl Into<String>) -> Self {
        Self::Different {
            device,
            why: why.into(),
        }
    }
}

/// What the driver agreed on, handed over when it says that it is ready.
#[derive(Debug)]
pub(crate) struct Activation {
    /// The guest's memory.
    pub(crate) memory: GuestMemory,
    /// The device's queues, in order.
    pub(crate) queues: Vec<Queue>,
    /// How to interrupt the driver.
    pub(crate) interrupt: Interrupt,
    /// The feature bits both sides agreed on.
    pub(crate) features: u64,
    /// For queues that were in use before: how far each one's driver had been interrupted.
    pub(crate) announced: Vec<u16>,
}

/// The driver's setup cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivateError {
    /// A queue the device cannot do without was not made ready.
    #[error("queue {0} was not made ready")]
    QueueNotReady(usize),
    /// A host call failed.
    #[error("a host call failed")]
    Host(#[from] io::Error),
}

/// How a device interrupts its driver: one interrupt line with a status register that says why.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    status: std::sync::Arc<std::sync::atomic::AtomicU32>,
    line: std::sync::Arc<vmm_sys_util::eventfd::EventFd>,
}

impl Interrupt {
    /// A line that is raised by writing `line` (an irqfd). `status` is the register the driver
    /// reads and acknowledges.
    pub(crate) fn new(
        status: std::sync::Arc<std::sync::atomic::AtomicU32>,
        line: std::sync::Arc<vmm_sys_util::eventfd::EventFd>,
    ) -> Self {
        Self { status, line }
    }

    /// Tells the driver that buffers were used. Call it only when the driver wants to know
    /// ([`virtio_queue::QueueT::needs_notification`]).
    pub(crate) fn used(&self) {
        self.raise(virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space changed.
    pub(crate) fn configuration_changed(&self) {
        self.raise(virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_CONFIG);
    }

    fn raise(&self, why: u32) {
        self.status
            .fetch_or(why, std::sync::atomic::Ordering::SeqCst);
        // An eventfd write fails only if the counter would overflow, and then the line is
        // raised already.
        let _ = self.line.write(1);
    }
}
