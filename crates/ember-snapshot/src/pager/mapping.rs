//! Where a guest's memory is in this process.
#![allow(
    unsafe_code,
    reason = "reading, and advising on, memory that a guest uses"
)]

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, madvise};

use crate::pages::{PAGE_SIZE, PageRun, PageSet};

/// A part of a guest's memory that is mapped in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in this process.
    pub host: NonNull<u8>,
    /// Where it is in the guest's memory: the offset in the file of an image.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Why segments are no guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("segment {0} of a guest's memory is empty, not made of whole pages, or out of order")]
pub struct InvalidMapping(usize);

/// Pages at an address. Only a [`GuestMapping`] makes one, of its own memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    host: NonNull<u8>,
    pub(super) run: PageRun,
}

impl Part {
    pub(super) fn address(&self) -> u64 {
        self.host.as_ptr().addr() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.run.bytes()
    }
}

/// A guest's memory in this process.
#[derive(Clone, Debug)]
pub struct GuestMapping {
    parts: Vec<Part>,
}

// SAFETY: whoever made it has promised that the memory can be used from everywhere in the process.
unsafe impl Send for GuestMapping {}
// SAFETY: as above.
unsafe impl Sync for GuestMapping {}

impl GuestMapping {
    /// The memory made of `segments`, in ascending order of their offsets.
    ///
    /// # Safety
    /// Each segment is a private mapping of this process, readable and writable, anonymous or of a
    /// file. It stays where it is, as a mapping with these properties, for as long as this value,
    /// any clone of it and anything made from one exists. Nobody has Rust references to it, and
    /// whatever uses it copes with its content being a guest's: anything, at any time.
    pub unsafe fn new(segments: impl IntoIterator<Item = Segment>) -> Result<Self, InvalidMapping> {
        let mut parts = Vec::new();
        let mut lowest = 0;
        for (number, segment) in segments.into_iter().enumerate() {
            let aligned = [
                segment.host.as_ptr().addr() as u64,
                segment.offset,
                segment.bytes,
            ]
            .iter()
            .all(|value| value.is_multiple_of(PAGE_SIZE));
            let run = PageRun::new(segment.offset / PAGE_SIZE, segment.bytes / PAGE_SIZE)
                .filter(|run| aligned && run.start() >= lowest)
                .ok_or(InvalidMapping(number))?;
            lowest = run.end();
            parts.push(Part {
                host: segment.host,
                run,
            });
        }
        Ok(Self { parts })
    }

    /// All of its pages.
    pub fn pages(&self) -> PageSet {
        self.parts.iter().map(|part| part.run).collect()
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The parts of it that make up `run`.
    pub(super) fn within(&self, run: PageRun) -> impl Iterator<Item = Part> + '_ {
        self.parts.iter().filter_map(move |part| {
            let within = part.run.intersection(&run)?;
            let offset = (within.start() - part.run.start()) * PAGE_SIZE;
            // SAFETY: the offset is within the part, which is one mapping.
            let host = unsafe { part.host.add(usize::try_from(offset).ok()?) };
            Some(Part { host, run: within })
        })
    }

    /// The page at an address of this process.
    pub(super) fn page_at(&self, address: u64) -> Option<u64> {
        self.parts.iter().find_map(|part| {
            let offset = address.checked_sub(part.address())?;
            (offset < part.bytes()).then(|| part.run.start() + offset / PAGE_SIZE)
        })
    }

    /// Reads the pages of `run`, as far as they are mapped, into `buffer`, whose content they
    /// replace.
    pub(super) fn read(&self, run: PageRun, buffer: &mut Vec<u8>) {
        buffer.clear();
        for part in self.within(run) {
            let length = usize::try_from(part.bytes()).unwrap_or(0);
            buffer.reserve(length);
            let room = buffer.spare_capacity_mut().as_mut_ptr().cast::<u8>();
            // SAFETY: a part is mapped and readable for as long as `self` exists, there is room for
            // `length` bytes, and the two do not overlap. Nobody has references to a guest's
            // memory. Its pages are protected from writes when they are copied; should a guest
            // write all the same, the bytes are some of before and some of after, which no
            // conclusion is drawn from.
            unsafe { std::ptr::copy_nonoverlapping(part.host.as_ptr(), room, length) };
            // SAFETY: so many bytes have just been written there.
            unsafe { buffer.set_len(buffer.len() + length) };
        }
    }

    /// Maps the pages of `set` as if the guest had read them, or as if it had written to them.
    pub(super) fn populate(&self, set: &PageSet, writing: bool) -> io::Result<()> {
        let advice = if writing {
            Advice::LinuxPopulateWrite
        } else {
            Advice::LinuxPopulateRead
        };
        for part in set.runs().iter().flat_map(|run| self.within(*run)) {
            let length = usize::try_from(part.bytes()).map_err(io::Error::other)?;
            loop {
                // SAFETY: this advice changes no content, and the range is the guest's memory.
                match unsafe { madvise(part.host.as_ptr().cast(), length, advice) } {
                    Err(rustix::io::Errno::INTR) => {}
                    result => break result?,
                }
            }
        }
        Ok(())
    }
}
