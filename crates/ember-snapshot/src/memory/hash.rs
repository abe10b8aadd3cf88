//! What identifies a memory's content.

use crate::digest::digest;
use crate::pages::PAGE_SIZE;

digest! {
    /// The hash of a guest's memory: its size and all pages that are not zero.
    ///
    /// It depends on nothing else, so that two chains of layers with the same content have the
    /// same hash, and which zero pages a file stores makes no difference.
    MemoryHash
}

/// Computes a [`MemoryHash`] from pages in ascending order.
///
/// The contents and the page numbers are hashed apart, so that the contents, which are nearly all
/// of it, go through in long pieces.
pub(super) struct Hasher {
    contents: blake3::Hasher,
    numbers: blake3::Hasher,
}

impl Hasher {
    /// For a memory of `memory_bytes` bytes.
    pub(super) fn new(memory_bytes: u64) -> Self {
        let mut numbers = blake3::Hasher::new_derive_key("ember guest memory, 4 KiB pages, v1");
        numbers.update(&memory_bytes.to_le_bytes());
        Self {
            contents: blake3::Hasher::new(),
            numbers,
        }
    }

    /// Adds whole pages from page `first` on.
    pub(super) fn pages(&mut self, first: u64, bytes: &[u8]) {
        // Runs of pages that are not zero go through in one piece.
        let mut pending = 0..0;
        for (number, page) in (first..).zip(bytes.chunks(PAGE_SIZE as usize)) {
            let start = pending.end;
            if super::is_zero(page) {
                self.contents.update(bytes.get(pending).unwrap_or_default());
                pending = start + page.len()..start + page.len();
            } else {
                self.numbers.update(&number.to_le_bytes());
                pending.end += page.len();
            }
        }
        self.contents.update(bytes.get(pending).unwrap_or_default());
    }

    pub(super) fn finish(mut self) -> MemoryHash {
        self.numbers.update(self.contents.finalize().as_bytes());
        MemoryHash(*self.numbers.finalize().as_bytes())
    }
}
