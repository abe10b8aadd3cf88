//! The images that are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ember_snapshot::store::Store;
use serde::Serialize;

use super::cache::CacheError;
use super::image::{FILE, pointed};
use super::import::{self, Contents, ImageKind};
use super::{AssetError, Assets};

/// An image that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StoredImage {
    /// What it is called in the cache: by what went into it.
    pub key: String,
    /// What it was asked for as. None of one that is not used any more: its name stands for another
    /// by now.
    pub names: Vec<String>,
    /// Where it comes from.
    pub kind: ImageKind,
    /// The digest of its manifest, of one of a registry.
    pub digest: Option<String>,
    /// What it is for, if that was said.
    pub platform: Option<String>,
    /// Its file.
    pub file: PathBuf,
    /// How much room it takes on disk.
    pub bytes: u64,
    /// When it was last asked for.
    pub last_used: SystemTime,
}

/// Which images are removed: those without a name, and what is said here besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prune {
    all: bool,
    unused_for: Option<Duration>,
}

impl Prune {
    /// Those without a name.
    pub fn unnamed() -> Self {
        Self::default()
    }

    /// All, but for packs.
    #[must_use]
    pub fn all(mut self) -> Self {
        self.all = true;
        self
    }

    /// Those, but for packs, that nobody has asked for in this time.
    #[must_use]
    pub fn unused_for(mut self, time: Duration) -> Self {
        self.unused_for = Some(time);
        self
    }

    fn wants(&self, image: &StoredImage) -> bool {
        let age = image.last_used.elapsed().unwrap_or_default();
        let is_old = self.unused_for.is_some_and(|time| age >= time);
        image.names.is_empty() || (image.kind != ImageKind::Pack && (self.all || is_old))
    }
}

fn store(assets: &Assets) -> Store {
    Store::open(assets.cache.root().join("images"))
}

pub(super) fn list(assets: &Assets) -> Result<Vec<StoredImage>, AssetError> {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, key, name) in import::pointers(assets)? {
        names.entry(key).or_default().push(name);
    }
    let mut of_packages = BTreeSet::new();
    for pack in packs(assets)? {
        if pack.is_list {
            of_packages.insert(pack.key.clone());
        }
        names.entry(pack.key).or_default().push(pack.name);
    }
    let mut all = Vec::new();
    for entry in store(assets).list().map_err(CacheError::from)? {
        let (kind, digest, platform) = match Contents::read(&entry.path) {
            Ok(Some(it)) => (it.kind, it.digest, it.platform),
            Ok(None) if of_packages.contains(&entry.key) => (ImageKind::Packages, None, None),
            Ok(None) => (ImageKind::Pack, None, None),
            // Another version has written it: it can be removed.
            Err(_) => (ImageKind::Archive, None, None),
        };
        all.push(StoredImage {
            names: names.remove(&entry.key).unwrap_or_default(),
            file: entry.path.join(FILE),
            kind,
            digest,
            platform,
            bytes: entry.bytes,
            last_used: entry.last_used,
            key: entry.key,
        });
    }
    all.sort_by(|a, b| (&a.names, &a.key).cmp(&(&b.names, &b.key)));
    Ok(all)
}

/// What a pointer says of an image that was made from packages.
struct Packed {
    /// The pointer's path in the cache.
    pointer: String,
    key: String,
    name: String,
    /// It is of packages that were asked for by their names, and no pack.
    is_list: bool,
}

/// All images that were made from packages and have a name.
fn packs(assets: &Assets) -> Result<Vec<Packed>, AssetError> {
    let mut all = Vec::new();
    let Ok(list) = fs::read_dir(assets.cache.root().join("images")) else {
        return Ok(all);
    };
    for entry in list.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        // A pointer's name is the pack's and 32 digits.
        let Some((pack, _)) = name.rsplit_once('-') else {
            continue;
        };
        let is_pointer = !name.starts_with(['.']) && entry.path().is_file();
        if is_pointer && pack != "from" && !name.ends_with(".new") {
            let pointer = format!("images/{name}");
            if let Some(text) = assets.cache.pointer(&pointer)? {
                let (key, list) = pointed(&text);
                all.push(Packed {
                    pointer,
                    key: key.to_owned(),
                    name: if list.is_empty() { pack } else { list }.to_owned(),
                    is_list: !list.is_empty(),
                });
            }
        }
    }
    Ok(all)
}

pub(super) fn prune(assets: &Assets, which: &Prune) -> Result<Vec<StoredImage>, AssetError> {
    // What is being made has no name yet: packs are made under the one lock, all others under the
    // other.
    let _packs = assets.cache.lock("apt")?;
    let _others = assets.cache.lock(import::LOCK)?;
    let mut removed = Vec::new();
    for image in list(assets)? {
        if which.wants(&image) && store(assets).remove(&image.key).map_err(CacheError::from)? {
            removed.push(image);
        }
    }
    let lists = packs(assets)?.into_iter().filter(|pack| pack.is_list);
    let lists = lists.map(|list| (list.pointer, list.key, list.name));
    for (path, key, _) in import::pointers(assets)?.into_iter().chain(lists) {
        if removed.iter().any(|image| image.key == key) {
            // One that is left says nothing that is wrong: what it names is not there.
            let _ = fs::remove_file(assets.cache.root().join(path));
        }
    }
    Ok(removed)
}
