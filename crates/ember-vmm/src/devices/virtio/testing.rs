//! A driver for tests: it sets up a device's queues in real guest memory and uses them as a guest
//! would, honestly or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{Epoll, EpollEvent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::queue::EVENT_IDX;
use super::{ActivateError, Activation, Interrupt, Queue, VirtioDevice};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

/// Guest memory: 8 MiB at 0, and 1 MiB at 1 GiB behind a hole.
pub(crate) const LOW_END: u64 = 8 << 20;
pub(crate) const HIGH_START: u64 = 1 << 30;
pub(crate) const HIGH_END: u64 = HIGH_START + (1 << 20);
/// Buffers of tests start here; below are the queues.
pub(crate) const BUFFERS: u64 = 1 << 20;

const QUEUE_SPACING: u64 = 0x1_0000;
const AVAIL_OFFSET: u64 = 0x4000;
const USED_OFFSET: u64 = 0x8000;

pub(crate) fn guest_memory() -> GuestMemory {
    GuestMemory::from_ranges(&[
        (GuestAddress(0), LOW_END as usize),
        (GuestAddress(HIGH_START), (HIGH_END - HIGH_START) as usize),
    ])
    .unwrap()
}

/// The driver of one device.
#[derive(Debug)]
pub(crate) struct Driver<D> {
    pub(crate) device: D,
    pub(crate) memory: GuestMemory,
    epoll: Arc<Epoll>,
    status: Arc<AtomicU32>,
    line: Arc<EventFd>,
    queues: Vec<DriverQueue>,
}

#[derive(Debug)]
struct DriverQueue {
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl<D: VirtioDevice> Driver<D> {
    /// Attaches the device and activates it with every feature it offers.
    pub(crate) fn new(device: D) -> Self {
        let features = device.features();
        Self::with_features(device, features)
    }

    /// Attaches the device and activates it with `features`.
    pub(crate) fn with_features(device: D, features: u64) -> Self {
        let mut driver = Self::attached(device);
        driver.activate(features, u32::MAX).unwrap();
        driver.run();
        driver
    }

    /// Attaches the device without activating it.
    pub(crate) fn attached(mut device: D) -> Self {
        let epoll = Arc::new(Epoll::new().unwrap());
        device
            .attach(EventRegistry::unwatched(Arc::clone(&epoll), 7))
            .unwrap();
        Self {
            device,
            memory: guest_memory(),
            epoll,
            status: Arc::default(),
            line: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            queues: Vec::new(),
        }
    }

    /// Activates the device with fresh queues, those of them ready that are in the set `ready`.
    pub(crate) fn activate(&mut self, features: u64, ready: u32) -> Result<(), ActivateError> {
        self.queues.clear();
        let mut queues = Vec::new();
        for (index, size) in self.device.queue_max_sizes().iter().copied().enumerate() {
            let base = QUEUE_SPACING * (index as u64 + 1);
            self.memory
                .write_slice(&vec![0; QUEUE_SPACING as usize], GuestAddress(base))
                .unwrap();
            let mut queue = Queue::new(size).unwrap();
            queue.set_desc_table_address(Some(base as u32), Some(0));
            queue.set_avail_ring_address(Some((base + AVAIL_OFFSET) as u32), Some(0));
            queue.set_used_ring_address(Some((base + USED_OFFSET) as u32), Some(0));
            queue.set_event_idx(features & EVENT_IDX != 0);
            queue.set_ready(ready & 1 << index != 0);
            queues.push(queue);
            self.queues.push(DriverQueue {
                base,
                size,
                next_descriptor: 0,
                available: 0,
                used: 0,
            });
        }
        let interrupt = Interrupt::new(Arc::clone(&self.status), Arc::clone(&self.line));
        self.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            interrupt,
            features,
            announced: Vec::new(),
        })
    }

    /// Writes one descriptor.
    pub(crate) fn put_descriptor(
        &self,
        queue: usize,
        index: u16,
        (address, length, flags, next): (u64, u32, u16, u16),
    ) {
        let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        let at = GuestAddress(self.queues[queue].base + u64::from(index) * 16);
        self.memory.write_obj([address, rest], at).unwrap();
    }

    /// Makes descriptor `head` available, whatever it is.
    pub(crate) fn make_available(&mut self, queue: usize, head: u16) {
        let state = &mut self.queues[queue];
        let ring = state.base + AVAIL_OFFSET;
        let slot = u64::from(state.available % state.size);
        self.memory
            .write_obj(head, GuestAddress(ring + 4 + slot * 2))
            .unwrap();
        state.available = state.available.wrapping_add(1);
        self.memory
            .store(state.available, GuestAddress(ring + 2), Ordering::Release)
            .unwrap();
    }

    /// Claims that `index` chains were made available.
    pub(crate) fn put_available_index(&mut self, queue: usize, index: u16) {
        let ring = self.queues[queue].base + AVAIL_OFFSET;
        self.memory
            .store(index, GuestAddress(ring + 2), Ordering::Release)
            .unwrap();
    }

    /// Makes a chain of `readable` and `writable` buffers (address, length) available. Returns its
    /// head.
    pub(crate) fn add(
        &mut self,
        queue: usize,
        readable: &[(u64, u32)],
        writable: &[(u64, u32)],
    ) -> u16 {
        let count = readable.len() + writable.len();
        let size = self.queues[queue].size;
        let first = self.queues[queue].next_descriptor;
        let flags = readable
            .iter()
            .map(|_| 0)
            .chain(writable.iter().map(|_| VRING_DESC_F_WRITE));
        let buffers = readable.iter().chain(writable);
        for (position, (&(address, length), flags)) in buffers.zip(flags).enumerate() {
            let last = position + 1 == count;
            let flags = if last {
                flags
            } else {
                flags | VRING_DESC_F_NEXT
            } as u16;
            let index = (first + position as u16) % size;
            self.put_descriptor(queue, index, (address, length, flags, (index + 1) % size));
        }
        self.queues[queue].next_descriptor = (first + count as u16) % size;
        self.make_available(queue, first);
        first
    }

    /// Rings the doorbell of a queue, then lets the device do what it wants to do later.
    pub(crate) fn kick(&mut self, queue: usize) {
        self.device.queue_notified(queue);
        self.run();
    }

    /// Reports descriptors to the device until none is ready. Returns how many were.
    pub(crate) fn run(&mut self) -> usize {
        let mut total = 0;
        loop {
            let count = self.run_once(0);
            if count == 0 {
                return total;
            }
            total += count;
            assert!(total < 100_000, "the device never comes to rest");
        }
    }

    /// Reports the descriptors that become ready within `milliseconds`.
    pub(crate) fn run_once(&mut self, milliseconds: i32) -> usize {
        let mut ready = [EpollEvent::default(); 8];
        let count = self.epoll.wait(milliseconds, &mut ready).unwrap();
        for event in &ready[..count] {
            assert_eq!(
                event.data() >> 32,
                7,
                "an event under another device's number"
            );
            self.device
                .host_event(event.data() as u32, event.event_set());
        }
        count
    }

    /// The chains that came back since the last call: head and bytes written.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let state = &mut self.queues[queue];
        let ring = state.base + USED_OFFSET;
        let index: u16 = self
            .memory
            .load(GuestAddress(ring + 2), Ordering::Acquire)
            .unwrap();
        let mut chains = Vec::new();
        while state.used != index {
            let slot = u64::from(state.used % state.size);
            let [head, written] = self
                .memory
                .read_obj::<[u32; 2]>(GuestAddress(ring + 4 + slot * 8))
                .unwrap();
            chains.push((head as u16, written));
            state.used = state.used.wrapping_add(1);
        }
        // With event indices, this asks for an interrupt at the next one (section 2.7.7).
        let used_event = state.base + AVAIL_OFFSET + 4 + 2 * u64::from(state.size);
        self.memory
            .store(state.used, GuestAddress(used_event), Ordering::Release)
            .unwrap();
        chains
    }

    /// Says, without event indices, whether the driver wants to be interrupted.
    pub(crate) fn suppress_interrupts(&self, queue: usize, suppress: bool) {
        let flags = GuestAddress(self.queues[queue].base + AVAIL_OFFSET);
        self.memory
            .store(u16::from(suppress), flags, Ordering::Release)
            .unwrap();
    }

    /// The reasons the driver was interrupted for since the last call.
    pub(crate) fn interrupts(&self) -> u32 {
        let raised = self.line.read().is_ok();
        let status = self.status.swap(0, Ordering::SeqCst);
        assert_eq!(
            raised,
            status != 0,
            "the line and the status register disagree"
        );
        status
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }
}

/// All of guest memory but the queues' own, to find out whether anything else was touched.
pub(crate) fn snapshot(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; (LOW_END - BUFFERS + HIGH_END - HIGH_START) as usize];
    let (low, high) = bytes.split_at_mut((LOW_END - BUFFERS) as usize);
    memory.read_slice(low, GuestAddress(BUFFERS)).unwrap();
    memory.read_slice(high, GuestAddress(HIGH_START)).unwrap();
    bytes
}
