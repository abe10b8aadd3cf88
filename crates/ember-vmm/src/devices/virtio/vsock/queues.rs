//! The device's queues: which chain is next, where its bytes lie, and giving it back.

#![forbid(unsafe_code)]

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::buffers::{self, Segment};
use super::packet::{HEADER_SIZE, Header};
use crate::memory::GuestMemory;

/// The driver broke the rules of the queue itself, which cannot be served any more.
pub(super) type Broken = virtio_queue::Error;

/// The queue with what the guest sends.
#[derive(Debug)]
pub(super) struct TxQueue {
    queue: Queue,
    segments: Vec<Segment>,
    used: bool,
}

/// A chain that the guest sent. Its bytes are described by [`TxQueue::segments`].
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) head: u16,
    /// `None` if the chain is not a packet.
    pub(super) header: Option<Header>,
}

impl TxQueue {
    pub(super) fn new(queue: Queue) -> Self {
        Self {
            queue,
            segments: Vec::new(),
            used: false,
        }
    }

    /// The next chain, if there is one.
    pub(super) fn next(&mut self, memory: &GuestMemory) -> Result<Option<Sent>, Broken> {
        let Some(chain) = self.queue.iter(memory)?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        self.segments.clear();
        let header = buffers::collect(memory, chain, false, &mut self.segments)
            .ok()
            .and_then(|total| {
                let mut bytes = [0; HEADER_SIZE];
                buffers::read(memory, &self.segments, &mut bytes).ok()?;
                let header = Header::parse(&bytes);
                let room = total.checked_sub(HEADER_SIZE)?;
                (usize::try_from(header.len).ok()? <= room).then_some(header)
            });
        Ok(Some(Sent { head, header }))
    }

    /// Where the bytes of the last chain lie. The data follows the header's [`HEADER_SIZE`] bytes.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Gives a chain back to the driver.
    pub(super) fn give_back(&mut self, memory: &GuestMemory, head: u16) -> Result<(), Broken> {
        self.used = true;
        self.queue.add_used(memory, head, 0)
    }

    /// Has the driver ring when it adds a chain; `true` if it already has.
    pub(super) fn wait(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        self.queue.enable_notification(memory)
    }

    /// Whether the driver wants to be interrupted for what was given back.
    pub(super) fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        Ok(std::mem::take(&mut self.used) && self.queue.needs_notification(memory)?)
    }
}

/// The queue with the guest's buffers for what it receives.
#[derive(Debug)]
pub(super) struct RxQueue {
    queue: Queue,
    segments: Vec<Segment>,
    frames: Vec<Frame>,
    used: bool,
    /// The driver was asked to ring when it adds buffers.
    waiting: bool,
}

/// One chain of the receive queue, which will hold one packet.
#[derive(Clone, Copy, Debug)]
struct Frame {
    head: u16,
    /// Its position in the ring, to give it back unused.
    position: u16,
    /// Its buffers in `RxQueue::segments`.
    first: usize,
    end: usize,
    /// How much data it can hold: more than nothing.
    capacity: usize,
}

impl RxQueue {
    /// Wraps the queue. The driver is asked not to ring for new buffers, as long as there are some.
    pub(super) fn new(mut queue: Queue, memory: &GuestMemory) -> Result<Self, Broken> {
        queue.disable_notification(memory)?;
        Ok(Self {
            queue,
            segments: Vec::new(),
            frames: Vec::new(),
            used: false,
            waiting: false,
        })
    }

    /// Takes buffers for up to `packets` packets, but no more than needed for `bytes` of data.
    /// `false` if there are none. To be followed by [`fill`](Self::fill) or
    /// [`put_back`](Self::put_back).
    pub(super) fn take(
        &mut self,
        memory: &GuestMemory,
        packets: usize,
        bytes: usize,
    ) -> Result<bool, Broken> {
        self.frames.clear();
        self.segments.clear();
        let mut capacity: usize = 0;
        // A driver that adds useless buffers as fast as they are given back must not keep the
        // device in here.
        let mut patience = self.queue.size();
        while self.frames.len() < packets
            && (self.frames.is_empty() || capacity < bytes)
            && patience > 0
        {
            patience -= 1;
            let position = self.queue.next_avail();
            let Some(chain) = self.queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let first = self.segments.len();
            match buffers::collect(memory, chain, true, &mut self.segments) {
                Ok(total) if total > HEADER_SIZE => {
                    let end = self.segments.len();
                    let room = total - HEADER_SIZE;
                    capacity = capacity.saturating_add(room);
                    self.frames.push(Frame {
                        head,
                        position,
                        first,
                        end,
                        capacity: room,
                    });
                }
                // Useless: given back empty, but only when it is the oldest.
                _ if self.frames.is_empty() => {
                    self.segments.clear();
                    self.used = true;
                    self.queue.add_used(memory, head, 0)?;
                }
                _ => {
                    self.segments.truncate(first);
                    self.queue.set_next_avail(position);
                    break;
                }
            }
        }
        if std::mem::take(&mut self.waiting) && !self.frames.is_empty() {
            self.queue.disable_notification(memory)?;
        }
        Ok(!self.frames.is_empty())
    }

    /// Where data may be put into the buffers that were taken, up to `limit` bytes of it.
    pub(super) fn room(&self, limit: usize) -> impl Iterator<Item = Segment> + '_ {
        self.frames
            .iter()
            .scan(limit, |left, frame| {
                let take = frame.capacity.min(*left);
                *left -= take;
                Some((frame, take))
            })
            .flat_map(|(frame, take)| buffers::window(self.segments_of(frame), HEADER_SIZE, take))
    }

    /// Hands the buffers that were taken to the driver, as packets with `header` and together
    /// `bytes` of data, which lie there already. What was not needed is put back.
    pub(super) fn fill(
        &mut self,
        memory: &GuestMemory,
        mut header: Header,
        bytes: usize,
    ) -> Result<(), Broken> {
        let mut left = bytes;
        for index in 0..self.frames.len() {
            let frame = self.frames[index];
            if index > 0 && left == 0 {
                self.queue.set_next_avail(frame.position);
                break;
            }
            let length = frame.capacity.min(left);
            left -= length;
            // Both conversions hold: a chain is shorter than 2^32 bytes.
            header.len = u32::try_from(length).unwrap_or(u32::MAX);
            let total = u32::try_from(HEADER_SIZE + length).unwrap_or(u32::MAX);
            // The buffers were checked when they were taken, and guest memory does not go away.
            let _ = buffers::write(memory, self.segments_of(&frame), &header.to_bytes());
            self.queue.add_used(memory, frame.head, total)?;
            self.used = true;
        }
        self.frames.clear();
        Ok(())
    }

    /// Puts the buffers that were taken back, unused.
    pub(super) fn put_back(&mut self) {
        if let Some(frame) = self.frames.first() {
            self.queue.set_next_avail(frame.position);
        }
        self.frames.clear();
    }

    /// Has the driver ring when it adds buffers; `true` if it already has.
    pub(super) fn wait(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        self.waiting = true;
        self.queue.enable_notification(memory)
    }

    /// Whether the driver wants to be interrupted for what was handed to it.
    pub(super) fn needs_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        Ok(std::mem::take(&mut self.used) && self.queue.needs_notification(memory)?)
    }

    fn segments_of(&self, frame: &Frame) -> &[Segment] {
        self.segments.get(frame.first..frame.end).unwrap_or(&[])
    }
}
