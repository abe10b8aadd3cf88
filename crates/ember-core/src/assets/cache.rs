//! The directory in which kernels and images are kept between runs: one store for each kind.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(crate) use ember_snapshot::store::Lock;
use ember_snapshot::store::{BuildError, Store, StoreError};

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
    #[error(transparent)]
    Store(StoreError),
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

impl From<StoreError> for CacheError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
            other => Self::Store(other),
        }
    }
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
        Ok(Lock::acquire(&self.directory("locks")?.join(name))?)
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
        let store = Store::open(self.root.join(kind));
        store.build(key, build).map_err(|error| match error {
            BuildError::Store(error) => CacheError::from(error).into(),
            BuildError::Build(error) => error,
        })
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

#[cfg(test)]
mod tests;
