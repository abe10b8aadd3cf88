//! The way of a frame into the guest's buffers.

use super::header::{HEADER_SIZE, Header, Negotiated};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::queue::{DeviceQueue, QueueError};
use crate::memory::GuestMemory;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The guest has it.
    Done,
    /// It does not fit into what the guest offers for a frame.
    Dropped,
    /// The guest has no buffers left, and will ring the doorbell when it has.
    NoBuffers,
}

/// Delivers `frame`, which starts with a header of the host's kernel. `chains` is empty before and
/// after; it is there for its memory.
pub(super) fn deliver(
    queue: &mut DeviceQueue,
    memory: &GuestMemory,
    frame: &mut [u8],
    negotiated: Negotiated,
    chains: &mut Vec<(Chain, u32)>,
) -> Result<Delivery, QueueError> {
    let max_chains = if negotiated.mergeable {
        usize::from(queue.size())
    } else {
        1
    };
    let mut room = 0;
    while room < frame.len() {
        if chains.len() == max_chains {
            // Even all of the queue would not do.
            queue.unpop(chains.drain(..).map(|(chain, _)| chain));
            return Ok(Delivery::Dropped);
        }
        let Some(chain) = queue.pop_or_ask(memory)? else {
            queue.unpop(chains.drain(..).map(|(chain, _)| chain));
            return Ok(Delivery::NoBuffers);
        };
        let length = chain.writable.len();
        if (length as usize) < HEADER_SIZE {
            return Err(QueueError::Request(
                "a receive buffer that cannot hold a header",
            ));
        }
        let filled = (length as usize).min(frame.len() - room);
        room += filled;
        // Not more than `length`.
        chains.push((chain, filled as u32));
    }

    let (header, _) = frame
        .split_first_chunk_mut()
        .ok_or(QueueError::Request("no frame"))?;
    // At most the queue's size, which is a u16.
    let count = chains.len() as u16;
    *header = Header::parse(*header)
        .to_guest(count, negotiated.to_guest)
        .bytes();
    let mut rest = &*frame;
    for (chain, filled) in chains.iter() {
        let (part, tail) = rest.split_at(*filled as usize);
        chain
            .writable
            .write(memory, 0, part)
            .map_err(|_| QueueError::Request("a receive buffer outside guest memory"))?;
        rest = tail;
    }
    queue.push_all(memory, chains.drain(..))?;
    Ok(Delivery::Done)
}
