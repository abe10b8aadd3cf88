//! Memory that is filled, copied and looked at while it is used.
//!
//! These tests handle page faults that are raised in the kernel, which not every user may. In the
//! lab, where tests of this name run, they may.
#![deny(unsafe_code)]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod changes;
mod mapping;
mod on_demand;
mod protect;

use ember_snapshot::memory::{MemoryBuilder, MemoryImage};
use ember_snapshot::{PAGE_SIZE, PageRun, PageSet};
use mapping::PAGE;

fn run(start: u64, pages: u64) -> PageRun {
    PageRun::new(start, pages).unwrap()
}

fn set(runs: &[(u64, u64)]) -> PageSet {
    runs.iter()
        .map(|&(start, pages)| run(start, pages))
        .collect()
}

/// What a word of a page of the test's memories contains.
fn content(page: usize, word: usize) -> u64 {
    (page as u64 + 1) << 16 | word as u64
}

/// A memory in which every word is different.
fn bytes(pages: usize) -> Vec<u8> {
    (0..pages)
        .flat_map(|page| (0..PAGE / 8).map(move |word| content(page, word)))
        .flat_map(u64::to_ne_bytes)
        .collect()
}

fn image(pages: usize) -> MemoryImage {
    let mut builder = MemoryBuilder::new(pages as u64 * PAGE_SIZE).unwrap();
    builder.write(0, &bytes(pages)).unwrap();
    builder.seal().unwrap()
}
