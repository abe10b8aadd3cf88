//! A guest made of bytes: a driver that sets up a device's queues as it should, or nearly so, and
//! then does anything.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{Epoll, EpollEvent};

use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::mmio::MmioTransport;
use crate::event_loop::{EventHandler, EventRegistry};
use crate::memory::GuestMemory;

/// Guest memory: one piece at 0, one at 4 GiB.
const LOW_SIZE: u64 = 0x4_0000;
const HIGH_START: u64 = 1 << 32;
const HIGH_SIZE: u64 = 0x1_0000;

/// Each queue has a page: descriptors, available ring, used ring.
const QUEUE_SPACING: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const QUEUE_SIZE: u16 = 16;
/// Buffers begin here, behind the queues.
const BUFFERS: u64 = 0x1_0000;

/// A guest does this many things at most, so that no input takes long.
const STEPS_MAX: usize = 256;

/// The bytes of an input, from front to back. What is missing is zero.
#[derive(Debug)]
pub(super) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.rest.split_at(N.min(self.rest.len()));
        self.rest = rest;
        let mut array = [0; N];
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Up to 255 bytes, after their number.
    pub(super) fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.u8()).min(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    /// An address: mostly a sensible one, else near the end of a piece of memory, or any.
    fn address(&mut self) -> u64 {
        let value = u64::from(self.u16());
        let (kind, offset) = (value >> 13, value & 0x1FFF);
        match kind {
            0..=3 => BUFFERS + (value & 0x7FFF),
            4 => offset,
            5 => LOW_SIZE - (offset & 0xFF),
            6 => HIGH_START + HIGH_SIZE - (offset & 0xFFF),
            _ => self.u64(),
        }
    }
}

/// A device, its transport and the memory of its guest.
#[derive(Debug)]
pub(super) struct Machine {
    transport: MmioTransport,
    memory: GuestMemory,
    epoll: Arc<Epoll>,
    /// How many chains were made available in each queue.
    available: Vec<u16>,
}

impl Machine {
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = GuestMemory::from_ranges(&[
            (GuestAddress(0), LOW_SIZE as usize),
            (GuestAddress(HIGH_START), HIGH_SIZE as usize),
        ])
        .unwrap();
        let available = vec![0; device.queue_max_sizes().len()];
        let transport = MmioTransport::new(device, memory.clone()).unwrap();
        let epoll = Arc::new(Epoll::new().unwrap());
        transport
            .attach(&EventRegistry::unwatched(Arc::clone(&epoll), 0))
            .unwrap();
        Self {
            transport,
            memory,
            epoll,
            available,
        }
    }

    /// Lets the guest do what `input` says. `request` makes what its driver would say to the
    /// device, or nearly; `host` is what happens on the host's side.
    pub(super) fn run(
        &mut self,
        input: &mut Input<'_>,
        request: impl Fn(&mut Input<'_>) -> Vec<u8>,
        mut host: impl FnMut(&mut Input<'_>),
    ) {
        self.set_up(!input.u32());
        for _ in 0..STEPS_MAX {
            if input.is_empty() {
                break;
            }
            match input.u8() % 10 {
                0 => self.write_memory(input),
                1 => self.put_descriptor(input),
                2 | 3 => self.put_chain(input, &request),
                4 => self.make_available(input),
                5 => self.ring(),
                6 => {
                    let (offset, value) = (u64::from(input.u8()) * 4, input.u32());
                    self.transport.write(offset, &value.to_le_bytes());
                }
                7 => self.access_config(input),
                8 => host(input),
                _ => self.set_up(!input.u32()),
            }
            self.report_events();
        }
    }

    /// What a driver does first (virtio 1.2, 3.1.1), with the offered features in `mask`.
    fn set_up(&mut self, mask: u32) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        self.write(reg::VIRTIO_MMIO_STATUS, 1);
        self.write(reg::VIRTIO_MMIO_STATUS, 3);
        for word in [0, 1] {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
            let mut features = [0; 4];
            self.transport
                .read(u64::from(reg::VIRTIO_MMIO_DEVICE_FEATURES), &mut features);
            let must = (1u64 << VIRTIO_F_VERSION_1 >> (32 * word)) as u32;
            let features = u32::from_le_bytes(features) & (mask | must);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, features);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 3 | 8);
        for (index, available) in self.available.iter_mut().enumerate() {
            *available = 0;
            let base = index as u64 * QUEUE_SPACING;
            let page = [0; QUEUE_SPACING as usize];
            self.memory.write_slice(&page, GuestAddress(base)).unwrap();
        }
        for index in 0..self.available.len() as u32 {
            let base = index * QUEUE_SPACING as u32;
            self.write(reg::VIRTIO_MMIO_QUEUE_SEL, index);
            self.write(reg::VIRTIO_MMIO_QUEUE_NUM, u32::from(QUEUE_SIZE));
            self.write(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, base);
            self.write(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, base + AVAILABLE as u32);
            self.write(reg::VIRTIO_MMIO_QUEUE_USED_LOW, base + USED as u32);
            self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 3 | 8 | 4);
    }

    fn write(&self, register: u32, value: u32) {
        self.transport
            .write(u64::from(register), &value.to_le_bytes());
    }

    fn queue(&self, input: &mut Input<'_>) -> usize {
        usize::from(input.u8()) % self.available.len()
    }

    fn write_memory(&self, input: &mut Input<'_>) {
        let address = input.address();
        // Where there is no memory, nothing is written.
        let _ = self.memory.write(input.bytes(), GuestAddress(address));
    }

    /// Any descriptor.
    fn put_descriptor(&self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let index = u16::from(input.u8()) % QUEUE_SIZE;
        let descriptor = (
            input.address(),
            input.u32(),
            input.u16(),
            u16::from(input.u8()),
        );
        self.write_descriptor(queue, index, descriptor);
    }

    fn write_descriptor(
        &self,
        queue: usize,
        index: u16,
        (address, len, flags, next): (u64, u32, u16, u16),
    ) {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let at = queue as u64 * QUEUE_SPACING + u64::from(index) * 16;
        self.memory
            .write_obj([address.to_le(), rest.to_le()], GuestAddress(at))
            .unwrap();
    }

    /// A chain that makes sense: readable buffers, the first of which has a request, then writable
    /// ones. It is made available, and the doorbell is rung.
    fn put_chain(&mut self, input: &mut Input<'_>, request: impl Fn(&mut Input<'_>) -> Vec<u8>) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let queue = self.queue(input);
        let shape = input.u8();
        let (readable, writable) = (u16::from(shape & 3), u16::from(shape >> 2 & 3));
        let count = readable + writable;
        let first = u16::from(shape >> 4);
        for position in 0..count {
            let address = input.address();
            let len = if position == 0 && readable > 0 {
                let content = request(input);
                let _ = self.memory.write(&content, GuestAddress(address));
                content.len() as u32
            } else {
                // Short, long, or one sector or page, which some devices insist on.
                match input.u8() {
                    len @ 0..128 => u32::from(len),
                    128..192 => u32::from(input.u16() & 0x1FFF),
                    192..224 => 512,
                    _ => 4096,
                }
            };
            let mut flags = if position < readable { 0 } else { WRITE };
            if position + 1 < count {
                flags |= NEXT;
            }
            let next = (first + position + 1) % QUEUE_SIZE;
            let index = (first + position) % QUEUE_SIZE;
            self.write_descriptor(queue, index, (address, len, flags, next));
        }
        self.publish(queue, first);
        self.ring();
    }

    /// Makes any descriptor available.
    fn make_available(&mut self, input: &mut Input<'_>) {
        let queue = self.queue(input);
        let head = u16::from(input.u8());
        self.publish(queue, head);
    }

    fn publish(&mut self, queue: usize, head: u16) {
        let ring = queue as u64 * QUEUE_SPACING + AVAILABLE;
        let available = &mut self.available[queue];
        let slot = u64::from(*available % QUEUE_SIZE);
        *available = available.wrapping_add(1);
        let index = *available;
        self.memory
            .write_obj(head.to_le(), GuestAddress(ring + 4 + slot * 2))
            .unwrap();
        self.memory
            .write_obj(index.to_le(), GuestAddress(ring + 2))
            .unwrap();
    }

    fn ring(&self) {
        self.transport.doorbell().write(1).unwrap();
    }

    /// Reads and writes the configuration space, or a register in a way it must not be.
    fn access_config(&self, input: &mut Input<'_>) {
        let offset = u64::from(input.u16() & 0x3FF);
        let mut data = input.bytes().to_vec();
        self.transport.write(offset, &data);
        self.transport.read(offset, &mut data);
    }

    /// Does what the device thread would do now. A device that always has more to do is given a
    /// few turns.
    fn report_events(&self) {
        const TURNS: usize = 16;
        let mut ready = [EpollEvent::default(); 16];
        for _ in 0..TURNS {
            let count = self.epoll.wait(0, &mut ready).unwrap();
            if count == 0 {
                break;
            }
            for event in &ready[..count] {
                self.transport.ready(event.data() as u32, event.event_set());
            }
        }
    }
}
