//! The buffers of a descriptor chain, checked and then read or written in order.
//!
//! A packet may lie in any number of buffers: Linux sends header and data in two descriptors, in
//! one, or (zero copy) in many, and nothing keeps the border between header and data on the border
//! of a buffer (specification section 2.7.4.2: no assumption on framing).

#![forbid(unsafe_code)]

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::memory::GuestMemory;

/// The most buffers a chain may have. No driver needs more than the size of the queue.
const MAX_SEGMENTS: usize = 256;

/// A buffer that lies in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) address: GuestAddress,
    pub(super) length: usize,
}

/// A chain that breaks the rules: a buffer outside of memory or of the wrong direction, too many
/// buffers, or fewer bytes than its header says.
#[derive(Debug)]
pub(super) struct Malformed;

/// Appends the buffers of `chain` to `segments` and returns how many bytes they hold together. All
/// of them are in guest memory, and all are for the device to write (`writable`) or to read.
pub(super) fn collect(
    memory: &GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    writable: bool,
    segments: &mut Vec<Segment>,
) -> Result<usize, Malformed> {
    let access = if writable {
        Permissions::Write
    } else {
        Permissions::Read
    };
    let mut total: usize = 0;
    for (index, descriptor) in chain.enumerate() {
        let address = descriptor.addr();
        let length = usize::try_from(descriptor.len()).map_err(|_| Malformed)?;
        if index == MAX_SEGMENTS
            || descriptor.is_write_only() != writable
            || !memory.check_range(address, length, access)
        {
            return Err(Malformed);
        }
        total = total.checked_add(length).ok_or(Malformed)?;
        if length > 0 {
            segments.push(Segment { address, length });
        }
    }
    Ok(total)
}

/// The bytes `skip..skip + take` of what `segments` hold, as far as they go.
pub(super) fn window(
    segments: &[Segment],
    mut skip: usize,
    mut take: usize,
) -> impl Iterator<Item = Segment> + Clone + '_ {
    segments.iter().filter_map(move |segment| {
        let passed = skip.min(segment.length);
        skip -= passed;
        let length = (segment.length - passed).min(take);
        take -= length;
        let address = segment.address.checked_add(u64::try_from(passed).ok()?)?;
        (length > 0).then_some(Segment { address, length })
    })
}

/// Fills `bytes` from the start of `segments`.
pub(super) fn read(
    memory: &GuestMemory,
    segments: &[Segment],
    mut bytes: &mut [u8],
) -> Result<(), Malformed> {
    for segment in window(segments, 0, bytes.len()) {
        let (head, tail) = bytes
            .split_at_mut_checked(segment.length)
            .ok_or(Malformed)?;
        memory
            .read_slice(head, segment.address)
            .map_err(|_| Malformed)?;
        bytes = tail;
    }
    if bytes.is_empty() {
        Ok(())
    } else {
        Err(Malformed)
    }
}

/// Writes `bytes` at the start of `segments`.
pub(super) fn write(
    memory: &GuestMemory,
    segments: &[Segment],
    mut bytes: &[u8],
) -> Result<(), Malformed> {
    for segment in window(segments, 0, bytes.len()) {
        let (head, tail) = bytes.split_at_checked(segment.length).ok_or(Malformed)?;
        memory
            .write_slice(head, segment.address)
            .map_err(|_| Malformed)?;
        bytes = tail;
    }
    if bytes.is_empty() {
        Ok(())
    } else {
        Err(Malformed)
    }
}

/// Appends the bytes of `segments` to `to`.
pub(super) fn append(
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
    to: &mut Vec<u8>,
) -> Result<(), Malformed> {
    for segment in segments {
        memory
            .write_all_volatile_to(segment.address, to, segment.length)
            .map_err(|_| Malformed)?;
    }
    Ok(())
}
