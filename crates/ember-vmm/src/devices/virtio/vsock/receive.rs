//! The guest's buffers for what it receives.

#![forbid(unsafe_code)]

use super::packet::{HEADER_SIZE, Header};
use crate::devices::virtio::chain::{Buffer, Chain};
use crate::devices::virtio::queue::{DeviceQueue, QueueError};
use crate::memory::GuestMemory;

/// The size of a header, as lengths of buffers are counted.
pub(super) const HEADER_BYTES: u32 = HEADER_SIZE as u32;

/// The receive queue, for one round of packets.
#[derive(Debug)]
pub(super) struct Receiver<'a> {
    pub(super) queue: &'a mut DeviceQueue,
    pub(super) memory: &'a GuestMemory,
    /// Buffers that were taken and not used yet, oldest first. Empty before and after a packet; it
    /// is kept for its memory.
    pub(super) chains: &'a mut Vec<Chain>,
}

impl Receiver<'_> {
    /// Takes buffers for up to `packets` packets, but no more than are needed for `bytes` of data.
    /// `false` if there are none; the doorbell will tell when there are. To be followed by
    /// [`fill`](Self::fill) or [`put_back`](Self::put_back).
    pub(super) fn take(&mut self, packets: usize, bytes: u32) -> Result<bool, QueueError> {
        let mut room: u32 = 0;
        while self.chains.len() < packets && (self.chains.is_empty() || room < bytes) {
            let next = if self.chains.is_empty() {
                self.queue.pop_or_ask(self.memory)?
            } else {
                self.queue.pop(self.memory)?
            };
            let Some(chain) = next else {
                break;
            };
            if chain.writable.len() <= HEADER_BYTES {
                return Err(QueueError::Request(
                    "a receive buffer that holds no more than a header",
                ));
            }
            room = room.saturating_add(capacity(&chain));
            self.chains.push(chain);
        }
        Ok(!self.chains.is_empty())
    }

    /// Where data may be put into the buffers that were taken, up to `limit` bytes of it.
    pub(super) fn room(&self, limit: u32) -> impl Iterator<Item = Buffer> + '_ {
        let mut left = limit;
        self.chains.iter().flat_map(move |chain| {
            let length = capacity(chain).min(left);
            left -= length;
            chain.writable.slice(HEADER_BYTES, length)
        })
    }

    /// Hands the buffers that were taken to the guest, as packets with `header` and together
    /// `bytes` of data, which lie there already. Those that were not needed are put back.
    pub(super) fn fill(&mut self, mut header: Header, bytes: u32) -> Result<(), QueueError> {
        let mut left = bytes;
        let mut used = 0;
        for chain in self.chains.iter() {
            header.len = capacity(chain).min(left);
            left -= header.len;
            used += 1;
            chain
                .writable
                .write(self.memory, 0, &header.to_bytes())
                .map_err(|_| QueueError::Request("a receive buffer outside guest memory"))?;
            if left == 0 {
                break;
            }
        }
        self.queue.unpop(self.chains.drain(used..));
        let mut left = bytes;
        let filled = self.chains.drain(..).map(|chain| {
            let length = capacity(&chain).min(left);
            left -= length;
            (chain, HEADER_BYTES + length)
        });
        self.queue.push_all(self.memory, filled)
    }

    /// Puts the buffers that were taken back, unused.
    pub(super) fn put_back(&mut self) {
        self.queue.unpop(self.chains.drain(..));
    }
}

/// How much data a buffer that was taken holds.
fn capacity(chain: &Chain) -> u32 {
    chain.writable.len().saturating_sub(HEADER_BYTES)
}
