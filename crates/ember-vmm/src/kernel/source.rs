//! Where a kernel's bytes are: in memory or in a file.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryError, MmapRegion,
    VolatileMemory,
};

use crate::arch::layout::PAGE_SIZE;
use crate::memory::GuestMemory;

/// Bytes that can be read at any place.
pub(crate) trait Source {
    /// How many there are.
    fn len(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// The bytes of a kernel, shared by all clones of its image.
#[derive(Clone)]
pub(super) enum Content {
    /// In memory.
    Memory(Arc<Vec<u8>>),
    /// In a file, which is read straight into the guest: a kernel takes no memory of the host but
    /// the page cache. Guest memory can only be filled from a file's current position, hence the
    /// lock.
    File { file: Arc<Mutex<File>>, len: u64 },
}

impl Content {
    pub(super) fn memory(bytes: Vec<u8>) -> Self {
        Self::Memory(Arc::new(bytes))
    }

    pub(super) fn file(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self::File {
            file: Arc::new(Mutex::new(file)),
            len,
        })
    }

    /// Copies `len` bytes from `offset` on into guest memory at `address`.
    pub(super) fn copy_to_guest(
        &self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        address: GuestAddress,
    ) -> Result<(), CopyError> {
        let as_usize = |value| usize::try_from(value).map_err(|_| CopyError::Gone);
        let (start, count) = (as_usize(offset)?, as_usize(len)?);
        match self {
            Self::Memory(bytes) => {
                let part = bytes.get(start..).and_then(|rest| rest.get(..count));
                memory.write_slice(part.ok_or(CopyError::Gone)?, address)?;
            }
            Self::File { file, .. } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                if is_steady(&file) && copy_mapped(&file, offset, count, memory, address) {
                    return Ok(());
                }
                file.seek(SeekFrom::Start(offset))
                    .map_err(CopyError::Seek)?;
                memory.read_exact_volatile_from(address, &mut *file, count)?;
            }
        }
        Ok(())
    }
}

/// Whether a file may be mapped for a moment. Whoever shortens a mapped file kills this process with
/// SIGBUS, as they could by shortening any library it runs; so it has to be the user's own or root's,
/// and nobody else may write to it.
fn is_steady(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| {
        let own = [0, nix::unistd::geteuid().as_raw()].contains(&metadata.uid());
        own && metadata.is_file() && metadata.mode() & 0o022 == 0
    })
}

/// Copies from the page cache through a mapping, which takes a fraction of the instructions that
/// `read(2)` takes page by page. Says whether it could; if not, nothing has been written.
fn copy_mapped(
    file: &File,
    offset: u64,
    count: usize,
    memory: &GuestMemory,
    address: GuestAddress,
) -> bool {
    let within = file.metadata().is_ok_and(|metadata| {
        offset
            .checked_add(count as u64)
            .is_some_and(|end| end <= metadata.len())
    });
    let before = offset % PAGE_SIZE;
    let (Ok(skipped), Ok(target)) = (usize::try_from(before), memory.get_slice(address, count))
    else {
        return false;
    };
    let (true, Some(length), Ok(file)) = (within, count.checked_add(skipped), file.try_clone())
    else {
        return false;
    };
    let start = Some(FileOffset::new(file, offset - before));
    MmapRegion::<()>::build(start, length, libc::PROT_READ, libc::MAP_PRIVATE)
        .ok()
        .and_then(|mapping| {
            let source = mapping.get_slice(skipped, count).ok()?;
            source.copy_to_volatile_slice(target);
            Some(())
        })
        .is_some()
}

/// Why bytes did not get into guest memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The bytes that were there when the kernel was parsed are not any more.
    #[error("the file became shorter since it was opened")]
    Gone,
    #[error("the file's position cannot be set")]
    Seek(#[source] io::Error),
    #[error("the bytes cannot be copied into guest memory")]
    Memory(#[from] GuestMemoryError),
}

impl Source for Content {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.as_slice().len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => bytes.as_slice().read_at(offset, buffer),
            Self::File { file, .. } => file
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read_exact_at(buffer, offset),
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Memory(_) => "Memory",
            Self::File { .. } => "File",
        };
        f.debug_struct(kind)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
