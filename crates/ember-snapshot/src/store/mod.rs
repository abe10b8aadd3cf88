//! A directory of things that take long to make and never change: templates, kernels, images.
//!
//! An entry is a directory that is named by what went into it. It is built in a hidden sibling and
//! renamed when it is complete and on disk, so that a build which was interrupted at any moment
//! leaves nothing that looks finished; whoever builds holds the entry's lock, so that several
//! threads and processes which want the same thing build it once. What builders that are gone have
//! left behind is removed by the next one.
//!
//! An entry can be removed while it is used: who has opened its files keeps them.

mod claim;
mod lock;
mod tree;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use claim::Claim;
pub use lock::Lock;

/// The prefix of a directory that is still being built.
const BUILDING: &str = ".building-";
/// The prefix of a directory that is being removed.
const REMOVING: &str = ".removing-";
/// The directory of the locks.
const LOCKS: &str = ".locks";

/// The longest key: with a prefix, it still is a file name.
const MAX_KEY: usize = 200;

/// Why the store could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The key cannot be the name of an entry.
    #[error(
        "{0:?} cannot be the key of an entry: it takes 1 to {MAX_KEY} printable ASCII characters, \
         no slash and no dot at its beginning"
    )]
    Key(String),
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl StoreError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Why an entry could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E> {
    /// The store could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What should have filled the entry failed.
    #[error(transparent)]
    Build(E),
}

/// What is known of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// Its key.
    pub key: String,
    /// Its directory.
    pub path: PathBuf,
    /// How much room it takes on disk.
    pub bytes: u64,
    /// When it was last asked for.
    pub last_used: SystemTime,
}

/// A directory of entries.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in `directory`, which need not exist yet.
    pub fn open(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        // Paths from here outlive a change of the working directory.
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        Self { directory }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of the entry `key`, if it is there. Counts as a use.
    pub fn get(&self, key: &str) -> Result<Option<PathBuf>, StoreError> {
        let path = self.directory.join(checked(key)?);
        match File::open(&path).and_then(|entry| Ok((entry.metadata()?, entry))) {
            Ok((metadata, entry)) if metadata.is_dir() => {
                // A store that can only be read does not remember.
                let _ = entry.set_modified(SystemTime::now());
                Ok(Some(path))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", &path)(error)),
        }
    }

    /// The directory of the entry `key`; `build` fills an empty directory if it is not there.
    ///
    /// Waits for others that build it. A build that fails leaves nothing.
    pub fn build<E>(
        &self,
        key: &str,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, BuildError<E>> {
        if let Some(path) = self.get(key)? {
            return Ok(path);
        }
        let claim = self.claim(key)?;
        // Another process may have finished it while this one waited.
        if let Some(path) = claim.found()? {
            return Ok(path);
        }
        let building = claim.begin()?;
        build(&building).map_err(BuildError::Build)?;
        Ok(claim.finish()?)
    }

    /// Waits for and takes the lock of the entry `key`, to build it step by step.
    pub fn claim(&self, key: &str) -> Result<Claim, StoreError> {
        let lock = Lock::acquire(&self.lock_path(key)?)?;
        Ok(Claim::new(self, key, lock))
    }

    /// Takes the lock of the entry `key` if nobody has it.
    pub fn try_claim(&self, key: &str) -> Result<Option<Claim>, StoreError> {
        let lock = Lock::try_acquire(&self.lock_path(key)?)?;
        Ok(lock.map(|lock| Claim::new(self, key, lock)))
    }

    /// Removes the entry `key`. Says whether it was there.
    ///
    /// Whoever has opened its files can go on using them, and nobody finds half of it.
    pub fn remove(&self, key: &str) -> Result<bool, StoreError> {
        if !self.directory.join(checked(key)?).is_dir() {
            return Ok(false);
        }
        let lock_path = self.lock_path(key)?;
        let _lock = Lock::acquire(&lock_path)?;
        self.discard(key)
    }

    /// [`remove`](Self::remove) for who holds the lock of `key`.
    fn discard(&self, key: &str) -> Result<bool, StoreError> {
        let removing = self.directory.join(format!("{REMOVING}{key}"));
        tree::remove(&removing)?;
        let entry = self.directory.join(key);
        match fs::rename(&entry, &removing) {
            Ok(()) => tree::remove(&removing).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("remove", &entry)(error)),
        }
    }

    /// All entries, by key.
    pub fn list(&self) -> Result<Vec<EntryInfo>, StoreError> {
        let mut entries = Vec::new();
        for name in self.names()? {
            let path = self.directory.join(&name);
            // One that is removed meanwhile is not there.
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if !metadata.is_dir() || checked(&name).is_err() {
                continue;
            }
            entries.push(EntryInfo {
                bytes: tree::bytes(&path),
                last_used: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                key: name,
                path,
            });
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    /// The names of everything in the directory.
    fn names(&self) -> Result<Vec<String>, StoreError> {
        let list = StoreError::io("list", &self.directory);
        let listed = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.and_then(Iterator::collect::<io::Result<Vec<_>>>),
        };
        let names = listed.map_err(list)?.into_iter();
        Ok(names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    /// Where the lock of `key` is.
    fn lock_path(&self, key: &str) -> Result<PathBuf, StoreError> {
        let locks = self.directory.join(LOCKS);
        fs::create_dir_all(&locks).map_err(StoreError::io("create", &locks))?;
        Ok(locks.join(checked(key)?))
    }

    /// Removes what others that are gone have left behind. The caller holds the lock of `own`.
    fn sweep(&self, own: &str) -> Result<(), StoreError> {
        for name in self.names()? {
            let left = name.strip_prefix(BUILDING).or(name.strip_prefix(REMOVING));
            let Some(key) = left.filter(|key| checked(key).is_ok()) else {
                continue;
            };
            let path = self.directory.join(&name);
            if key == own {
                tree::remove(&path)?;
            } else if let Some(_lock) = Lock::try_acquire(&self.lock_path(key)?)? {
                tree::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// `key`, if it can be the name of an entry.
fn checked(key: &str) -> Result<&str, StoreError> {
    let known = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    let valid =
        (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(known) && !key.starts_with('.');
    valid
        .then_some(key)
        .ok_or_else(|| StoreError::Key(key.to_owned()))
}

#[cfg(test)]
mod tests;
