//! Huge pages for a memory image.
#![allow(unsafe_code, reason = "mapping a file for as long as a call takes")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::NonNull;

use nix::libc;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::pages::{PAGE_SIZE, PageSet};

/// The size of a huge page: what one entry of a page table's second level maps.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Makes huge pages of those parts of `file`, which is in memory, that have some of `pages`. Gives
/// how many bytes are in huge pages now; those are there in full, zeroes included.
///
/// Fails if there is none. That some parts cannot be had, for want of memory in one piece, is no
/// failure.
pub(crate) fn collapse(file: &File, bytes: u64, pages: &PageSet) -> io::Result<u64> {
    let window = Window::reserve()?;
    let mut collapsed = 0;
    let mut last = Ok(());
    let huge_pages = HUGE_PAGE_BYTES / PAGE_SIZE;
    let mut next = 0;
    for run in pages.runs() {
        for unit in (run.start() / huge_pages).max(next)..run.end().div_ceil(huge_pages) {
            next = unit + 1;
            let offset = unit * HUGE_PAGE_BYTES;
            // A rest at the end is no huge page.
            if offset + HUGE_PAGE_BYTES > bytes {
                break;
            }
            match window.collapse(file, offset) {
                Ok(()) => collapsed += HUGE_PAGE_BYTES,
                Err(error) => last = Err(error),
            }
        }
    }
    if collapsed == 0 {
        last?;
    }
    Ok(collapsed)
}

/// Addresses at which one huge page can be mapped.
struct Window {
    reserved: NonNull<c_void>,
}

const RESERVED_BYTES: usize = 2 * HUGE_PAGE_BYTES as usize;

impl Window {
    fn reserve() -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, at a place that the kernel chooses, which nobody can access.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                RESERVED_BYTES,
                ProtFlags::empty(),
                flags,
            )
        }?;
        let reserved = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { reserved })
    }

    /// Makes a huge page of what is in `file` from `offset` on.
    fn collapse(&self, file: &File, offset: u64) -> io::Result<()> {
        let length = HUGE_PAGE_BYTES as usize;
        // Within the reservation, which is twice as long.
        let start = self
            .reserved
            .as_ptr()
            .map_addr(|address| address.next_multiple_of(length));
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: the place belongs to this value, and nothing refers to it.
        let start = unsafe { mmap(start, length, ProtFlags::READ, flags, file, offset) }?;
        // SAFETY: this advice changes no content. The range is the one just mapped.
        let result = unsafe { libc::madvise(start, length, libc::MADV_COLLAPSE) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the place belongs to this value, whatever is mapped there, and nothing refers to
        // it. That it fails is impossible; if it did, addresses would be lost and nothing else.
        let _ = unsafe { munmap(self.reserved.as_ptr(), RESERVED_BYTES) };
    }
}
