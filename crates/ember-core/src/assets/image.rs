//! Images: the root file systems of guests.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::apt::Apt;
use super::oci::{self, OciImage, Saved, SavedImage};
use super::recipe::{Recipe, Shelf};
use super::{AssetError, Assets};
use super::{ImageConfig, import, pack};
use crate::language::upstream_version;
use crate::{Account, Language};

/// A guest's root file system: read-only, shared by every guest that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image(Source);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Pack(String),
    Recipe(PathBuf),
    File(PathBuf),
    Registry(OciImage),
    Archive(PathBuf),
    Directory(PathBuf),
    Packages(Vec<String>),
    Saved(Saved),
}

impl Image {
    /// A pack that there is a recipe of, Ember's own such as `python` or one of the user's
    /// (`~/.config/ember/packs/NAME.toml`). It is built when it is first needed, and kept.
    pub fn pack(name: impl Into<String>) -> Self {
        Self(Source::Pack(name.into()))
    }

    /// The pack whose recipe is the file `path`. It is built when it is first needed, and again
    /// when the recipe was changed.
    pub fn recipe(path: impl Into<PathBuf>) -> Self {
        Self(Source::Recipe(path.into()))
    }

    /// A squashfs, erofs or ext4 file that exists. It is only ever read.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }

    /// The image of this name in a registry: `debian:12`, `registry.example/team/tool@sha256:…`. It
    /// is pulled when it is first needed, and kept. [`OciImage`] says more of it, if there is more
    /// to say.
    pub fn oci(name: impl Into<String>) -> Self {
        OciImage::new(name).into()
    }

    /// The root file system in a tar file, plain or compressed by gzip or Zstandard. It becomes an
    /// image when it is first needed, and again when the file was changed.
    pub fn archive(path: impl Into<PathBuf>) -> Self {
        Self(Source::Archive(path.into()))
    }

    /// The root file system in a directory of this host. It becomes an image when it is first
    /// needed, and again when anything in it was changed. Who is not root has all of it belong to
    /// the guest's root.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self(Source::Directory(path.into()))
    }

    /// The image that is an OCI layout, or that `docker save` wrote, at `path`: a directory, or a tar
    /// file, plain or compressed by gzip or Zstandard. It becomes an image of Ember's when it is first
    /// needed, and again when anything there was changed. [`SavedImage`] says more of it, such as
    /// which one of several.
    pub fn saved(path: impl Into<PathBuf>) -> Self {
        SavedImage::new(path).into()
    }

    /// These packages of Debian, all that they depend on, and what every pack has, as they are
    /// unpacked: what a package would do when it is installed is not done. Their order does not
    /// matter. [`recipe`](Self::recipe) says more.
    pub fn packages<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
        names.sort();
        names.dedup();
        Self(Source::Packages(names))
    }

    /// What people mean when they write `text`: a path if it begins with a slash or a dot or is
    /// one, then a directory, a tar file or a file system, as is found there, or, in a directory or
    /// tar file, an image that was [saved](Self::saved), of which a colon and its tag may follow the
    /// path; else the name of an image in a registry if it has a slash or a colon; else that of a pack. `oci:` before it
    /// says that it is in a registry, and `packages:` that it is names of packages, with commas
    /// between them.
    pub fn named(text: &str) -> Self {
        if let Some(name) = text.strip_prefix("oci:") {
            return Self::oci(name);
        }
        if let Some(names) = text.strip_prefix(PACKAGES_OF) {
            return Self::packages(names.split(','));
        }
        let path = Path::new(text);
        let is_path = text.starts_with(['/', '.']) || (text.contains('/') && path.exists());
        match is_path {
            true if !path.exists()
                && let Some((path, tag)) = tagged(text) =>
            {
                SavedImage::new(path).tag(tag).into()
            }
            true if oci::is_saved(path) => Self::saved(path),
            true if path.is_dir() => Self::directory(path),
            true if !is_file_system(path) => Self::archive(path),
            true => Self::file(path),
            false if text.contains(['/', ':']) => Self::oci(text),
            false => Self::pack(text),
        }
    }
}

/// A path and a tag, if there is something at the path.
fn tagged(text: &str) -> Option<(&Path, &str)> {
    let (path, tag) = text.rsplit_once(':')?;
    let path = Path::new(path);
    path.exists().then_some((path, tag))
}

/// What stands before the names of packages.
const PACKAGES_OF: &str = "packages:";

/// Whether a file begins as a file system does. What cannot be read is said where it is used.
pub(super) fn is_file_system(path: &Path) -> bool {
    use std::io::Read;
    let mut begin = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(1084).read_to_end(&mut begin));
    // Documentation/filesystems: the magic numbers of squashfs, erofs and ext4, where they stand.
    let has = |at: usize, magic: &[u8]| begin.get(at..at + magic.len()) == Some(magic);
    read.is_err()
        || has(0, b"hsqs")
        || has(1024, &[0xe2, 0xe1, 0xf5, 0xe0])
        || has(1080, &[0x53, 0xef])
}

impl From<SavedImage> for Image {
    fn from(image: SavedImage) -> Self {
        Self(Source::Saved(image.0))
    }
}

impl From<OciImage> for Image {
    fn from(image: OciImage) -> Self {
        Self(Source::Registry(image))
    }
}

impl fmt::Display for Image {
    /// Its name, or the file's, as [`named`](Self::named) reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Pack(name) => f.write_str(name),
            Source::Registry(image) => f.write_str(&image.0.name),
            Source::Saved(saved) => f.write_str(&saved.name(&saved.path)),
            Source::Packages(names) => write!(f, "{PACKAGES_OF}{}", names.join(",")),
            Source::Recipe(path)
            | Source::File(path)
            | Source::Archive(path)
            | Source::Directory(path) => path.display().fmt(f),
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
    /// What it says of how it is run.
    pub config: ImageConfig,
    /// Which kind of file system it is, if that is known.
    pub file_system: Option<&'static str>,
    /// How much memory a guest of it should have if nothing is said, in MiB, if that is known.
    pub memory_mib: Option<u32>,
}

/// A pack that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pack {
    /// Its name.
    pub name: String,
    /// The languages that it is for. Their versions are known when it has been built.
    pub languages: Vec<Language>,
    /// None of them is its own: they are those of packs that it includes.
    pub is_collection: bool,
    /// Its image's file, if it has been built.
    pub file: Option<PathBuf>,
    /// Why it cannot be, if its recipe is wrong.
    pub problem: Option<String>,
}

pub(super) const FILE: &str = "root.squashfs";
/// Beside it: a line for each package that it was made from, with its version.
pub(super) const PACKAGES: &str = "packages";

/// Why an image is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the image {}", path.display())]
pub(crate) struct ReadError {
    path: PathBuf,
    source: std::io::Error,
}

/// Prepares `image`; with `renew`, from what its name stands for today.
pub(super) fn prepare(
    assets: &Assets,
    image: &Image,
    renew: bool,
) -> Result<ReadyImage, AssetError> {
    match &image.0 {
        Source::Pack(name) => pack(assets, &Shelf::of_user().find(name)?, renew),
        Source::Recipe(path) => pack(assets, &Shelf::of_user().read(path)?, renew),
        Source::Packages(names) => {
            let recipe = Shelf::of_packages(names)?;
            let name = image.to_string();
            follow(assets, &Build::of(&recipe).known_as(&name), renew)
        }
        Source::Registry(image) => import::registry(assets, &image.0, renew),
        Source::Saved(saved) => import::saved(assets, saved),
        Source::Archive(path) => import::archive(assets, path),
        Source::Directory(path) => import::directory(assets, path),
        Source::File(path) => {
            fs::File::open(path).map_err(read_error(path))?;
            Ok(ReadyImage {
                file: path.clone(),
                languages: Vec::new(),
                account: Account::default(),
                config: ImageConfig::default(),
                file_system: None,
                memory_mib: None,
            })
        }
    }
}

pub(super) fn read_error(path: &Path) -> impl FnOnce(std::io::Error) -> ReadError + '_ {
    move |source| ReadError {
        path: path.to_owned(),
        source,
    }
}

/// All packs that there are recipes of.
pub(super) fn packs(assets: &Assets, shelf: &Shelf) -> Result<Vec<Pack>, AssetError> {
    let describe = |name: String| {
        let recipe = match shelf.find(&name) {
            Ok(recipe) => recipe,
            Err(error) => {
                return Ok(Pack {
                    name,
                    languages: Vec::new(),
                    is_collection: false,
                    file: None,
                    problem: Some(error.to_string()),
                });
            }
        };
        let built = Build::of(&recipe).found(assets)?;
        let is_collection = recipe.own_languages().is_empty();
        let own = match recipe.own_languages() {
            [] => recipe.languages.len(),
            own => own.len(),
        };
        let languages = match &built {
            Some(image) => &image.languages,
            None => &recipe.languages,
        };
        Ok(Pack {
            name,
            languages: languages[languages.len() - own..].to_vec(),
            is_collection,
            file: built.map(|image| image.file),
            problem: None,
        })
    };
    shelf.names().into_iter().map(describe).collect()
}

/// A recipe as it is followed.
struct Build<'a> {
    recipe: &'a Recipe,
    /// All that goes into it but for the packages' versions.
    made_of: Vec<String>,
    /// What says in the cache what came of it when it was followed last. Which versions the
    /// packages have is asked only when there is nothing: an image does not change under its users.
    pointer: String,
    /// What it is asked for as, if that is not the recipe's name.
    known_as: Option<&'a str>,
}

impl<'a> Build<'a> {
    fn of(recipe: &'a Recipe) -> Self {
        let mut made_of = vec![pack::FORMAT.to_string()];
        made_of.extend(recipe.texts.iter().cloned());
        made_of.extend(pack::runners(recipe).map(|runner| runner.text.to_owned()));
        Self {
            recipe,
            pointer: format!("images/{}-{}", recipe.name, digest(&made_of)),
            made_of,
            known_as: None,
        }
    }

    fn known_as(mut self, name: &'a str) -> Self {
        self.known_as = Some(name);
        self
    }

    /// What was built before.
    fn found(&self, assets: &Assets) -> Result<Option<ReadyImage>, AssetError> {
        let Some(text) = assets.cache.pointer(&self.pointer)? else {
            return Ok(None);
        };
        let (key, _) = pointed(&text);
        let directory = assets.cache.root().join("images").join(key);
        match directory.is_dir() {
            true => self.ready(&directory).map(Some),
            false => Ok(None),
        }
    }

    fn ready(&self, directory: &Path) -> Result<ReadyImage, AssetError> {
        let path = directory.join(PACKAGES);
        let packages = fs::read_to_string(&path).map_err(read_error(&path))?;
        let mut languages = self.recipe.languages.clone();
        for language in &mut languages {
            let version = (language.package.as_deref())
                .and_then(|pattern| version_of(pattern, &packages))
                .map(str::to_owned);
            language.version = version;
        }
        Ok(ReadyImage {
            file: directory.join(FILE),
            languages,
            account: self.recipe.account.clone(),
            config: ImageConfig::default(),
            file_system: Some("squashfs"),
            memory_mib: self.recipe.memory_mib,
        })
    }
}

/// The version that `packages` (lines of a name and a version) has of the first that `pattern`
/// matches.
fn version_of<'a>(pattern: &str, packages: &'a str) -> Option<&'a str> {
    let mut pairs = packages.lines().filter_map(|line| line.split_once(' '));
    let (_, version) =
        pairs.find(|(name, _)| super::tree::matches(pattern.as_bytes(), name.as_bytes()))?;
    Some(upstream_version(version))
}

/// The pack of this recipe in the cache, or one of the newest packages if there is none or `renew`
/// asks for it.
pub(super) fn pack(
    assets: &Assets,
    recipe: &Recipe,
    renew: bool,
) -> Result<ReadyImage, AssetError> {
    follow(assets, &Build::of(recipe), renew)
}

fn follow(assets: &Assets, build: &Build<'_>, renew: bool) -> Result<ReadyImage, AssetError> {
    let (cache, recipe) = (&assets.cache, build.recipe);
    if !renew && let Some(image) = build.found(assets)? {
        return Ok(image);
    }
    let mut apt = Apt::open(cache, &assets.progress)?;
    if !renew && let Some(image) = build.found(assets)? {
        return Ok(image);
    }

    let packages = apt.closure(&recipe.packages)?;
    let versions: String = packages
        .iter()
        .map(|package| format!("{} {}\n", package.name, package.version))
        .collect();
    let mut all = build.made_of.clone();
    all.push(versions.clone());
    let key = format!("{}.{}", recipe.name, digest(&all));
    let directory = cache.entry("images", &key, |directory| {
        let scratch = directory.join("root");
        let manifest = directory.join(PACKAGES);
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
        pack::build(recipe, &packages, &scratch, &image, &assets.progress)
    })?;
    let text = match build.known_as {
        Some(name) => format!("{key} {name}"),
        None => key,
    };
    cache.set_pointer(&build.pointer, &text)?;
    apt.clean()?;
    build.ready(&directory)
}

/// Key and name of what a pointer says. Of a pack's it says no name: that is the pack's.
pub(super) fn pointed(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// 128 bits of SHA-256 over `parts`, each with its length before it.
pub(super) fn digest(parts: &[String]) -> String {
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

#[cfg(test)]
mod tests;
