//! A snapshot with all those that it is based on.

use std::io;
use std::path::{Path, PathBuf};

use super::reader::{Snapshot, SnapshotFile};
use super::writer::{Memory, WriteError, write_file};
use super::{OpenError, Parent, SnapshotId};
use crate::disk::StoredDisk;
use crate::memory::{InvalidChain, LayeredMemory, MemoryError, MemoryImage};

/// How many layers a chain may have. Each holds a file open until the memory is loaded.
pub const MAX_CHAIN: usize = 128;

/// Why a chain of snapshots could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A snapshot could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A snapshot's parent could not be found.
    #[error("cannot find {name:?}, which the snapshot {} is based on", path.display())]
    Locate {
        /// The snapshot.
        path: PathBuf,
        /// The parent's name.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A parent is not the one that the diff was made from.
    #[error(
        "the snapshot {} is not the one that {} was made from: its memory is another",
        parent.display(),
        path.display()
    )]
    WrongParent {
        /// The diff.
        path: PathBuf,
        /// What was found in its parent's place.
        parent: PathBuf,
    },
    /// There are too many layers, or they go in a circle.
    #[error("a chain of more than {MAX_CHAIN} snapshots; compact it")]
    TooLong,
    /// The layers do not fit together.
    #[error(transparent)]
    Invalid(#[from] InvalidChain),
}

/// A snapshot with all those that it is based on, all of them open.
#[derive(Debug)]
pub struct Chain {
    top: Snapshot,
    memory: LayeredMemory,
    disk: Option<StoredDisk>,
}

impl Chain {
    /// Opens the snapshot `path`; `locate` says where a parent is.
    ///
    /// Once this has returned, nobody needs the files' names any more.
    pub fn open(
        path: &Path,
        mut locate: impl FnMut(&Parent) -> io::Result<PathBuf>,
    ) -> Result<Self, ChainError> {
        let file = SnapshotFile::open(path)?;
        let disk = file.disk().map_err(|error| OpenError {
            path: path.to_owned(),
            reason: error.into(),
        })?;
        let (top, layer) = file.into_parts();
        let mut layers = vec![layer];
        let mut below = path.to_owned();
        let mut parent = top.contents.manifest.parent.clone();
        while let Some(wanted) = parent {
            if layers.len() >= MAX_CHAIN {
                return Err(ChainError::TooLong);
            }
            let found = locate(&wanted).map_err(|source| ChainError::Locate {
                path: below.clone(),
                name: wanted.name.clone(),
                source,
            })?;
            let (snapshot, layer) = SnapshotFile::open(&found)?.into_parts();
            if snapshot.contents.manifest.memory_hash != Some(wanted.memory_hash) {
                return Err(ChainError::WrongParent {
                    path: below,
                    parent: found,
                });
            }
            layers.push(layer);
            below = found;
            parent = snapshot.contents.manifest.parent;
        }
        layers.reverse();
        let memory = LayeredMemory::new(layers)?;
        Ok(Self { top, memory, disk })
    }

    /// The snapshot itself, as opposed to those below it.
    pub fn top(&self) -> &Snapshot {
        &self.top
    }

    /// The memory in its layers, to be read page by page.
    pub fn memory(&self) -> &LayeredMemory {
        &self.memory
    }

    /// The disk that the guest writes to, if it has one: no parent's, whatever the memory is based
    /// on.
    pub fn disk(&self) -> Option<&StoredDisk> {
        self.disk.as_ref()
    }

    /// The snapshot, its memory in layers, and its disk.
    pub fn into_parts(self) -> (Snapshot, LayeredMemory, Option<StoredDisk>) {
        (self.top, self.memory, self.disk)
    }

    /// Loads the whole memory, each stored page checked. Its hash is the one in the manifest.
    pub fn load(&self) -> Result<MemoryImage, MemoryError> {
        let image = MemoryImage::load(&self.memory)?;
        Ok(match self.top.contents.manifest.memory_hash {
            Some(hash) => image.with_hash(hash),
            None => image,
        })
    }

    /// Writes the snapshot as one that needs no other, to the file `path`.
    ///
    /// Its memory has the same hash, so snapshots that are based on this one can be based on that
    /// one instead.
    pub fn compact(&self, path: &Path) -> Result<SnapshotId, WriteError> {
        // The content is hashed again: what is damaged does not get a fresh checksum.
        let image = MemoryImage::load(&self.memory)?;
        if Some(image.hash()?) != self.top.contents.manifest.memory_hash {
            return Err(WriteError::Contradiction(
                "the memory of the chain is not what its manifest says",
            ));
        }
        let disk = match &self.disk {
            None => None,
            Some(disk) => {
                let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
                let file = tempfile::tempfile_in(directory.unwrap_or(Path::new(".")))?;
                disk.load(&file)?;
                Some(file)
            }
        };
        write_file(
            path,
            Memory::Base(&image),
            disk.as_ref(),
            &self.top.contents,
        )
    }
}
