//! A guest's memory as guests map it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{fcntl_get_seals, fstat};

use super::builder::{MemoryBuilder, SEALS};
use super::hash::{Hasher, MemoryHash};
use super::layered::LayeredMemory;
use super::{MemoryError, checked_size, sparse};
use crate::pager::collapse::collapse;
use crate::pages::PageSet;
use crate::source::PageSource;

/// A guest's memory in one file in memory that nobody can change any more.
///
/// Any number of guests map it privately; until they write to a page, they share it. The file has
/// the size of the guest's memory and holes where it is zero. It is sealed, because whoever
/// shortened it would kill every process that maps it.
#[derive(Debug)]
pub struct MemoryImage {
    file: File,
    bytes: u64,
    hash: Mutex<Option<MemoryHash>>,
}

impl MemoryImage {
    pub(super) fn sealed(file: File, bytes: u64) -> Self {
        Self {
            file,
            bytes,
            hash: Mutex::new(None),
        }
    }

    /// The image in a file that was [built](MemoryBuilder) in another process.
    pub fn from_file(file: File) -> Result<Self, MemoryError> {
        // Any other kind of file has no seals at all.
        let seals = fcntl_get_seals(&file).map_err(|_| MemoryError::NotSealed)?;
        if !seals.contains(SEALS) {
            return Err(MemoryError::NotSealed);
        }
        let size = fstat(&file)
            .map_err(MemoryError::errno("examine a file in memory"))?
            .st_size;
        let bytes = checked_size(u64::try_from(size).unwrap_or(0))?;
        Ok(Self::sealed(file, bytes))
    }

    /// Loads a memory from its layers.
    pub fn load(memory: &LayeredMemory) -> Result<Self, MemoryError> {
        let mut builder = MemoryBuilder::new(memory.bytes())?;
        memory.read_pieces(|offset, pages| builder.write(offset, pages))?;
        builder.seal()
    }

    /// The same image, whose hash is known from when it was written.
    pub(crate) fn with_hash(self, hash: MemoryHash) -> Self {
        Self {
            hash: Mutex::new(Some(hash)),
            ..self
        }
    }

    /// The file, to be mapped privately or handed to another process.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The size of the memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How much memory the image takes.
    pub fn allocated_bytes(&self) -> Result<u64, MemoryError> {
        let stat = fstat(&self.file).map_err(MemoryError::errno("examine a file in memory"))?;
        Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Puts the image into huge pages, where it is not only zeroes. Gives how many bytes are in such.
    ///
    /// A guest whose mapping of the file begins at a multiple of 2 MiB, as the file does, then maps
    /// as much with one fault as with 512 before. What it writes to is copied in small pages. A
    /// huge page takes all of its room, whatever of it is zero.
    ///
    /// # Errors
    /// [`MemoryError::NoHugePages`] if the kernel has none for files in memory.
    pub fn use_huge_pages(&self) -> Result<u64, MemoryError> {
        self.use_huge_pages_for(&self.data_pages()?)
    }

    /// [`use_huge_pages`](Self::use_huge_pages) for those parts of 2 MiB only that have some of
    /// `pages`.
    ///
    /// # Errors
    /// As for [`use_huge_pages`](Self::use_huge_pages).
    pub fn use_huge_pages_for(&self, pages: &PageSet) -> Result<u64, MemoryError> {
        collapse(&self.file, self.bytes, pages).map_err(MemoryError::NoHugePages)
    }

    /// The pages for which there is something in the file. All others are zero.
    pub fn data_pages(&self) -> Result<PageSet, MemoryError> {
        let mut runs = Vec::new();
        sparse::data_runs(&self.file, self.bytes, |run| {
            runs.push(run);
            Ok(())
        })
        .map_err(MemoryError::io("examine a file in memory"))?;
        Ok(runs.into_iter().collect())
    }

    /// Calls `visit` with the first page and the content of all pages for which there is something
    /// in the file, in ascending order and in chunks.
    pub(super) fn visit<E: From<io::Error>>(
        &self,
        visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        sparse::read_runs(&self.file, self.bytes, visit)
    }

    /// The hash of the content. Computed when it is first asked for.
    pub fn hash(&self) -> Result<MemoryHash, MemoryError> {
        // The lock is held while it is computed: who asks meanwhile waits and gets it.
        let mut known = self.hash.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hash) = *known {
            return Ok(hash);
        }
        Ok(*known.insert(self.compute_hash()?))
    }

    /// Computes the hash of what is in the file now.
    pub fn compute_hash(&self) -> Result<MemoryHash, MemoryError> {
        let mut hasher = Hasher::new(self.bytes);
        self.visit(|first, pages| {
            hasher.pages(first, pages);
            Ok::<_, io::Error>(())
        })
        .map_err(MemoryError::io("read a file in memory"))?;
        Ok(hasher.finish())
    }
}

impl PageSource for MemoryImage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}
