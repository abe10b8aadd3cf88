//! Images that others have made: of registries, archives and directories.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::image::{FILE, digest, pointed, read_error};
use super::layers::{LayerError, Layers, LeftOut};
use super::oci::{self, Files, Oci, Saved, SavedError};
use super::tree::{Entry, Node, Owners};
use super::{AssetError, Assets, ImageConfig, ReadyImage, decompress, squashfs};
use crate::Account;

/// Part of every key: a change to how they are made makes new ones.
const FORMAT: u32 = 2;
/// Beside the image: what is known of it.
const CONTENTS: &str = "image.json";
/// How the names of pointers to them begin. They say the key and, behind a blank, the image's name.
const POINTER: &str = "from-";
/// Held while one is made, and while some are removed.
pub(super) const LOCK: &str = "import";

/// What is kept beside an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Contents {
    pub(super) kind: Kind,
    /// That of its manifest, of one of a registry.
    pub(super) digest: Option<String>,
    pub(super) platform: Option<String>,
    pub(super) config: ImageConfig,
    /// Where root is at home.
    home: String,
}

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImageKind {
    /// Packages of Debian, by a recipe.
    Pack,
    /// Packages of Debian that were asked for by their names.
    Packages,
    /// A registry.
    Registry,
    /// An archive of a root file system.
    Archive,
    /// A directory.
    Directory,
    /// Files of an image: an OCI layout, or what `docker save` writes.
    Saved,
}

use ImageKind as Kind;

impl std::fmt::Display for ImageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pack => "pack",
            Self::Packages => "packages",
            Self::Registry => "registry",
            Self::Archive => "archive",
            Self::Directory => "directory",
            Self::Saved => "saved",
        })
    }
}

/// Why an archive or directory did not become an image.
#[derive(Debug, thiserror::Error)]
#[error("cannot make an image of {}", path.display())]
pub(crate) struct ImportError {
    path: PathBuf,
    source: Problem,
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
enum Problem {
    Layer(#[from] LayerError),
    Saved(#[from] SavedError),
}

/// An image of a registry. The registry is asked if it was not before, or if `renew` says so: an
/// image does not change under its users.
pub(super) fn registry(assets: &Assets, oci: &Oci, renew: bool) -> Result<ReadyImage, AssetError> {
    let (name, platform) = (oci.full_name()?, oci.platform());
    let pointer = pointer(&["registry", &name, &platform]);
    if !renew && let Some(image) = found(assets, &pointer)? {
        return Ok(image);
    }
    let _lock = assets.cache.lock(LOCK)?;
    if !renew && let Some(image) = found(assets, &pointer)? {
        return Ok(image);
    }
    // Temporary files are on the disk that the image will be on.
    let place = assets.cache.directory("images")?;
    let progress = &assets.progress;
    let told = progress.step(&format!("look up {name}"), || oci.find(&place))?;
    let contents = Contents {
        digest: Some(told.digest.clone()),
        platform: Some(told.platform.clone()),
        config: told.config.clone(),
        ..Contents::of(Kind::Registry)
    };
    let key = format!("oci-{}.{FORMAT}", told.key);
    keep(assets, &key, || {
        let (root, left_out) = oci.layers(&told, &place, progress)?;
        notice(assets, &name, left_out);
        Ok((root, contents))
    })?;
    assets
        .cache
        .set_pointer(&pointer, &format!("{key} {name}"))?;
    ready(assets, &key)
}

/// An archive of a root file system: a tar file, compressed or not.
pub(super) fn archive(assets: &Assets, path: &Path) -> Result<ReadyImage, AssetError> {
    let path = &absolute(path)?;
    let file = File::open(path).map_err(read_error(path))?;
    let stamp = assets.stamp(path, &file).map_err(read_error(path))?;
    let key = format!(
        "archive-{}",
        digest(&[FORMAT.to_string(), stamp.to_string()])
    );
    let name = path.display().to_string();
    made(assets, Kind::Archive, &name, &key, || {
        let place = assets.cache.directory("images")?;
        let wrong = |source: LayerError| ImportError {
            path: path.clone(),
            source: source.into(),
        };
        let spool = |error| wrong(LayerError::Spool(error));
        let mut layers = Layers::new(&place, oci::CAPS).map_err(spool)?;
        let step = format!("unpack {}", path.display());
        let (root, left_out) = assets.progress.step(&step, || {
            let reader = decompress::reader(BufReader::with_capacity(128 * 1024, file));
            layers.apply(reader.map_err(spool)?).map_err(wrong)?;
            layers.finish().map_err(wrong)
        })?;
        notice(assets, &name, left_out);
        Ok((root, Contents::of(Kind::Archive)))
    })
}

/// An image in files.
pub(super) fn saved(assets: &Assets, saved: &Saved) -> Result<ReadyImage, AssetError> {
    let path = &absolute(&saved.path)?;
    let wrong = |source: SavedError| ImportError {
        path: path.clone(),
        source: source.into(),
    };
    let (from, stamp) = match path.is_dir() {
        true => {
            // Who owns these files says nothing of who is to own those in the layers.
            let read = Entry::read_system(path, Owners::Root)?;
            (Err(read.root), read.stamp)
        }
        false => {
            let file = File::open(path).map_err(read_error(path))?;
            let stamp = assets.stamp(path, &file).map_err(read_error(path))?;
            (Ok(file), stamp.to_string())
        }
    };
    let tag = saved.tag.clone().unwrap_or_default();
    let key = digest(&[FORMAT.to_string(), stamp, tag, saved.platform()]);
    let (key, name) = (format!("saved-{key}"), saved.name(path));
    made(assets, Kind::Saved, &name, &key, || {
        let place = assets.cache.directory("images")?;
        let progress = &assets.progress;
        let files = match from {
            Err(root) => Files::of_directory(root),
            Ok(file) => progress
                .step(&format!("read {}", path.display()), || {
                    Files::of_archive(file, &place)
                })
                .map_err(wrong)?,
        };
        let found = files.find(saved, &place).map_err(wrong)?;
        let (root, left_out) = files.layers(&found, &place, progress).map_err(wrong)?;
        notice(assets, &name, left_out);
        let contents = Contents {
            digest: found.digest,
            platform: Some(found.platform),
            config: found.config,
            ..Contents::of(Kind::Saved)
        };
        Ok((root, contents))
    })
}

/// A directory that holds a root file system.
pub(super) fn directory(assets: &Assets, path: &Path) -> Result<ReadyImage, AssetError> {
    let path = &absolute(path)?;
    // Whoever is not root has no files of others, and theirs are to be the guest's root's.
    let owners = match rustix::process::geteuid().is_root() {
        true => Owners::Kept,
        false => Owners::Root,
    };
    let read = Entry::read_system(path, owners)?;
    let key = format!("directory-{}", digest(&[FORMAT.to_string(), read.stamp]));
    let name = path.display().to_string();
    made(assets, Kind::Directory, &name, &key, || {
        let left_out = LeftOut {
            special: read.special,
            attributes: 0,
        };
        notice(assets, &name, left_out);
        Ok((read.root, Contents::of(Kind::Directory)))
    })
}

impl Contents {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            digest: None,
            platform: None,
            config: ImageConfig::default(),
            home: "/".to_owned(),
        }
    }

    /// What is beside the image in `directory`, if it is one that others have made.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, AssetError> {
        let path = directory.join(CONTENTS);
        match fs::read(&path) {
            Ok(bytes) => {
                let contents = serde_json::from_slice(&bytes).map_err(std::io::Error::from);
                Ok(Some(contents.map_err(read_error(&path))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(read_error(&path)(error).into()),
        }
    }
}

/// The image `key` of what is called `name`, made if it is not there.
fn made(
    assets: &Assets,
    kind: Kind,
    name: &str,
    key: &str,
    make: impl FnOnce() -> Result<(Entry, Contents), AssetError>,
) -> Result<ReadyImage, AssetError> {
    let pointer = pointer(&[&kind.to_string(), name]);
    let text = format!("{key} {name}");
    let known = assets.cache.pointer(&pointer)?;
    if known.as_deref() == Some(&text)
        && let Some(image) = found(assets, &pointer)?
    {
        return Ok(image);
    }
    let _lock = assets.cache.lock(LOCK)?;
    keep(assets, key, make)?;
    assets.cache.set_pointer(&pointer, &text)?;
    ready(assets, key)
}

/// Makes the image `key`, unless it is there.
fn keep(
    assets: &Assets,
    key: &str,
    make: impl FnOnce() -> Result<(Entry, Contents), AssetError>,
) -> Result<(), AssetError> {
    assets.cache.entry("images", key, |directory| {
        let (root, contents) = make()?;
        let path = directory.join(CONTENTS);
        let usual = Account::default().home;
        let has_home = root
            .get(&usual)
            .is_some_and(|it| matches!(it.node, Node::Directory(_)));
        let contents = Contents {
            home: match has_home {
                true => usual,
                false => "/".to_owned(),
            },
            ..contents
        };
        let text = serde_json::to_vec_pretty(&contents).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&path, text))
            .map_err(read_error(&path))?;
        assets.progress.step("write the image", || {
            squashfs::write(&root, &directory.join(FILE))
        })?;
        Ok::<_, AssetError>(())
    })?;
    Ok(())
}

fn pointer(parts: &[&str]) -> String {
    let parts: Vec<String> = parts.iter().map(|&part| part.to_owned()).collect();
    format!("images/{POINTER}{}", digest(&parts))
}

/// All pointers to images that others have made: the pointer's path in the cache, key and name.
pub(super) fn pointers(assets: &Assets) -> Result<Vec<(String, String, String)>, AssetError> {
    let mut all = Vec::new();
    let directory = assets.cache.root().join("images");
    let Ok(list) = fs::read_dir(&directory) else {
        return Ok(all);
    };
    for entry in list.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with(POINTER) && !name.ends_with(".new") {
            let path = format!("images/{name}");
            if let Some(text) = assets.cache.pointer(&path)? {
                let (key, of) = pointed(&text);
                all.push((path, key.to_owned(), of.to_owned()));
            }
        }
    }
    all.sort();
    Ok(all)
}

fn found(assets: &Assets, pointer: &str) -> Result<Option<ReadyImage>, AssetError> {
    let Some(text) = assets.cache.pointer(pointer)? else {
        return Ok(None);
    };
    let (key, _) = pointed(&text);
    match assets.cache.root().join("images").join(key).is_dir() {
        true => ready(assets, key).map(Some),
        false => Ok(None),
    }
}

fn ready(assets: &Assets, key: &str) -> Result<ReadyImage, AssetError> {
    // Counts as a use of it.
    let directory = assets.cache.entry("images", key, |path| {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        Err::<(), AssetError>(read_error(path)(missing).into())
    })?;
    let contents = Contents::read(&directory)?.unwrap_or_else(|| Contents::of(Kind::Archive));
    Ok(ReadyImage {
        file: directory.join(FILE),
        languages: Vec::new(),
        account: Account {
            home: contents.home,
            ..Account::default()
        },
        config: contents.config,
        file_system: Some("squashfs"),
        memory_mib: None,
    })
}

fn absolute(path: &Path) -> Result<PathBuf, AssetError> {
    // As it is called, without the links on the way: what is there is what counts.
    Ok(fs::canonicalize(path).map_err(read_error(path))?)
}

fn notice(assets: &Assets, name: &str, left_out: LeftOut) {
    let LeftOut {
        special,
        attributes,
    } = left_out;
    if special > 0 {
        let what = "devices and pipes were left out: a guest has devices of its own";
        assets.progress.notice(&format!("{name}: {special} {what}"));
    }
    if attributes > 0 {
        let what = "files lost their extended attributes, file capabilities among them";
        assets
            .progress
            .notice(&format!("{name}: {attributes} {what}"));
    }
}
