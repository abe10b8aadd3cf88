//! A disk that a guest writes to, at rest: a file with holes where nothing was written.
//!
//! In a snapshot file it is stored as memory is: its pages that are not zero, each with a checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::ioctl_ficlone;
use rustix::io::Errno;

use crate::memory::{InvalidChain, Layer, LayeredMemory, MemoryError, is_zero, sparse};
use crate::pages::PAGE_SIZE;

/// Makes `to`, an empty file, one with the content of `from`. On a file system that can have two files
/// share what they have in common (Btrfs, XFS, bcachefs) nothing is copied, but what of it is not on the
/// medium yet is written there first; elsewhere holes stay holes.
///
/// # Errors
/// What the operating system says, that there is no room above all.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    let bytes = from.metadata()?.len();
    match ioctl_ficlone(to, from) {
        // In whole, which the call does not promise (ioctl_ficlone(2)).
        Ok(()) if to.metadata()?.len() == bytes => return Ok(()),
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(error.into()),
        // Not of this file system, not between these two, or not of files as they are.
        Ok(()) | Err(_) => to.set_len(0)?,
    }
    to.set_len(bytes)?;
    sparse::copy(from, to, bytes)
}

/// Makes `to`, an empty file, one with the content of `from`, with holes wherever that is zero, if it
/// was written or not.
///
/// # Errors
/// As for [`copy`].
pub fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let bytes = from.metadata()?.len();
    to.set_len(bytes)?;
    sparse::read_runs(from, bytes, |first, pages| {
        let pages = (first..).zip(pages.chunks(PAGE_SIZE as usize));
        for (number, page) in pages.filter(|(_, page)| !is_zero(page)) {
            to.write_all_at(page, number * PAGE_SIZE)?;
        }
        Ok(())
    })
}

/// A disk in a snapshot file.
#[derive(Debug)]
pub struct StoredDisk(LayeredMemory);

impl StoredDisk {
    pub(crate) fn new(layer: Layer) -> Result<Self, InvalidChain> {
        LayeredMemory::new(vec![layer]).map(Self)
    }

    /// The size of the disk.
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    /// Makes `to`, an empty file, one with the disk's content. Every page that is stored is checked.
    ///
    /// # Errors
    /// If the snapshot is damaged, or `to` cannot be written.
    pub fn load(&self, to: &File) -> Result<(), MemoryError> {
        const WRITING: &str = "write a guest's disk";
        to.set_len(self.bytes()).map_err(MemoryError::io(WRITING))?;
        self.0.read_pieces(|offset, pages| {
            to.write_all_at(pages, offset)
                .map_err(MemoryError::io(WRITING))
        })
    }
}
