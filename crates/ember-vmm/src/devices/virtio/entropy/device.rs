//! The entropy device: one queue of buffers to fill.

use std::io;

use ember_snapshot::state::DeviceState;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::epoll::EventSet;

use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::queue::{Active, EVENT_IDX, QueueError, Turn, Turns};
use crate::devices::virtio::{ActivateError, Activation, RestoreError, VirtioDevice};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

const QUEUE: usize = 0;
/// A driver keeps one or two requests in flight.
const QUEUE_SIZE: u16 = 16;
/// The most bytes one request gets; a driver asks again for more.
const MAX_BYTES: u32 = 4096;

/// The token of the device's own event.
const TURNS: u32 = 0;

/// A source of randomness.
#[derive(Debug)]
pub(crate) struct EntropyDevice {
    turns: Turns,
    active: Option<Active>,
}

impl EntropyDevice {
    /// A source that draws from the host's generator.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            turns: Turns::new()?,
            active: None,
        })
    }
}

impl VirtioDevice for EntropyDevice {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn attach(&mut self, events: EventRegistry) -> io::Result<()> {
        self.turns.attach(&events, TURNS)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(Active::new(self.name(), activation, 1)?);
        self.turns.later(QUEUE);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.turns.clear();
    }

    fn queue_notified(&mut self, _index: usize) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.serve(QUEUE, fill) == Turn::More {
            self.turns.later(QUEUE);
        }
    }

    fn host_event(&mut self, token: u32, _readiness: EventSet) {
        if token == TURNS && self.turns.take() != 0 {
            self.queue_notified(QUEUE);
        }
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Entropy
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), RestoreError> {
        match saved {
            DeviceState::Entropy => Ok(()),
            _ => Err(RestoreError::different(
                self.name(),
                "another device was saved",
            )),
        }
    }
}

/// Fills as much of `chain` as one request gets.
fn fill(memory: &GuestMemory, chain: &Chain) -> Result<u32, QueueError> {
    let length = chain.writable.len().min(MAX_BYTES);
    let mut bytes = [0; MAX_BYTES as usize];
    let bytes = &mut bytes[..length as usize];
    if let Err(error) = getrandom::fill(bytes) {
        // Zeroes must never pass for randomness: the guest gets nothing.
        tracing::warn!(%error, "the host's random generator failed");
        return Ok(0);
    }
    chain
        .writable
        .write(memory, 0, bytes)
        .map_err(|_| QueueError::Request("a buffer outside guest memory"))?;
    Ok(length)
}
