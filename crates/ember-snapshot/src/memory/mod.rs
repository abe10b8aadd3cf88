//! A guest's memory at rest: layers, the index that merges them, and the image that guests map.
//!
//! On disk, memory is a chain of [layers](Layer): a base, which leaves out pages that are zero, and
//! diffs, each of which has only what changed. [`LayeredMemory`] puts a chain behind one
//! [index](PageIndex), and [`MemoryImage`] is what is loaded from it: one sealed file in memory,
//! whatever the number of layers, so that the clone of a long chain costs what that of a short one
//! does.

mod builder;
mod hash;
mod image;
mod index;
mod layer;
mod layered;
pub(crate) mod sparse;
mod write;

use std::io;

use crate::pages::{MAX_MEMORY_BYTES, PAGE_SIZE};

pub use builder::MemoryBuilder;
pub use hash::MemoryHash;
pub use image::MemoryImage;
pub use index::{InvalidChain, PageIndex, Piece};
pub use layer::{Content, Extent, InvalidIndex, Layer, LayerIndex, LayerKind};
pub use layered::LayeredMemory;
pub(crate) use write::write_file;
pub use write::{LayerWriter, write_base, write_diff};

/// How much is read, checked or copied at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// Why something could not be done with a guest's memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The size is none that a memory can have.
    #[error(
        "a guest's memory cannot have {0} bytes: it takes a whole number of pages of {PAGE_SIZE} \
         bytes, at least one and {MAX_MEMORY_BYTES} bytes at most"
    )]
    Size(u64),
    /// A write did not cover whole pages within the memory.
    #[error("{length} bytes at {offset} are not whole pages of a memory of {memory_bytes} bytes")]
    Range {
        /// Where it should have gone.
        offset: u64,
        /// How much there was of it.
        length: usize,
        /// The size of the memory.
        memory_bytes: u64,
    },
    /// The file given as an image can still be changed.
    #[error(
        "the file is no memory image: it has to be a memfd that is sealed against writing, \
         shrinking and growing"
    )]
    NotSealed,
    /// Two memories that belong together differ in size.
    #[error("a memory of {found} bytes cannot follow one of {expected} bytes")]
    SizeDiffers {
        /// The size of the first.
        expected: u64,
        /// The size of the second.
        found: u64,
    },
    /// There are no huge pages for files in memory.
    #[error(
        "the kernel gives no huge pages for a guest's memory: it takes Linux 6.1 or later, \
         `advise` in /sys/kernel/mm/transparent_hugepage/shmem_enabled and `madvise` in \
         /sys/kernel/mm/transparent_hugepage/enabled, and memory that is free in pieces of 2 MiB"
    )]
    NoHugePages(#[source] io::Error),
    /// Pages for a layer did not come in ascending order.
    #[error("page {0} comes too late: the pages of a layer are written in ascending order")]
    Order(u64),
    /// The operating system refused, or a layer is damaged.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl MemoryError {
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    fn errno(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            action,
            source: errno.into(),
        }
    }
}

/// `bytes`, if a memory can have that size.
fn checked_size(bytes: u64) -> Result<u64, MemoryError> {
    let valid = bytes > 0 && bytes.is_multiple_of(PAGE_SIZE) && bytes <= MAX_MEMORY_BYTES;
    if valid {
        Ok(bytes)
    } else {
        Err(MemoryError::Size(bytes))
    }
}

/// Whether a page, or several, hold nothing but zeroes.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // The C library's comparison is fast also where the compiler does not optimize.
    static ZEROES: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    bytes
        .chunks(ZEROES.len())
        .all(|page| ZEROES.get(..page.len()) == Some(page))
}

#[cfg(test)]
mod tests;
