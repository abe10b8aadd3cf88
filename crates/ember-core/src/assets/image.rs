//! Images: the root file systems of guests.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::apt::Apt;
use super::pack;
use super::recipe::Recipe;
use super::{AssetError, Assets};
use crate::{Account, Language};

/// A guest's root file system: read-only, shared by every guest that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image(Source);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Pack(String),
    File(PathBuf),
}

impl Image {
    /// A pack that Ember has the recipe of, such as `python`. It is built when it is first needed,
    /// and kept.
    pub fn pack(name: impl Into<String>) -> Self {
        Self(Source::Pack(name.into()))
    }

    /// A squashfs, erofs or ext4 file that exists. It is only ever read.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }
}

impl fmt::Display for Image {
    /// The pack's name, or the file's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Pack(name) => f.write_str(name),
            Source::File(path) => path.display().fmt(f),
        }
    }
}

/// An image whose file is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadyImage {
    /// The file with the root file system.
    pub file: PathBuf,
    /// The languages that programs can be given in.
    pub languages: Vec<Language>,
    /// The account that programs run in.
    pub account: Account,
    /// Which kind of file system it is, if that is known.
    pub file_system: Option<&'static str>,
}

const FILE: &str = "root.squashfs";

/// Why an image is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the image {}", path.display())]
pub(crate) struct ReadError {
    path: PathBuf,
    source: std::io::Error,
}

pub(super) fn prepare(assets: &Assets, image: &Image) -> Result<ReadyImage, AssetError> {
    match &image.0 {
        Source::Pack(name) => pack(assets, name, false),
        Source::File(path) => {
            fs::File::open(path).map_err(|source| ReadError {
                path: path.clone(),
                source,
            })?;
            Ok(ReadyImage {
                file: path.clone(),
                languages: Vec::new(),
                account: Account::default(),
                file_system: None,
            })
        }
    }
}

/// The pack `name` in the cache, or one of the newest packages if there is none or `renew` asks
/// for it.
pub(super) fn pack(assets: &Assets, name: &str, renew: bool) -> Result<ReadyImage, AssetError> {
    let (recipe, text) = Recipe::find(name)?;
    let cache = &assets.cache;
    let ready = |directory: &Path| ReadyImage {
        file: directory.join(FILE),
        languages: recipe.languages.clone(),
        account: recipe.account.clone(),
        file_system: Some("squashfs"),
    };
    // What the recipe was when it was followed last, and what came of it. Which versions the
    // packages have is asked only when there is nothing: an image does not change under its users.
    let format = pack::FORMAT.to_string();
    let runners = ember_guest::packs::RUNNERS.iter().map(|runner| runner.text);
    let made_of: Vec<&str> = [&*format, text].into_iter().chain(runners).collect();
    let pointer = format!("images/{name}-{}", digest(&made_of));
    let cached = || -> Result<Option<ReadyImage>, AssetError> {
        let Some(key) = cache.pointer(&pointer)? else {
            return Ok(None);
        };
        let directory = cache.root().join("images").join(key);
        Ok(directory.is_dir().then(|| ready(&directory)))
    };
    if !renew && let Some(image) = cached()? {
        return Ok(image);
    }
    let mut apt = Apt::open(cache, &assets.progress)?;
    if !renew && let Some(image) = cached()? {
        return Ok(image);
    }

    let packages = apt.closure(&recipe.packages)?;
    let versions: String = packages
        .iter()
        .map(|package| format!("{} {}\n", package.name, package.version))
        .collect();
    let key = format!(
        "{}.{}",
        recipe.name,
        digest(&[&made_of[..], &[&*versions]].concat())
    );
    let directory = cache.entry("images", &key, |directory| {
        let scratch = directory.join("root");
        let manifest = directory.join("packages");
        let write = || {
            fs::create_dir(&scratch)?;
            fs::write(&manifest, &versions)
        };
        write().map_err(|source| pack::PackError::Io {
            action: "write in",
            path: directory.to_owned(),
            source,
        })?;
        let image = directory.join(FILE);
        pack::build(&recipe, &packages, &scratch, &image, &assets.progress)
    })?;
    cache.set_pointer(&pointer, &key)?;
    apt.clean()?;
    Ok(ready(&directory))
}

/// 128 bits of SHA-256 over `parts`, each with its length before it.
fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hash = hash.finalize();
    hash.iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
