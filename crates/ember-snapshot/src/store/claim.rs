//! Building an entry step by step.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{BUILDING, Lock, Store, StoreError, tree};

/// The right to build, or to replace, one entry of a store: whoever else wants to waits.
///
/// Dropping it gives that up, and what was begun and not finished is removed.
#[derive(Debug)]
pub struct Claim {
    store: Store,
    key: String,
    begun: AtomicBool,
    // After the clean-up that dropping this does.
    _lock: Lock,
}

impl Claim {
    pub(super) fn new(store: &Store, key: &str, lock: Lock) -> Self {
        Self {
            store: store.clone(),
            key: key.to_owned(),
            begun: AtomicBool::new(false),
            _lock: lock,
        }
    }

    /// The directory of the entry, if it is there: another may have built it before this lock could
    /// be taken. Counts as a use.
    pub fn found(&self) -> Result<Option<PathBuf>, StoreError> {
        self.store.get(&self.key)
    }

    /// Makes an empty directory for the entry to be built in.
    pub fn begin(&self) -> Result<PathBuf, StoreError> {
        self.store.sweep(&self.key)?;
        let building = self.building();
        tree::remove(&building)?;
        fs::create_dir(&building).map_err(StoreError::io("create", &building))?;
        self.begun.store(true, Ordering::Relaxed);
        Ok(building)
    }

    /// Makes what was built the entry, in the place of the one that there was, if any. It is on disk
    /// when this returns.
    pub fn finish(self) -> Result<PathBuf, StoreError> {
        let building = self.building();
        let finished = self.store.directory().join(&self.key);
        // A rename can reach the disk before the contents of what it renames do.
        tree::sync(&building)?;
        // Not until the new one is complete. Whoever asks in between waits for this lock.
        self.store.discard(&self.key)?;
        fs::rename(&building, &finished).map_err(StoreError::io("complete", &finished))?;
        self.begun.store(false, Ordering::Relaxed);
        tree::sync_directory(self.store.directory())?;
        Ok(finished)
    }

    fn building(&self) -> PathBuf {
        self.store
            .directory()
            .join(format!("{BUILDING}{}", self.key))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if *self.begun.get_mut() {
            // What the build ran into matters more than what the clean-up does: the next builder
            // tries again.
            let _ = tree::remove(&self.building());
        }
    }
}
