//! A template's memory, and where it is on disk.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ember_snapshot::memory::{MemoryHash, MemoryImage};

/// The memory that clones share.
#[derive(Debug)]
pub(crate) struct Memory {
    image: MemoryImage,
    saved: Arc<Mutex<Option<Saved>>>,
    parent: Option<Parent>,
}

/// A snapshot file that a memory can be loaded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) path: PathBuf,
    pub(crate) hash: MemoryHash,
}

/// What a memory was changed from. It does not keep that in memory.
#[derive(Debug)]
pub(crate) struct Parent {
    memory: Weak<Memory>,
    saved: Arc<Mutex<Option<Saved>>>,
}

impl Memory {
    /// `image`, which was made by changing `parent`.
    pub(crate) fn new(image: MemoryImage, parent: Option<&Arc<Self>>) -> Self {
        Self {
            image,
            saved: Arc::default(),
            parent: parent.map(|parent| Parent {
                memory: Arc::downgrade(parent),
                saved: Arc::clone(&parent.saved),
            }),
        }
    }

    /// The memory itself.
    pub(crate) fn image(&self) -> &MemoryImage {
        &self.image
    }

    /// Remembers that it is in this file now.
    pub(crate) fn set_saved(&self, saved: Saved) {
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
    }

    /// Remembers that the file where it is has this name now.
    pub(crate) fn moved_to(&self, path: PathBuf) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(saved) = saved.as_mut() {
            saved.path = path;
        }
    }

    /// What it was changed from, if that is on disk: where, and the memory if it is still there.
    pub(crate) fn saved_parent(&self) -> Option<(Saved, Option<Arc<Self>>)> {
        let parent = self.parent.as_ref()?;
        let saved = parent.saved.lock().unwrap_or_else(PoisonError::into_inner);
        Some((saved.clone()?, parent.memory.upgrade()))
    }
}
