//! What the driver says about pages, turned into ranges of guest memory, without any I/O.

use std::iter;

use vm_memory::GuestAddress;

use crate::devices::virtio::chain::Buffer;

/// The balloon's unit, whatever the guest's own is (specification section 5.5.6).
pub(crate) const PAGE_SIZE: u64 = 4096;

/// A range of whole pages. It may lie outside guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRange {
    pub(crate) start: GuestAddress,
    pub(crate) length: u64,
}

/// The pages with the numbers `numbers`, sorted, as few ranges as possible.
pub(crate) fn coalesce(numbers: &mut [u32]) -> impl Iterator<Item = PageRange> + '_ {
    numbers.sort_unstable();
    let mut numbers = numbers.iter().copied().map(u64::from).peekable();
    iter::from_fn(move || {
        let first = numbers.next()?;
        let mut last = first;
        while let Some(next) = numbers.next_if(|&number| number <= last + 1) {
            last = next;
        }
        // A page number has 32 bits: nothing overflows.
        Some(PageRange {
            start: GuestAddress(first * PAGE_SIZE),
            length: (last - first + 1) * PAGE_SIZE,
        })
    })
}

/// The whole pages inside a reported buffer. What sticks out of them on either side is not given
/// back.
pub(crate) fn whole_pages(buffer: Buffer) -> Option<PageRange> {
    let start = buffer.address.0.checked_next_multiple_of(PAGE_SIZE)?;
    let end = buffer.address.0.checked_add(u64::from(buffer.length))?;
    let end = end - end % PAGE_SIZE;
    let length = end.checked_sub(start).filter(|&length| length > 0)?;
    Some(PageRange {
        start: GuestAddress(start),
        length,
    })
}
