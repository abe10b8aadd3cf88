//! Giving a range of guest memory back to the host.
#![allow(unsafe_code, reason = "discarding a range of a mapping")]

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::libc;
use nix::sys::mman::{MmapAdvise, madvise};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::pages::PageRange;
use crate::memory::GuestMemory;

/// Frees what backs `range`. What it reads as until it is written is of no importance, and the
/// guest must not rely on it (specification sections 5.5.6.1 and 5.5.6.7): zeroes, or, in a clone,
/// what it was in the template. Fails without any effect if the range is not within one region of
/// guest memory.
pub(super) fn give_back(memory: &GuestMemory, range: PageRange) -> io::Result<()> {
    let length = usize::try_from(range.length)
        .ok()
        .and_then(NonZeroUsize::new)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let (region, offset) = memory
        .to_region_addr(range.start)
        .ok_or(io::ErrorKind::InvalidInput)?;
    // Checks that the whole range is within the region.
    let slice = region
        .get_slice(offset, length.get())
        .map_err(io::Error::other)?;
    let start = NonNull::new(slice.ptr_guard_mut().as_ptr().cast::<libc::c_void>())
        .ok_or(io::ErrorKind::InvalidInput)?;

    let is_private = region.get_mmap().flags() & libc::MAP_PRIVATE != 0;
    if !is_private {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // Fresh anonymous memory at the place of the range would read as zeroes in a clone as well. But
    // each piece would be a mapping of its own, of which a process has some 65,000, and a guest
    // could use them all up.
    //
    // SAFETY: the range is within a private mapping of guest memory, which `memory` keeps alive and
    // to which no references exist, so nobody can notice but the guest.
    unsafe { madvise(start, length.get(), MmapAdvise::MADV_DONTNEED) }?;
    Ok(())
}
