//! Giving a range of guest memory back to the host.
#![allow(unsafe_code, reason = "discarding a range of a mapping")]

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::pages::PageRange;
use crate::memory::GuestMemory;

/// Frees what backs `range`, which then reads as zeroes until it is written. Fails without any
/// effect if the range is not within one region of guest memory.
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

    if region.file_offset().is_none() {
        // SAFETY: the range is within a private anonymous mapping of guest memory, which `memory`
        // keeps alive and to which no references exist, so nobody can notice but the guest.
        unsafe { madvise(start, length.get(), MmapAdvise::MADV_DONTNEED) }?;
    } else if region.get_mmap().flags() & libc::MAP_PRIVATE != 0 {
        // Of a private mapping of a file, `MADV_DONTNEED` would bring back the file's content: the
        // range becomes fresh anonymous memory instead. At its place, so KVM's memory slots and
        // all else that knows the address stay valid.
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        let address = NonZeroUsize::new(start.as_ptr() as usize);
        // SAFETY: as above; the new mapping replaces a part of the region's mapping, with the same
        // protection, and is unmapped together with it.
        unsafe { mmap_anonymous(address, length, protection, flags) }?;
    } else {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(())
}
