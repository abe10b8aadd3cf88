//! A guest driver in miniature: real rings in real guest memory, driving the device as Linux does.
//!
//! It keeps to `VIRTIO_RING_F_EVENT_IDX` strictly: it rings only when the device asked for it, and
//! looks at the used rings only when it was interrupted. A missing notification on either side is
//! a test that gets stuck.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{Epoll, EpollEvent};
use vmm_sys_util::eventfd::EventFd;

use super::super::packet::{HEADER_SIZE, HOST_CID, Header, Operation, TYPE_STREAM};
use super::super::{VsockConfig, VsockDevice, VsockHandle};
use crate::devices::virtio::{Activation, Interrupt, VirtioDevice};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

pub(super) const CID: u32 = 42;
const SIZE: u16 = 256;
const RX: usize = 0;
const TX: usize = 1;
const EVENT_IDX: u64 = 1 << 29;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;

/// Where things are in guest memory. A region ends in the middle of the buffers for sending.
const RINGS: u64 = 0x1000;
const RX_BUFFERS: u64 = 0x10_0000;
const RX_STRIDE: u64 = 0x4000;
const TX_BUFFERS: u64 = 0x100_0000;
const TX_STRIDE: u64 = 0x1_1000;
const REGION_BORDER: u64 = TX_BUFFERS + TX_STRIDE / 2;
const MEMORY_END: u64 = 0x400_0000;

/// The driver's side of a queue.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) base: u64,
    free: Vec<u16>,
    next_avail: u16,
    last_used: u16,
    chains: Vec<Vec<u16>>,
    event_idx: bool,
}

impl Ring {
    fn new(memory: &GuestMemory, base: u64, event_idx: bool) -> Self {
        memory
            .write_slice(&vec![0; 0x3000], GuestAddress(base))
            .unwrap();
        Self {
            base,
            free: (0..SIZE).rev().collect(),
            next_avail: 0,
            last_used: 0,
            chains: vec![Vec::new(); usize::from(SIZE)],
            event_idx,
        }
    }

    fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    fn used(&self) -> u64 {
        self.base + 0x2000
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(SIZE).unwrap();
        let low = |address: u64| Some(u32::try_from(address).unwrap());
        queue.set_desc_table_address(low(self.base), Some(0));
        queue.set_avail_ring_address(low(self.avail()), Some(0));
        queue.set_used_ring_address(low(self.used()), Some(0));
        queue.set_ready(true);
        queue
    }

    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    pub(super) fn descriptor(
        &self,
        memory: &GuestMemory,
        index: u16,
        (address, length, flags, next): (u64, u32, u16, u16),
    ) {
        let at = GuestAddress(self.base + u64::from(index) * 16);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        memory.write_slice(&bytes, at).unwrap();
    }

    /// Makes `head` available; `true` if the device is to be told.
    pub(super) fn publish(&mut self, memory: &GuestMemory, head: u16) -> bool {
        let slot = self.avail() + 4 + u64::from(self.next_avail % SIZE) * 2;
        memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        let old = self.next_avail;
        self.next_avail = old.wrapping_add(1);
        memory
            .store(
                self.next_avail.to_le(),
                GuestAddress(self.avail() + 2),
                Ordering::SeqCst,
            )
            .unwrap();
        if self.event_idx {
            let at = self.used() + 4 + u64::from(SIZE) * 8;
            let event: u16 = memory.read_obj(GuestAddress(at)).unwrap();
            // `vring_need_event` of the specification's section 2.7.10.
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(old)
        } else {
            let flags: u16 = memory.read_obj(GuestAddress(self.used())).unwrap();
            flags & 1 == 0
        }
    }

    /// Claims that there are chains which there are not.
    pub(super) fn lie(&self, memory: &GuestMemory) {
        let index = self.next_avail.wrapping_add(SIZE + 1);
        memory
            .write_obj(index.to_le(), GuestAddress(self.avail() + 2))
            .unwrap();
    }

    pub(super) fn add(
        &mut self,
        memory: &GuestMemory,
        buffers: &[(u64, u32)],
        writable: bool,
    ) -> (u16, bool) {
        let indexes: Vec<u16> = buffers.iter().map(|_| self.free.pop().unwrap()).collect();
        for (i, (address, length)) in buffers.iter().enumerate() {
            let next = indexes.get(i + 1).copied();
            let flags =
                if writable { F_WRITE } else { 0 } | if next.is_some() { F_NEXT } else { 0 };
            let descriptor = (*address, *length, flags, next.unwrap_or(0));
            self.descriptor(memory, indexes[i], descriptor);
        }
        let head = indexes[0];
        self.chains[usize::from(head)] = indexes;
        (head, self.publish(memory, head))
    }

    fn pop(&mut self, memory: &GuestMemory) -> Option<(u16, u32)> {
        let index: u16 = memory
            .load(GuestAddress(self.used() + 2), Ordering::SeqCst)
            .unwrap();
        if self.last_used == index {
            // Wants to be interrupted for the next.
            let at = self.avail() + 4 + u64::from(SIZE) * 2;
            memory
                .write_obj(self.last_used.to_le(), GuestAddress(at))
                .unwrap();
            return None;
        }
        let slot = self.used() + 4 + u64::from(self.last_used % SIZE) * 8;
        let element: [u32; 2] = [
            memory.read_obj(GuestAddress(slot)).unwrap(),
            memory.read_obj(GuestAddress(slot + 4)).unwrap(),
        ];
        self.last_used = self.last_used.wrapping_add(1);
        let head = u16::try_from(element[0]).unwrap();
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        self.free.extend(chain);
        Some((head, element[1]))
    }
}

/// How a packet is laid out in descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout {
    /// Header and data in one.
    One,
    /// Header and data in one each.
    Two,
    /// Descriptors of so many bytes, whatever they hold.
    Every(u32),
}

/// The guest, and the device it drives.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) memory: GuestMemory,
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) device: VsockDevice,
    pub(super) handle: VsockHandle,
    /// What has arrived.
    pub(super) inbox: VecDeque<(Header, Vec<u8>)>,
    /// New buffers replace those that were used.
    pub(super) refills: bool,
    /// The size of the buffers for receiving.
    pub(super) rx_size: u32,
    pub(super) layout: Layout,
    pub(super) interrupts: usize,
    /// What comes back may be nonsense, because nonsense was put in.
    pub(super) tolerant: bool,
    epoll: Arc<Epoll>,
    line: Arc<EventFd>,
    features: u64,
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::with(VsockConfig::new(CID), EVENT_IDX)
    }

    pub(super) fn without_event_idx() -> Self {
        Self::with(VsockConfig::new(CID), 0)
    }

    pub(super) fn configured(config: VsockConfig) -> Self {
        Self::with(config, EVENT_IDX)
    }

    fn with(config: VsockConfig, features: u64) -> Self {
        let mut guest = Self::not_running(config, features);
        guest.start();
        guest
    }

    /// A guest whose driver has yet to [`start`](Self::start).
    pub(super) fn not_running(config: VsockConfig, features: u64) -> Self {
        let memory = GuestMemory::from_ranges(&[
            (GuestAddress(0), usize::try_from(REGION_BORDER).unwrap()),
            (
                GuestAddress(REGION_BORDER),
                usize::try_from(MEMORY_END - REGION_BORDER).unwrap(),
            ),
        ])
        .unwrap();
        let (mut device, handle) = VsockDevice::new(config).unwrap();
        let epoll = Arc::new(Epoll::new().unwrap());
        device
            .attach(EventRegistry::unwatched(Arc::clone(&epoll), 7))
            .unwrap();
        assert_eq!(device.features(), EVENT_IDX);
        Self {
            rx: Ring::new(&memory, RINGS, features != 0),
            tx: Ring::new(&memory, RINGS + 0x3000, features != 0),
            memory,
            device,
            handle,
            inbox: VecDeque::new(),
            refills: true,
            rx_size: 4096,
            layout: Layout::Two,
            interrupts: 0,
            tolerant: false,
            epoll,
            line: Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
            features,
        }
    }

    /// The driver sets the device up.
    pub(super) fn start(&mut self) {
        self.rx = Ring::new(&self.memory, RINGS, self.features != 0);
        self.tx = Ring::new(&self.memory, RINGS + 0x3000, self.features != 0);
        let events = Ring::new(&self.memory, RINGS + 0x6000, self.features != 0);
        let queues = vec![self.rx.queue(), self.tx.queue(), events.queue()];
        let status = Arc::new(AtomicU32::new(0));
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: Interrupt::new(status, Arc::clone(&self.line)),
            features: self.features,
            announced: Vec::new(),
        };
        self.device.activate(activation).unwrap();
        if self.refills {
            self.refill(usize::from(SIZE));
        }
    }

    /// The driver resets the device.
    pub(super) fn reset(&mut self) {
        self.device.reset();
        self.inbox.clear();
        let _ = self.line.read();
    }

    /// Offers up to `count` buffers for receiving; returns how many.
    pub(super) fn refill(&mut self, count: usize) -> usize {
        let mut ring = false;
        let count = count.min(self.rx.room());
        for _ in 0..count {
            // The buffer belongs to the descriptor.
            let index = *self.rx.free.last().unwrap();
            let address = RX_BUFFERS + u64::from(index) * RX_STRIDE;
            ring |= self
                .rx
                .add(&self.memory, &[(address, self.rx_size)], true)
                .1;
        }
        if ring {
            self.device.queue_notified(RX);
        }
        count
    }

    /// Sends a packet, once there is room for it in the ring.
    pub(super) fn send(&mut self, header: &Header, data: &[u8]) {
        if self.post(header, data) {
            self.device.queue_notified(TX);
        }
    }

    /// Puts a packet into the ring; `true` if the device is to be told.
    pub(super) fn post(&mut self, header: &Header, data: &[u8]) -> bool {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(data);
        let total = u32::try_from(bytes.len()).unwrap();
        let head = u32::try_from(HEADER_SIZE).unwrap();
        let lengths: Vec<u32> = match self.layout {
            Layout::One => vec![total],
            Layout::Two if data.is_empty() => vec![head],
            Layout::Two => vec![head, total - head],
            Layout::Every(size) => {
                let mut lengths = vec![size; usize::try_from(total / size).unwrap()];
                if total % size != 0 {
                    lengths.push(total % size);
                }
                lengths
            }
        };
        while self.tx.room() < lengths.len() {
            // The device may take its time to say that it has taken packets.
            let ran = self.run_device_thread(1000);
            let told = self.handle_interrupt();
            assert!(ran || told, "the device stopped taking packets");
        }
        let start = TX_BUFFERS + u64::from(*self.tx.free.last().unwrap()) * TX_STRIDE;
        self.memory
            .write_slice(&bytes, GuestAddress(start))
            .unwrap();
        let mut address = start;
        let mut buffers = Vec::new();
        for length in lengths {
            buffers.push((address, length));
            address += u64::from(length);
        }
        self.tx.add(&self.memory, &buffers, false).1
    }

    /// The device is told that there are packets, whether it asked for it or not.
    pub(super) fn ring_tx(&mut self) {
        self.device.queue_notified(TX);
    }

    /// Runs the device thread once, and the guest's interrupt handler; `false` if nothing happened.
    pub(super) fn step(&mut self) -> bool {
        let ran = self.run_device_thread(0);
        self.handle_interrupt() || ran
    }

    /// Runs until nothing more happens.
    pub(super) fn settle(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 100_000, "the device never comes to rest");
        }
    }

    /// Waits for events up to `timeout` milliseconds and serves them; `false` if there were none.
    pub(super) fn run_device_thread(&mut self, timeout: i32) -> bool {
        let mut events = [EpollEvent::default(); 16];
        let count = self.epoll.wait(timeout, &mut events).unwrap();
        for event in &events[..count] {
            assert_eq!(event.data() >> 32, 7);
            let token = u32::try_from(event.data() & 0xffff_ffff).unwrap();
            self.device.host_event(token, event.event_set());
        }
        count > 0
    }

    /// Runs the guest's interrupt handler; `false` if it was not interrupted.
    pub(super) fn handle_interrupt(&mut self) -> bool {
        if self.line.read().is_err() {
            return false;
        }
        self.interrupts += 1;
        while self.tx.pop(&self.memory).is_some() {}
        let mut used = 0;
        while let Some((head, length)) = self.rx.pop(&self.memory) {
            used += 1;
            if self.tolerant {
                continue;
            }
            let address = GuestAddress(RX_BUFFERS + u64::from(head) * RX_STRIDE);
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            self.memory.read_slice(&mut bytes, address).unwrap();
            let (header, data) = bytes.split_first_chunk::<HEADER_SIZE>().unwrap();
            let header = Header::parse(header);
            assert_eq!(usize::try_from(header.len).unwrap(), data.len());
            assert_eq!(header.dst_cid, u64::from(CID));
            self.inbox.push_back((header, data.to_vec()));
        }
        if self.refills {
            self.refill(used);
        }
        true
    }

    /// The next packet that arrived, which must be an `operation`.
    #[track_caller]
    pub(super) fn expect(&mut self, operation: Operation) -> (Header, Vec<u8>) {
        self.settle();
        let (header, data) = self
            .inbox
            .pop_front()
            .unwrap_or_else(|| panic!("no {operation:?} came"));
        assert_eq!(
            Operation::from_raw(header.op),
            Some(operation),
            "{header:?}"
        );
        (header, data)
    }

    /// No packet has arrived.
    #[track_caller]
    pub(super) fn expect_nothing(&mut self) {
        self.settle();
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }
}

/// A packet from the guest to the host.
pub(super) fn packet(operation: Operation, guest: u32, host: u32) -> Header {
    Header {
        src_cid: u64::from(CID),
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        len: 0,
        kind: TYPE_STREAM,
        op: operation as u16,
        flags: 0,
        buf_alloc: 256 * 1024,
        fwd_cnt: 0,
    }
}

/// A socket in the guest.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) guest: u32,
    pub(super) host: u32,
    pub(super) buf_alloc: u32,
    pub(super) forwarded: u32,
    pub(super) sent: u32,
    pub(super) peer_buf_alloc: u32,
    pub(super) peer_forwarded: u32,
    pub(super) received: Vec<u8>,
}

impl Socket {
    /// Connects to host port `host`, which is listened on.
    #[track_caller]
    pub(super) fn connect(machine: &mut Guest, guest: u32, host: u32) -> Self {
        machine.send(&packet(Operation::Request, guest, host), &[]);
        let (response, _) = machine.expect(Operation::Response);
        Self::established(guest, host, &response)
    }

    pub(super) fn established(guest: u32, host: u32, first: &Header) -> Self {
        assert_eq!((first.src_port, first.dst_port), (host, guest));
        assert_eq!(first.src_cid, HOST_CID);
        let mut socket = Self {
            guest,
            host,
            buf_alloc: 256 * 1024,
            forwarded: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_forwarded: 0,
            received: Vec::new(),
        };
        socket.note(first);
        socket
    }

    pub(super) fn header(&self, operation: Operation, flags: u32) -> Header {
        Header {
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.forwarded,
            ..packet(operation, self.guest, self.host)
        }
    }

    /// How many bytes the host has room for.
    pub(super) fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_buf_alloc.checked_sub(in_flight).unwrap()
    }

    pub(super) fn control(&self, machine: &mut Guest, operation: Operation, flags: u32) {
        machine.send(&self.header(operation, flags), &[]);
    }

    /// Sends data without asking whether there is credit for it.
    pub(super) fn send(&mut self, machine: &mut Guest, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.sent = self.sent.wrapping_add(len);
        let header = Header {
            len,
            ..self.header(Operation::ReadWrite, 0)
        };
        machine.send(&header, data);
    }

    fn note(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// Takes in all packets that have arrived; returns the operations of those without data.
    pub(super) fn take_in(&mut self, machine: &mut Guest) -> Vec<Operation> {
        let mut operations = Vec::new();
        for (header, data) in machine.inbox.drain(..) {
            assert_eq!((header.src_port, header.dst_port), (self.host, self.guest));
            self.note(&header);
            match Operation::from_raw(header.op).unwrap() {
                Operation::ReadWrite => {
                    self.received.extend_from_slice(&data);
                    self.forwarded = self.forwarded.wrapping_add(header.len);
                }
                operation => operations.push(operation),
            }
        }
        operations
    }
}
