//! What identifies a memory's content.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::pages::PAGE_SIZE;

/// The hash of a guest's memory: its size and all pages that are not zero.
///
/// It depends on nothing else, so that two chains of layers with the same content have the same
/// hash, and which zero pages a file stores makes no difference.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemoryHash([u8; 32]);

/// The text is not a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 hexadecimal digits in lower case")]
pub struct InvalidHash;

impl MemoryHash {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for MemoryHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for MemoryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MemoryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MemoryHash {
    type Err = InvalidHash;

    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(InvalidHash),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return Err(InvalidHash);
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MemoryHash {
    type Error = InvalidHash;

    fn try_from(text: String) -> Result<Self, InvalidHash> {
        text.parse()
    }
}

impl From<MemoryHash> for String {
    fn from(hash: MemoryHash) -> Self {
        hash.to_string()
    }
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
