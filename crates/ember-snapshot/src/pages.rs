//! Numbers of pages: runs and sets of them.
//!
//! A page is 4 KiB of a guest's memory, and its number is its offset within that memory divided by
//! the page size. Memory is laid out as in the file that backs it, from low to high and without the
//! hole that a machine has below 4 GiB, so these are not guest-physical addresses.

use std::fmt;

/// The size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// The largest memory that a snapshot can describe: 16 TiB, whose page numbers fit 32 bits.
pub const MAX_MEMORY_BYTES: u64 = PAGE_SIZE << 32;

/// The number of pages of the largest memory.
pub(crate) const MAX_PAGES: u64 = MAX_MEMORY_BYTES / PAGE_SIZE;

/// The bytes of a run in a file: two 64-bit numbers, little-endian.
const RUN_BYTES: usize = 16;

/// Why bytes are not a set of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPages {
    /// The bytes end within a run.
    #[error("the list of pages is cut off: {0} bytes are no whole number of runs")]
    Truncated(usize),
    /// A run is empty, ends beyond any memory or does not lie above the one before it.
    #[error("run {0} of the list of pages is empty, too long or out of order")]
    Run(usize),
}

/// Pages that follow each other; at least one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageRun {
    start: u64,
    end: u64,
}

impl PageRun {
    /// The run of `pages` pages from page `start` on, if it is not empty and lies within the
    /// largest memory.
    pub fn new(start: u64, pages: u64) -> Option<Self> {
        let end = start.checked_add(pages)?;
        (pages > 0 && end <= MAX_PAGES).then_some(Self { start, end })
    }

    /// The first page.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The page after the last.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many pages.
    pub fn pages(&self) -> u64 {
        self.end - self.start
    }

    /// Where its bytes start.
    pub fn offset(&self) -> u64 {
        self.start * PAGE_SIZE
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.pages() * PAGE_SIZE
    }

    /// What `self` and `other` have in common.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// The run cut into pieces of at most `pages` pages.
    pub fn pieces(&self, pages: u64) -> impl Iterator<Item = Self> + use<> {
        let (first, end, step) = (self.start, self.end, pages.max(1));
        let mut start = first;
        std::iter::from_fn(move || {
            let piece = Self {
                start,
                end: end.min(start.saturating_add(step)),
            };
            start = piece.end;
            (piece.start < piece.end).then_some(piece)
        })
    }
}

impl fmt::Debug for PageRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A set of pages, kept as runs in ascending order with a gap between any two.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    runs: Vec<PageRun>,
}

impl PageSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { runs: Vec::new() }
    }

    /// All pages of a memory of `bytes` bytes; a part of a page at its end is left out.
    pub fn all(bytes: u64) -> Self {
        PageRun::new(0, (bytes / PAGE_SIZE).min(MAX_PAGES))
            .into_iter()
            .collect()
    }

    /// Its runs, in ascending order.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(PageRun::pages).sum()
    }

    /// The page after the last one, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.runs.last().map_or(0, PageRun::end)
    }

    /// Whether `page` is one of them.
    pub fn contains(&self, page: u64) -> bool {
        let above = self.runs.partition_point(|run| run.end <= page);
        self.runs.get(above).is_some_and(|run| run.start <= page)
    }

    /// Adds `run`. Cheap if nothing in the set lies above it.
    pub fn insert(&mut self, run: PageRun) {
        // Everything from `first` up to `after` overlaps the run or touches it.
        let first = self.runs.partition_point(|other| other.end < run.start);
        let after = self.runs.partition_point(|other| other.start <= run.end);
        let mut merged = run;
        if let Some(touched) = self.runs.get(first..after)
            && let (Some(low), Some(high)) = (touched.first(), touched.last())
        {
            merged.start = merged.start.min(low.start);
            merged.end = merged.end.max(high.end);
        }
        self.runs.splice(first..after, [merged]);
    }

    /// The pages that are in `self` or in `other`.
    pub fn union(&self, other: &Self) -> Self {
        self.runs.iter().chain(&other.runs).copied().collect()
    }

    /// The pages of `self` that are not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = Self::new();
        let mut others = other.runs.iter().copied().peekable();
        for run in &self.runs {
            let mut start = run.start;
            while start < run.end {
                while others.next_if(|other| other.end <= start).is_some() {}
                let end = match others.peek() {
                    Some(other) if other.start <= start => {
                        start = other.end;
                        continue;
                    }
                    Some(other) => other.start.min(run.end),
                    None => run.end,
                };
                rest.runs.push(PageRun { start, end });
                start = end;
            }
        }
        rest
    }

    /// The pages of the set and those of gaps of at most `pages` pages between them.
    #[must_use]
    pub fn without_gaps_of(&self, pages: u64) -> Self {
        let mut runs: Vec<PageRun> = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            match runs.last_mut() {
                Some(last) if run.start - last.end <= pages => last.end = run.end,
                _ => runs.push(*run),
            }
        }
        Self { runs }
    }

    /// Writes the set as bytes: for each run its first page and its number of pages, as 64-bit
    /// little-endian numbers.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.runs.len() * RUN_BYTES);
        for run in &self.runs {
            bytes.extend(run.start.to_le_bytes());
            bytes.extend(run.pages().to_le_bytes());
        }
        bytes
    }

    /// Reads a set from what [`encode`](Self::encode) wrote. There is one encoding of a set, and
    /// anything else is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidPages> {
        let (chunks, rest) = bytes.as_chunks::<RUN_BYTES>();
        if !rest.is_empty() {
            return Err(InvalidPages::Truncated(bytes.len()));
        }
        let mut runs = Vec::with_capacity(chunks.len());
        let mut lowest = 0;
        for (number, chunk) in chunks.iter().enumerate() {
            let [start, pages] = chunk.as_chunks::<8>().0 else {
                return Err(InvalidPages::Truncated(bytes.len()));
            };
            let run = PageRun::new(u64::from_le_bytes(*start), u64::from_le_bytes(*pages))
                .filter(|run| run.start >= lowest)
                .ok_or(InvalidPages::Run(number))?;
            // Runs that touch would be one run.
            lowest = run.end + 1;
            runs.push(run);
        }
        Ok(Self { runs })
    }
}

impl FromIterator<PageRun> for PageSet {
    fn from_iter<I: IntoIterator<Item = PageRun>>(iter: I) -> Self {
        let mut sorted: Vec<PageRun> = iter.into_iter().collect();
        sorted.sort_unstable();
        let mut runs: Vec<PageRun> = Vec::with_capacity(sorted.len());
        for run in sorted {
            match runs.last_mut() {
                Some(last) if last.end >= run.start => last.end = last.end.max(run.end),
                _ => runs.push(run),
            }
        }
        Self { runs }
    }
}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.runs).finish()
    }
}

#[cfg(test)]
mod tests;
