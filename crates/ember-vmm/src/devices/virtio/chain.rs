//! Descriptor chains, read from guest memory and checked, without any I/O.
//!
//! Everything here is the guest's word. A [`Chain`] promises only its shape (specification section
//! 2.7.5): it is finite, its device-readable buffers come before its device-writable ones, and all
//! of it is shorter than 4 GiB. Whether a buffer lies in guest memory is found out by accessing it.

use std::mem::size_of;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;

/// The size of a descriptor in the descriptor table (specification section 2.7.5).
const DESCRIPTOR_SIZE: u64 = size_of::<[u64; 2]>() as u64;

/// A stretch of guest memory, as the driver named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffer {
    /// Where it starts.
    pub(crate) address: GuestAddress,
    /// How many bytes it has.
    pub(crate) length: u32,
}

/// One request of the driver: buffers for the device to read, then buffers for it to write.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    head: u16,
    /// What the device reads.
    pub(crate) readable: Buffers,
    /// What the device writes.
    pub(crate) writable: Buffers,
}

/// The driver built a chain that the specification does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    /// An index is not below the queue's size.
    #[error("descriptor {0} is beyond the end of the table")]
    Index(u16),
    /// The table itself cannot be read.
    #[error("descriptor {0} cannot be read from guest memory")]
    Unreadable(u16),
    /// More descriptors than the queue has: the chain loops.
    #[error("the chain has more descriptors than the queue")]
    TooLong,
    /// An indirect table, though the feature was not offered.
    #[error("descriptor {0} is indirect, which was not offered")]
    Indirect(u16),
    /// A device-readable buffer behind a device-writable one.
    #[error("descriptor {0} is readable but comes after a writable one")]
    Order(u16),
    /// All buffers together reach 4 GiB.
    #[error("the chain is 4 GiB or longer")]
    TooLarge,
}

impl Chain {
    /// The index by which the chain goes back to the driver.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// The bytes of all buffers together.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.readable.length) + u64::from(self.writable.length)
    }

    /// Replaces `self` with the chain that starts at descriptor `head` of the `table` with `size`
    /// entries. The memory of the old chain is used again.
    pub(crate) fn read(
        &mut self,
        memory: &GuestMemory,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<(), ChainError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();

        let mut index = head;
        // A chain visits a descriptor at most once, so more steps than descriptors mean a loop.
        for _ in 0..size {
            if index >= size {
                return Err(ChainError::Index(index));
            }
            // The table's range was checked when the queue was set up: no overflow.
            let address = GuestAddress(table.0 + u64::from(index) * DESCRIPTOR_SIZE);
            let [address, rest] = memory
                .read_obj::<[u64; 2]>(address)
                .map_err(|_| ChainError::Unreadable(index))?
                .map(u64::from_le);
            let length = rest as u32;
            let flags = u32::from((rest >> 32) as u16);
            let next = (rest >> 48) as u16;

            if flags & VRING_DESC_F_INDIRECT != 0 {
                return Err(ChainError::Indirect(index));
            }
            let buffer = Buffer {
                address: GuestAddress(address),
                length,
            };
            if flags & VRING_DESC_F_WRITE != 0 {
                self.writable.push(buffer)?;
            } else if self.writable.list.is_empty() {
                self.readable.push(buffer)?;
            } else {
                return Err(ChainError::Order(index));
            }
            if self.len() > u64::from(u32::MAX) {
                return Err(ChainError::TooLarge);
            }
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
        Err(ChainError::TooLong)
    }
}

/// Buffers of one direction, seen as one run of bytes: how a driver cuts a request into
/// descriptors carries no meaning (specification section 2.7.4.1).
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    list: Vec<Buffer>,
    length: u32,
}

impl Buffers {
    /// The number of bytes.
    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    /// All of the buffers, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Buffer> + '_ {
        self.list.iter().copied()
    }

    /// What `length` bytes from `offset` on are made of. Ends early where the buffers end; has no
    /// empty parts.
    pub(crate) fn slice(&self, offset: u32, length: u32) -> impl Iterator<Item = Buffer> + '_ {
        let mut skip = offset;
        let mut left = length;
        self.list.iter().filter_map(move |buffer| {
            let skipped = skip.min(buffer.length);
            skip -= skipped;
            let taken = left.min(buffer.length - skipped);
            left -= taken;
            // Only an address that is nonsense can overflow. Its end is in no guest's memory, and
            // accessing that fails.
            let address = GuestAddress(buffer.address.0.saturating_add(u64::from(skipped)));
            (taken > 0).then_some(Buffer {
                address,
                length: taken,
            })
        })
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read(
        &self,
        memory: &GuestMemory,
        offset: u32,
        bytes: &mut [u8],
    ) -> Result<(), BufferError> {
        let length = self.bounded(offset, bytes.len())?;
        let mut rest = bytes;
        for buffer in self.slice(offset, length) {
            let (part, tail) = rest
                .split_at_mut_checked(buffer.length as usize)
                .ok_or(BufferError::TooShort)?;
            memory.read_slice(part, buffer.address)?;
            rest = tail;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(BufferError::TooShort)
        }
    }

    /// Writes `bytes` from `offset` on.
    pub(crate) fn write(
        &self,
        memory: &GuestMemory,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), BufferError> {
        let length = self.bounded(offset, bytes.len())?;
        let mut rest = bytes;
        for buffer in self.slice(offset, length) {
            let (part, tail) = rest
                .split_at_checked(buffer.length as usize)
                .ok_or(BufferError::TooShort)?;
            memory.write_slice(part, buffer.address)?;
            rest = tail;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(BufferError::TooShort)
        }
    }

    fn bounded(&self, offset: u32, length: usize) -> Result<u32, BufferError> {
        let length = u32::try_from(length).map_err(|_| BufferError::TooShort)?;
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(length),
            _ => Err(BufferError::TooShort),
        }
    }

    fn push(&mut self, buffer: Buffer) -> Result<(), ChainError> {
        self.length = self
            .length
            .checked_add(buffer.length)
            .ok_or(ChainError::TooLarge)?;
        self.list.push(buffer);
        Ok(())
    }

    fn clear(&mut self) {
        self.list.clear();
        self.length = 0;
    }
}

/// Bytes of a chain cannot be accessed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BufferError {
    /// The buffers are shorter than what is asked for.
    #[error("the chain's buffers are too short")]
    TooShort,
    /// A buffer is not in guest memory.
    #[error("a buffer is outside guest memory")]
    Memory(#[from] GuestMemoryError),
}
