//! The templates in the cache, to be listed and removed.

use std::path::PathBuf;
use std::time::SystemTime;

use ember_snapshot::format::{Manifest, SnapshotFile};
use ember_snapshot::store::{EntryInfo, Store, StoreError};
use serde::{Serialize, Serializer};

use super::cache::FILE;
use super::file::chain_of;
use crate::assets::Assets;
use crate::error::{Error, ErrorKind};

/// The templates that were built and are kept.
///
/// Everything here blocks, but not for long.
#[derive(Debug, Clone)]
pub struct Templates {
    store: Store,
}

/// A template in the cache.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StoredTemplate {
    /// What names it: a digest of everything that went into it.
    pub key: String,
    /// Its file.
    pub path: PathBuf,
    /// How much room it takes on disk.
    pub bytes: u64,
    /// When it was last asked for.
    #[serde(serialize_with = "rfc3339")]
    pub last_used: SystemTime,
    /// What it says of itself: what it was made from and when, its processors and memory. Or why it
    /// cannot be read: then it is built anew when it is asked for.
    #[serde(serialize_with = "either")]
    pub manifest: Result<Manifest, String>,
}

impl StoredTemplate {
    fn new(entry: EntryInfo) -> Self {
        let path = entry.path.join(FILE);
        let manifest = match SnapshotFile::open(&path) {
            Ok(file) => Ok(file.into_parts().0.contents.manifest),
            Err(error) => Err(chain_of(&error)),
        };
        Self {
            key: entry.key,
            path,
            bytes: entry.bytes,
            last_used: entry.last_used,
            manifest,
        }
    }

    /// The image that its guests have, if it can be read.
    pub fn image(&self) -> Option<&str> {
        let image = self.manifest.as_ref().ok()?.images.first()?;
        Some(&image.name)
    }
}

impl Templates {
    /// Those in the cache of `assets`.
    pub fn of(assets: &Assets) -> Self {
        Self {
            store: assets.templates(),
        }
    }

    /// All of them, by their keys.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`] if the cache cannot be read.
    pub fn list(&self) -> Result<Vec<StoredTemplate>, Error> {
        let entries = self.store.list().map_err(failed("list"))?;
        Ok(entries.into_iter().map(StoredTemplate::new).collect())
    }

    /// The one whose key begins with `key`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if there is none, or several.
    pub fn find(&self, key: &str) -> Result<StoredTemplate, Error> {
        let mut entries = self.store.list().map_err(failed("list"))?;
        entries.retain(|entry| entry.key.starts_with(key));
        let wrong = |problem| {
            let message = format!("there {problem} whose key begins with {key:?}");
            Err(Error::new(ErrorKind::InvalidRequest, message))
        };
        match (entries.pop(), entries.is_empty()) {
            (None, _) => wrong("is no template"),
            (Some(_), false) => wrong("are several templates"),
            (Some(entry), true) => Ok(StoredTemplate::new(entry)),
        }
    }

    /// Removes the one with this `key`, all of it. Says whether it was there.
    ///
    /// Templates that were loaded from it, and their clones, are in memory and go on. Files that
    /// were [saved](crate::Template::save) as what is different from it cannot be loaded any more.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`] if it cannot be removed.
    pub fn remove(&self, key: &str) -> Result<bool, Error> {
        self.store.remove(key).map_err(failed("remove from"))
    }
}

fn failed(action: &'static str) -> impl Fn(StoreError) -> Error {
    move |error| {
        let message = format!("cannot {action} the templates in the cache");
        Error::because(ErrorKind::Unprepared, message, error)
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    // The notation begins there.
    let time = (*time).max(SystemTime::UNIX_EPOCH);
    serializer.collect_str(&humantime::format_rfc3339_seconds(time))
}

fn either<S: Serializer>(
    manifest: &Result<Manifest, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match manifest {
        Ok(manifest) => manifest.serialize(serializer),
        Err(problem) => serializer.collect_map([("problem", problem)]),
    }
}
