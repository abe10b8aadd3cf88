//! A lock on a name in the file system.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::StoreError;

/// An exclusive lock on a file name, among threads as among processes, held by this value.
///
/// The file exists only while somebody holds the lock, or was killed holding it.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    // Closing the descriptor releases the lock, also when the process is killed.
    _file: File,
}

impl Lock {
    /// Waits for and takes the lock on `path`, whose directory exists.
    pub fn acquire(path: &Path) -> Result<Self, StoreError> {
        loop {
            let lock = Unconfirmed::open(path)?;
            lock.file.lock().map_err(StoreError::io("lock", path))?;
            if let Some(lock) = lock.confirm()? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock on `path` if nobody holds it.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>, StoreError> {
        loop {
            let lock = Unconfirmed::open(path)?;
            match lock.file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
            }
            if let Some(lock) = lock.confirm()? {
                return Ok(Some(lock));
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The name first: who opens it from now on gets a new file, and who has opened this one
        // finds out that it has no name any more. That it is left behind would do no harm.
        let _ = fs::remove_file(&self.path);
    }
}

/// A file that is locked, or about to be, but may have lost its name meanwhile.
struct Unconfirmed {
    path: PathBuf,
    file: File,
}

impl Unconfirmed {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(StoreError::io("open", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// The lock, if the name still means this file.
    fn confirm(self) -> Result<Option<Lock>, StoreError> {
        let named = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("examine", &self.path)(error)),
        };
        let held = self
            .file
            .metadata()
            .map_err(StoreError::io("examine", &self.path))?;
        if (named.dev(), named.ino()) != (held.dev(), held.ino()) {
            return Ok(None);
        }
        // Only now: to drop a lock takes away the name.
        Ok(Some(Lock {
            path: self.path,
            _file: self.file,
        }))
    }
}
