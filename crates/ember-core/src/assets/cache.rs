//! The directory in which kernels and images are kept between runs.
//!
//! An entry is a directory that is named by what went into it and never changes. It is built in a
//! hidden sibling and renamed when it is complete, so that a build which was interrupted leaves
//! nothing that looks finished; whoever builds holds the entry's lock, so that several processes
//! which want the same thing build it once.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The prefix of a directory that is still being built.
const BUILDING: &str = ".building-";

/// A cache directory.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// Why the cache could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error(
        "no place for the cache: none of EMBER_CACHE, XDG_CACHE_HOME and HOME is set; set \
         EMBER_CACHE to a directory that may be written to"
    )]
    NoPlace,
    #[error("cannot {action} {} in the cache; EMBER_CACHE chooses another directory", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// An exclusive lock on a name in the cache, held by this value.
#[derive(Debug)]
pub(crate) struct Lock {
    // Closing the descriptor releases the lock, also when the process is killed.
    _file: File,
}

impl Cache {
    /// The cache of this user: `$EMBER_CACHE`, `$XDG_CACHE_HOME/ember` or `~/.cache/ember`.
    pub(crate) fn of_user() -> Result<Self, CacheError> {
        Self::choose(|name| std::env::var_os(name).map(PathBuf::from)).ok_or(CacheError::NoPlace)
    }

    fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<Self> {
        // The XDG base directory specification: a relative path there is invalid and is ignored.
        let absolute = |name| variable(name).filter(|path| path.is_absolute());
        variable("EMBER_CACHE")
            .filter(|path| !path.as_os_str().is_empty())
            .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("ember")))
            .or_else(|| absolute("HOME").map(|path| path.join(".cache/ember")))
            .map(Self::at)
    }

    /// The cache in `root`, which need not exist yet.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        // Paths from here outlive a change of the working directory.
        let root = std::path::absolute(&root).unwrap_or(root);
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Waits for and takes the lock on `name`.
    pub(crate) fn lock(&self, name: &str) -> Result<Lock, CacheError> {
        let (path, file) = self.lock_file(name)?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(Lock { _file: file })
    }

    fn lock_file(&self, name: &str) -> Result<(PathBuf, File), CacheError> {
        let directory = self.directory("locks")?;
        let path = directory.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        Ok((path, file))
    }

    /// The directory `name` of the cache, created if need be.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        Ok(path)
    }

    /// The entry `key` among the `kind`s; `build` fills an empty directory if it is not there.
    pub(crate) fn entry<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &str,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let finished = self.root.join(kind).join(key);
        if finished.is_dir() {
            return Ok(finished);
        }
        let parent = self.directory(kind)?;
        let _lock = self.lock(&lock_name(kind, key))?;
        // Another process may have finished it while this one waited.
        if finished.is_dir() {
            return Ok(finished);
        }
        self.sweep(kind, key)?;

        let building = parent.join(format!("{BUILDING}{key}"));
        remove(&building)?;
        fs::create_dir(&building).map_err(io_error("create", &building))?;
        if let Err(error) = build(&building) {
            // What the build ran into matters more than what the clean-up does.
            let _ = remove(&building);
            return Err(error);
        }
        // A rename can reach the disk before the contents of what it renames do.
        sync(&building)?;
        fs::rename(&building, &finished).map_err(io_error("complete", &finished))?;
        sync_directory(&parent)?;
        Ok(finished)
    }

    /// Removes what builders that are gone have left behind among the `kind`s, apart from `key`'s.
    fn sweep(&self, kind: &str, key: &str) -> Result<(), CacheError> {
        let parent = self.root.join(kind);
        for entry in fs::read_dir(&parent).map_err(io_error("list", &parent))? {
            let entry = entry.map_err(io_error("list", &parent))?;
            let name = entry.file_name();
            let Some(other) = name.to_str().and_then(|name| name.strip_prefix(BUILDING)) else {
                continue;
            };
            if other == key {
                continue;
            }
            let (path, file) = self.lock_file(&lock_name(kind, other))?;
            match file.try_lock() {
                Ok(()) => remove(&entry.path())?,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
            }
        }
        Ok(())
    }

    /// What the pointer `name` says, if it is there.
    pub(crate) fn pointer(&self, name: &str) -> Result<Option<String>, CacheError> {
        let path = self.root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Makes the pointer `name` say `target`, in one step. The caller holds a lock that covers it.
    pub(crate) fn set_pointer(&self, name: &str, target: &str) -> Result<(), CacheError> {
        let path = self.root.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        }
        let new = path.with_extension("new");
        let write = || {
            let mut file = File::create(&new)?;
            writeln!(file, "{target}")?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(io_error("write", &path))
    }
}

fn lock_name(kind: &str, key: &str) -> String {
    format!("{kind}-{key}")
}

fn remove(path: &Path) -> Result<(), CacheError> {
    // A directory without write permission (packages have such) cannot be emptied by an
    // unprivileged owner until it has it.
    fn make_removable(path: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                make_removable(&entry.path())?;
            }
        }
        Ok(())
    }
    let result = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_removable(path).and_then(|()| fs::remove_dir_all(path))
        }
        result => result,
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<(), CacheError> {
    for entry in fs::read_dir(directory).map_err(io_error("list", directory))? {
        let entry = entry.map_err(io_error("list", directory))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(io_error("examine", &path))?;
        if kind.is_dir() {
            sync(&path)?;
        } else if kind.is_file() {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(io_error("write", &path))?;
        }
    }
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> Result<(), CacheError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(io_error("write", directory))
}

#[cfg(test)]
mod tests;
