//! Memory that stands for a guest's.
#![allow(unsafe_code, reason = "mapping memory")]
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::fs::File;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use ember_snapshot::pager::{GuestMapping, Segment};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

pub(crate) const PAGE: usize = 4096;

/// A mapping that is written to and read by any thread, as a guest does.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: all accesses are atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Anonymous memory, a page at a time.
    pub(crate) fn anonymous(pages: usize) -> Self {
        Self::anonymous_with(pages, Advice::LinuxNoHugepage)
    }

    /// Anonymous memory in huge pages, where the kernel has some.
    pub(crate) fn huge(pages: usize) -> Self {
        Self::anonymous_with(pages, Advice::LinuxHugepage)
    }

    fn anonymous_with(pages: usize, advice: Advice) -> Self {
        let bytes = pages * PAGE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) };
        let start = start.unwrap();
        // SAFETY: the new mapping, to which nobody has references. That a kernel was built without
        // huge pages makes no difference.
        let _ = unsafe { madvise(start, bytes, advice) };
        Self::new(start.cast(), bytes)
    }

    pub(crate) fn private(file: &File, pages: usize) -> Self {
        let bytes = pages * PAGE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, protection, flags, file, 0) };
        Self::new(start.unwrap().cast(), bytes)
    }

    fn new(start: *mut u8, bytes: usize) -> Self {
        let start = NonNull::new(start).unwrap();
        Self { start, bytes }
    }

    /// The memory, as the pager knows it. It must not outlive `self`, which tests see to.
    pub(crate) fn guest(&self) -> GuestMapping {
        self.segments(&[(0, self.bytes / PAGE)])
    }

    /// Parts of the memory: (first page within the mapping, number of pages), whose offsets follow
    /// each other with a gap of one page.
    pub(crate) fn segments(&self, parts: &[(usize, usize)]) -> GuestMapping {
        let mut offset = 0;
        let segments: Vec<_> = parts
            .iter()
            .map(|(first, pages)| {
                assert!((first + pages) * PAGE <= self.bytes);
                let segment = Segment {
                    // SAFETY: within the mapping.
                    host: unsafe { self.start.add(first * PAGE) },
                    offset,
                    bytes: (pages * PAGE) as u64,
                };
                offset += segment.bytes + PAGE as u64;
                segment
            })
            .collect();
        // SAFETY: a private mapping of this process, which no test unmaps before it is done.
        unsafe { GuestMapping::new(segments) }.unwrap()
    }

    fn word(&self, page: usize, word: usize) -> &AtomicU64 {
        let offset = page * PAGE + word * 8;
        assert!(offset + 8 <= self.bytes);
        // SAFETY: within the mapping.
        let address = unsafe { self.start.add(offset) };
        // SAFETY: mapped as long as `self` lives, aligned, and only used atomically.
        unsafe { AtomicU64::from_ptr(address.as_ptr().cast()) }
    }

    /// A word of a page.
    pub(crate) fn get(&self, page: usize, word: usize) -> u64 {
        self.word(page, word).load(Ordering::Relaxed)
    }

    /// Writes a word of a page.
    pub(crate) fn set(&self, page: usize, word: usize, value: u64) {
        self.word(page, word).store(value, Ordering::Relaxed);
    }

    /// Has the kernel write to a page, as it does for a guest whose device reads a file.
    pub(crate) fn read_into(&self, page: usize, file: &File) -> std::io::Result<usize> {
        assert!((page + 1) * PAGE <= self.bytes);
        // SAFETY: within the mapping.
        let start = unsafe { self.start.add(page * PAGE) };
        // SAFETY: for the time of the call nobody else uses this page, which is mapped.
        let buffer = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), PAGE) };
        Ok(rustix::io::pread(file, buffer, 0)?)
    }

    /// Gives pages back.
    pub(crate) fn discard(&self, page: usize, pages: usize) {
        assert!((page + pages) * PAGE <= self.bytes);
        // SAFETY: within the mapping.
        let start = unsafe { self.start.add(page * PAGE) };
        // SAFETY: nobody has references to it.
        unsafe { madvise(start.as_ptr().cast(), pages * PAGE, Advice::LinuxDontNeed) }.unwrap();
    }

    /// Maps fresh anonymous memory in the place of pages.
    pub(crate) fn replace(&self, page: usize, pages: usize) {
        assert!((page + pages) * PAGE <= self.bytes);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: within the mapping.
        let start = unsafe { self.start.add(page * PAGE) };
        // SAFETY: nobody has references to it.
        unsafe { mmap_anonymous(start.as_ptr().cast(), pages * PAGE, protection, flags) }.unwrap();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { munmap(self.start.as_ptr().cast(), self.bytes) }.unwrap();
    }
}
