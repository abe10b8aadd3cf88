//! What every device does with its queues: take chains, give them back, interrupt the driver, and
//! stop where a turn ends.
//!
//! All devices of a VM share one thread. A turn on a queue is therefore bounded, in chains and in
//! bytes; what is left is served in a later turn, after the other devices had theirs.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};

use ember_snapshot::state::QueueState;
use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::chain::{Chain, ChainError};
use super::{ActivateError, Activation, Interrupt, Queue};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

/// The feature bit of notification suppression by index, which everything here honours.
pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// After so many bytes a turn ends, however few chains they came in.
const TURN_BYTES: u64 = 4 << 20;
/// So many old chains are kept for their memory.
const MAX_SPARE: usize = 64;

/// Why a device stopped serving its queues until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    /// The rings themselves make no sense.
    #[error("the ring cannot be used")]
    Ring(#[from] virtio_queue::Error),
    /// The rings cannot be accessed.
    #[error("the ring is outside guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// A chain makes no sense.
    #[error("a descriptor chain is malformed")]
    Chain(#[from] ChainError),
    /// A request breaks a rule of its device, and there is no way to tell the driver.
    #[error("the driver sent {0}")]
    Request(&'static str),
}

/// How a turn on a queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing is left; the driver will ring the doorbell.
    Done,
    /// There may be more: take another turn ([`Turns::later`]).
    More,
}

/// A device between activation and reset.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) memory: GuestMemory,
    pub(crate) interrupt: Interrupt,
    queues: Vec<DeviceQueue>,
    name: &'static str,
    broken: bool,
}

impl Active {
    /// Takes over what the driver set up. The first `required` queues must be ready.
    pub(crate) fn new(
        name: &'static str,
        activation: Activation,
        required: usize,
    ) -> Result<Self, ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            features,
            announced,
        } = activation;
        for index in 0..required {
            if !queues.get(index).is_some_and(QueueT::ready) {
                return Err(ActivateError::QueueNotReady(index));
            }
        }
        let mut queues = queues
            .into_iter()
            .map(|queue| DeviceQueue::new(queue, features))
            .collect::<Vec<_>>();
        for (queue, announced) in queues.iter_mut().zip(announced) {
            queue.announced = announced;
        }
        Ok(Self {
            memory,
            interrupt,
            queues,
            name,
            broken: false,
        })
    }

    /// The queues, to be saved.
    pub(crate) fn save(&self) -> Vec<QueueState> {
        let saved = |queue: &DeviceQueue| save_queue(&queue.queue, queue.announced);
        self.queues.iter().map(saved).collect()
    }

    /// Takes one turn on queue `index`: hands each chain to `serve`, which says how many bytes it
    /// wrote to the chain's writable buffers.
    pub(crate) fn serve(
        &mut self,
        index: usize,
        mut serve: impl FnMut(&GuestMemory, &Chain) -> Result<u32, QueueError>,
    ) -> Turn {
        self.with_queue(index, |queue, memory| {
            let mut chains = 0;
            let mut bytes = 0;
            queue.decline_doorbells(memory)?;
            while let Some(chain) = queue.pop_or_ask(memory)? {
                chains += 1;
                bytes += chain.len();
                let written = serve(memory, &chain)?;
                queue.push(memory, chain, written)?;
                if chains >= queue.size() || bytes >= TURN_BYTES {
                    return Ok(Turn::More);
                }
            }
            Ok(Turn::Done)
        })
        .unwrap_or(Turn::Done)
    }

    /// Lets `work` have queue `index`, then interrupts the driver if chains went back to it.
    /// `None` if the queue is not served: it was not made ready, or the driver broke the rules, now
    /// or before.
    pub(crate) fn with_queue<T>(
        &mut self,
        index: usize,
        work: impl FnOnce(&mut DeviceQueue, &GuestMemory) -> Result<T, QueueError>,
    ) -> Option<T> {
        if !self.queues.get(index)?.queue.ready() {
            return None;
        }
        self.serve_some(index..index + 1, |queues, memory| match queues {
            [queue] => work(queue, memory).map(Some),
            _ => Ok(None),
        })
        .flatten()
    }

    /// Lets `work` have all queues, then interrupts the driver once if chains went back to any of
    /// them. `None` if nothing is served because the driver broke the rules, now or before.
    pub(crate) fn with_queues<T>(
        &mut self,
        work: impl FnOnce(&mut [DeviceQueue], &GuestMemory) -> Result<T, QueueError>,
    ) -> Option<T> {
        self.serve_some(0..self.queues.len(), work)
    }

    /// Whether the driver was interrupted for all that went back to it by queue `index`, or does
    /// not want to be.
    pub(crate) fn is_announced(&self, index: usize) -> bool {
        self.queues
            .get(index)
            .is_none_or(|queue| queue.announced == queue.queue.next_used())
    }

    fn serve_some<T>(
        &mut self,
        which: Range<usize>,
        work: impl FnOnce(&mut [DeviceQueue], &GuestMemory) -> Result<T, QueueError>,
    ) -> Option<T> {
        let queues = self.queues.get_mut(which.clone())?;
        if self.broken {
            return None;
        }
        let worked = work(queues, &self.memory);
        // Chains that were served before an error are the driver's again, and it waits for them.
        let notified = notify(queues, &self.memory, &self.interrupt);
        match worked.and_then(|value| notified.map(|()| value)) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(
                    device = self.name,
                    queues = ?which,
                    error = &error as &dyn std::error::Error,
                    "the driver broke the rules; its device stands still until it is reset"
                );
                self.broken = true;
                None
            }
        }
    }
}

/// One queue, to be saved.
pub(crate) fn save_queue(queue: &Queue, announced: u16) -> QueueState {
    QueueState {
        size: queue.size(),
        ready: queue.ready(),
        descriptor_table: queue.desc_table(),
        available_ring: queue.avail_ring(),
        used_ring: queue.used_ring(),
        next_available: queue.next_avail(),
        next_used: queue.next_used(),
        announced,
    }
}

/// A queue as it was saved. `None` if there cannot be one like that.
pub(crate) fn restore_queue(max_size: u16, event_idx: bool, saved: &QueueState) -> Option<Queue> {
    Queue::try_from(virtio_queue::QueueState {
        max_size,
        next_avail: saved.next_available,
        next_used: saved.next_used,
        event_idx_enabled: event_idx,
        size: saved.size,
        ready: saved.ready,
        desc_table: saved.descriptor_table,
        avail_ring: saved.available_ring,
        used_ring: saved.used_ring,
    })
    .ok()
}

/// Interrupts the driver if one of `queues` gives it a reason to. A driver looks at all queues when
/// it is interrupted, so that one interrupt announces what went back by any of them.
fn notify(
    queues: &mut [DeviceQueue],
    memory: &GuestMemory,
    interrupt: &Interrupt,
) -> Result<(), QueueError> {
    let mut wanted = false;
    for queue in queues.iter_mut().filter(|queue| !queue.holds_back) {
        wanted |= queue.wants_interrupt(memory)?;
    }
    if wanted {
        for queue in queues.iter_mut() {
            queue.announced = queue.queue.next_used();
        }
        interrupt.used();
    }
    Ok(())
}

/// One queue of an active device.
#[derive(Debug)]
pub(crate) struct DeviceQueue {
    queue: Queue,
    /// Old chains whose memory the next ones use.
    spare: Vec<Chain>,
    /// The used index when the driver was last considered for an interrupt.
    announced: u16,
    /// What went back is no reason for an interrupt of its own.
    holds_back: bool,
}

impl DeviceQueue {
    fn new(mut queue: Queue, features: u64) -> Self {
        queue.set_event_idx(features & EVENT_IDX != 0);
        let announced = queue.next_used();
        Self {
            queue,
            spare: Vec::new(),
            announced,
            holds_back: false,
        }
    }

    /// Whether the driver is to learn of what goes back by this queue only when it is interrupted
    /// for another one. Until it is, [`Active::is_announced`] says no.
    pub(crate) fn hold_back(&mut self, hold_back: bool) {
        self.holds_back = hold_back;
    }

    /// The number of descriptors.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next chain the driver made available.
    pub(crate) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        // `iter` refuses an index that is more than a queue ahead.
        let Some(chain) = self.queue.iter(memory)?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        let mut chain = self.spare.pop().unwrap_or_default();
        let table = GuestAddress(self.queue.desc_table());
        chain.read(memory, table, self.queue.size(), head)?;
        Ok(Some(chain))
    }

    /// The next chain, or none and a doorbell at the next one.
    pub(crate) fn pop_or_ask(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if let Some(chain) = self.pop(memory)? {
            return Ok(Some(chain));
        }
        // A chain that came before the driver saw the wish comes without a doorbell. One look is
        // enough: only a driver that takes chains back could make it disappear again.
        if self.queue.enable_notification(memory)? {
            self.pop(memory)
        } else {
            Ok(None)
        }
    }

    /// Takes back that the last `chains.len()` chains were popped, which are `chains`.
    pub(crate) fn unpop(&mut self, chains: impl ExactSizeIterator<Item = Chain>) {
        for chain in chains {
            self.queue.go_to_previous_position();
            self.recycle(chain);
        }
    }

    /// Gives a chain back to the driver with `written` bytes in its writable buffers.
    pub(crate) fn push(
        &mut self,
        memory: &GuestMemory,
        chain: Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        self.queue.add_used(memory, chain.head(), written)?;
        self.recycle(chain);
        Ok(())
    }

    /// Gives several chains back to the driver, which sees all of them at once or none.
    pub(crate) fn push_all(
        &mut self,
        memory: &GuestMemory,
        chains: impl ExactSizeIterator<Item = (Chain, u32)>,
    ) -> Result<(), QueueError> {
        let mut left = chains.len();
        for (chain, written) in chains {
            left -= 1;
            if left == 0 {
                // Stores the index, behind all that was written before.
                return self.push(memory, chain, written);
            }
            let next_used = self.queue.next_used();
            // The ring was checked when the queue was set up: no overflow. Its entries come after
            // two words of flags and index (specification section 2.7.8).
            let slot = u64::from(next_used % self.queue.size());
            let entry = GuestAddress(self.queue.used_ring() + 4 + slot * 8);
            let words = [u32::from(chain.head()).to_le(), written.to_le()];
            memory.write_obj(words, entry)?;
            self.queue.set_next_used(next_used.wrapping_add(1));
            self.recycle(chain);
        }
        Ok(())
    }

    /// Says that doorbells are not needed.
    pub(crate) fn decline_doorbells(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(memory)?)
    }

    /// Whether chains went back since the last time and the driver wants to be interrupted for
    /// them (specification section 2.7.7).
    fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let used = self.queue.next_used();
        let before = std::mem::replace(&mut self.announced, used);
        if used == before {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read: the driver writes its
        // wish, then looks at the index once more.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        if self.queue.event_idx_enabled() {
            // Behind two words of flags and index and the ring itself.
            let event = GuestAddress(ring + 4 + 2 * u64::from(self.queue.size()));
            let event: u16 = u16::from_le(memory.load(event, Ordering::Relaxed)?);
            // The driver named an index, and it was passed.
            Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(before))
        } else {
            let flags: u16 = u16::from_le(memory.load(GuestAddress(ring), Ordering::Relaxed)?);
            Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    fn recycle(&mut self, chain: Chain) {
        if self.spare.len() < MAX_SPARE {
            self.spare.push(chain);
        }
    }
}

/// A device's way to be called again: an event of its own that the device thread watches, and the
/// queues that wait for another turn.
#[derive(Debug)]
pub(crate) struct Turns {
    event: EventFd,
    events: Option<EventRegistry>,
    waiting: u32,
}

impl Turns {
    /// No queue waits, and nothing is watched yet.
    pub(crate) fn new() -> io::Result<Self> {
        let event =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            event,
            events: None,
            waiting: 0,
        })
    }

    /// Has the event watched under `token`.
    pub(crate) fn attach(&mut self, events: &EventRegistry, token: u32) -> io::Result<()> {
        events.add(self.event.as_fd(), token, EventSet::IN)?;
        self.events = Some(events.clone());
        Ok(())
    }

    /// Queue `index` waits for another turn.
    pub(crate) fn later(&mut self, index: usize) {
        self.waiting |= 1 << index;
        // Fails only if the counter would overflow, and then the event is raised already.
        let _ = self.event.write(1);
    }

    /// The queues that waited, as a set of bits, when the event was reported.
    pub(crate) fn take(&mut self) -> u32 {
        // Fails only if the event was not raised.
        let _ = self.event.read();
        std::mem::take(&mut self.waiting)
    }

    /// No queue waits any more.
    pub(crate) fn clear(&mut self) {
        self.take();
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        if let Some(events) = &self.events {
            // The descriptor is closed next, which takes it out of the epoll set as well.
            let _ = events.remove(self.event.as_fd());
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
