//! Making a memory image.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fstat, memfd_create,
};
use rustix::io::Errno;

use super::{MemoryError, MemoryImage, checked_size, is_zero, sparse};
use crate::pages::PAGE_SIZE;

/// The seals that make a file an image.
pub(super) const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// A guest's memory that is being put together. What is not written is zero.
#[derive(Debug)]
pub struct MemoryBuilder {
    file: File,
    bytes: u64,
    /// From here on, nothing was written yet.
    untouched: u64,
}

impl MemoryBuilder {
    /// A memory of `bytes` zero bytes.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let bytes = checked_size(bytes)?;
        let create = MemoryError::errno("create a file in memory");
        let file = File::from(create_memfd().map_err(create)?);
        file.set_len(bytes)
            .map_err(MemoryError::io("set the size of a file in memory"))?;
        Ok(Self {
            file,
            bytes,
            untouched: 0,
        })
    }

    /// A memory with the content of `image`. Holes are not copied.
    pub fn from_image(image: &MemoryImage) -> Result<Self, MemoryError> {
        let mut builder = Self::new(image.bytes())?;
        sparse::copy(image.file(), &builder.file, builder.bytes)
            .map_err(MemoryError::io("copy a guest's memory"))?;
        builder.untouched = builder.bytes;
        Ok(builder)
    }

    /// The memory in a file that somebody else has [shared](Self::share): what is written here is
    /// written there.
    pub fn from_shared(file: File) -> Result<Self, MemoryError> {
        let size = fstat(&file)
            .map_err(MemoryError::errno("examine a file in memory"))?
            .st_size;
        let bytes = checked_size(u64::try_from(size).unwrap_or(0))?;
        Ok(Self {
            file,
            bytes,
            // Whatever was written before has to be written over.
            untouched: bytes,
        })
    }

    /// The file, for another process to write to until this one [seals](Self::seal) the memory. Its
    /// size is fixed from now on.
    pub fn share(&self) -> Result<File, MemoryError> {
        fcntl_add_seals(&self.file, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(MemoryError::errno("seal the size of a file in memory"))?;
        self.file
            .try_clone()
            .map_err(MemoryError::io("share a file in memory"))
    }

    /// The size of the memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes whole pages at `offset`. Pages of zeroes take no room.
    pub fn write(&mut self, offset: u64, pages: &[u8]) -> Result<(), MemoryError> {
        let out_of_range = || MemoryError::Range {
            offset,
            length: pages.len(),
            memory_bytes: self.bytes,
        };
        let length = pages.len() as u64;
        let end = offset.checked_add(length).ok_or_else(out_of_range)?;
        let aligned = offset.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE);
        if !aligned || end > self.bytes {
            return Err(out_of_range());
        }
        let mut position = offset;
        let page = |bytes: &[u8]| is_zero(bytes);
        let mut rest = pages.chunks(PAGE_SIZE as usize).map(page).peekable();
        // One call for each run of pages of one kind.
        while let Some(zero) = rest.next() {
            let start = position;
            position += PAGE_SIZE;
            while rest.next_if_eq(&zero).is_some() {
                position += PAGE_SIZE;
            }
            if zero {
                self.clear(start, position)?;
            } else {
                let range = start - offset..position - offset;
                let range = usize::try_from(range.start)
                    .ok()
                    .zip(usize::try_from(range.end).ok());
                let run = range.and_then(|(start, end)| pages.get(start..end));
                self.file
                    .write_all_at(run.ok_or_else(out_of_range)?, start)
                    .map_err(MemoryError::io("write to a file in memory"))?;
            }
        }
        self.untouched = self.untouched.max(end);
        Ok(())
    }

    /// Makes the pages from `start` to `end` zero.
    fn clear(&self, start: u64, end: u64) -> Result<(), MemoryError> {
        let end = end.min(self.untouched);
        if start >= end {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, start, end - start)
            .map_err(MemoryError::errno("free pages of a file in memory"))
    }

    /// Finishes the memory: from now on nobody can change it.
    pub fn seal(self) -> Result<MemoryImage, MemoryError> {
        fcntl_add_seals(&self.file, SEALS).map_err(MemoryError::errno("seal a file in memory"))?;
        Ok(MemoryImage::sealed(self.file, self.bytes))
    }
}

fn create_memfd() -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(c"ember-memory", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 there is no such flag, and nothing to forbid.
        Err(Errno::INVAL) => memfd_create(c"ember-memory", flags),
        result => result,
    }
}
