//! What a guest has touched, and touching it ahead.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::PagerError;
use super::mapping::GuestMapping;
use super::sys::{self, Wanted, category};
use crate::pages::{PAGE_SIZE, PageRun, PageSet};
use crate::working_set::WorkingSet;

/// Bits of an entry of `/proc/PID/pagemap` (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;
const PROTECTED: u64 = 1 << 57;
const ENTRY_BYTES: u64 = 8;
/// How many entries are read in one call.
const ENTRIES: u64 = 4096;

/// Private copies: pages that are not the file's any more, if the mapping is one of a file.
const CHANGED: Wanted = Wanted {
    all: 0,
    none: category::FILE | category::PFNZERO,
    any: category::PRESENT | category::SWAPPED,
};

/// Private copies that are in memory.
const CHANGED_PRESENT: Wanted = Wanted {
    all: category::PRESENT,
    none: category::FILE | category::PFNZERO,
    any: 0,
};

/// Private copies that are not in memory. Those that are write-protected are not among them: the
/// kernel remembers the protection of a page that was never there in the same place, and shows it as
/// one that was swapped out.
const CHANGED_SWAPPED: Wanted = Wanted {
    all: category::SWAPPED | category::WRITTEN,
    none: category::FILE,
    any: 0,
};

/// Pages of the file that somebody looked at.
const READ: Wanted = Wanted {
    all: category::FILE | category::PRESENT,
    none: 0,
    any: 0,
};

/// The pages of which the guest has a copy of its own, because it, or somebody for it, has written
/// to them.
///
/// A page that was given back since and is mapped no more is none of them. While a live copy has its
/// memory protected, pages that were never there can be: see [`copied_pages`].
pub fn changed_pages(mapping: &GuestMapping) -> Result<PageSet, PagerError> {
    find(mapping, CHANGED)
}

/// The pages of which the guest has a copy of its own, as [`changed_pages`] finds them, but with no
/// page too many while a live copy has its memory protected: then it leaves out what was swapped out
/// before the copy began.
pub fn copied_pages(mapping: &GuestMapping) -> Result<PageSet, PagerError> {
    Ok(find(mapping, CHANGED_PRESENT)?.union(&find(mapping, CHANGED_SWAPPED)?))
}

/// The pages that the guest has touched: what is mapped.
///
/// Of a file the kernel maps pages around the one that is read, so `read` has neighbours.
pub fn touched_pages(mapping: &GuestMapping) -> Result<WorkingSet, PagerError> {
    Ok(WorkingSet {
        written: find(mapping, CHANGED)?,
        read: find(mapping, READ)?,
    })
}

/// Maps pages ahead of their use, as if the guest had read them.
///
/// Needs Linux 5.14. What it fails to map will be mapped when it is used.
pub fn map_ahead(mapping: &GuestMapping, pages: &PageSet) -> Result<(), PagerError> {
    mapping
        .populate(pages, false)
        .map_err(PagerError::io("map the pages of a working set ahead"))
}

/// Makes the guest's own copies of pages ahead of its writing to them.
///
/// Needs Linux 5.14. What it fails to copy will be copied when it is written to.
pub fn copy_ahead(mapping: &GuestMapping, pages: &PageSet) -> Result<(), PagerError> {
    mapping
        .populate(pages, true)
        .map_err(PagerError::io("copy the pages of a working set ahead"))
}

/// Finds changed pages also where memory was protected meanwhile.
///
/// The kernel remembers the protection of a page that is not there in the place where it remembers
/// that a page was swapped out, and the page map shows both as the same. So what is swapped out has
/// to be looked at before anything is protected, and afterwards only what is present. A page that
/// was written to in between and swapped out at once would escape; that anything was swapped out
/// can be seen.
#[derive(Debug)]
pub(super) struct ChangeFinder {
    swapped_out: Option<u64>,
    before: PageSet,
}

impl ChangeFinder {
    /// Looks at the memory while nothing of it is protected.
    pub(super) fn new(mapping: &GuestMapping) -> Result<Self, PagerError> {
        Ok(Self {
            swapped_out: swapped_out(),
            before: changed_pages(mapping)?,
        })
    }

    /// What has been changed up to now.
    pub(super) fn find(&self, mapping: &GuestMapping) -> Result<PageSet, PagerError> {
        let present = find(mapping, CHANGED_PRESENT)?;
        let now = swapped_out();
        let changed = if now.is_some() && now == self.swapped_out {
            present
        } else {
            // Too many, which costs time and room, and nothing else.
            changed_pages(mapping)?
        };
        Ok(self.before.union(&changed))
    }
}

/// How many pages this machine has ever swapped out, in any way.
fn swapped_out() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/vmstat").ok()?;
    swapped_out_in(&counters)
}

/// Sums up `pswpout`, `zswpout`, `swpout_zero` and their like.
fn swapped_out_in(counters: &str) -> Option<u64> {
    let mut sum = None;
    for line in counters.lines().filter(|line| line.contains("swpout")) {
        let count: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        sum = Some(count.wrapping_add(sum.unwrap_or(0)));
    }
    sum
}

fn find(mapping: &GuestMapping, wanted: Wanted) -> Result<PageSet, PagerError> {
    let pagemap =
        File::open("/proc/self/pagemap").map_err(PagerError::io("open /proc/self/pagemap"))?;
    let failed = || PagerError::io("look at the pages of a guest");
    match sys::scan(&pagemap, mapping, wanted).map_err(failed())? {
        Some(found) => Ok(found),
        None => read_entries(&pagemap, mapping, wanted).map_err(failed()),
    }
}

/// What [`sys::scan`] finds, on kernels that cannot scan.
fn read_entries(file: &File, mapping: &GuestMapping, wanted: Wanted) -> io::Result<PageSet> {
    let mut found = PageSet::new();
    let mut buffer = Vec::new();
    for part in mapping.parts() {
        let first_entry = part.address() / PAGE_SIZE * ENTRY_BYTES;
        for run in part.run.pieces(ENTRIES) {
            let length = usize::try_from(run.pages() * ENTRY_BYTES).map_err(io::Error::other)?;
            buffer.resize(length, 0);
            let offset = (run.start() - part.run.start()) * ENTRY_BYTES;
            file.read_exact_at(&mut buffer, first_entry + offset)?;
            let entries = buffer.as_chunks().0.iter().copied().map(u64::from_ne_bytes);
            for (page, entry) in (run.start()..).zip(entries) {
                if matches(entry, wanted)
                    && let Some(run) = PageRun::new(page, 1)
                {
                    found.insert(run);
                }
            }
        }
    }
    Ok(found)
}

/// Whether an entry of the page map is what is wanted. The page of zeroes is not told from a copy.
fn matches(entry: u64, wanted: Wanted) -> bool {
    let mut categories = 0;
    for (bit, category) in [
        (PRESENT, category::PRESENT),
        (SWAPPED, category::SWAPPED),
        (FILE, category::FILE),
    ] {
        if entry & bit != 0 {
            categories |= category;
        }
    }
    if entry & PROTECTED == 0 {
        categories |= category::WRITTEN;
    }
    categories & wanted.all == wanted.all
        && categories & wanted.none == 0
        && (wanted.any == 0 || categories & wanted.any != 0)
}

#[cfg(test)]
mod tests;
