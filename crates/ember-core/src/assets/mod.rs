//! What a guest is made from, and the cache that keeps it: kernels, images, the initramfs.

mod apt;
mod cache;
mod config;
mod cpio;
mod decompress;
mod image;
mod import;
mod initramfs;
mod kernel;
mod layers;
mod modules;
mod oci;
mod pack;
mod recipe;
mod spool;
mod squashfs;
mod stamp;
mod stored;
mod tree;
mod volume;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use config::ImageConfig;
pub use image::{Image, Pack, ReadyImage};
pub use import::ImageKind;
pub use kernel::{Kernel, ReadyKernel};
pub use oci::{OciImage, SavedImage};
pub(crate) use stamp::Stamp;
pub use stored::{Prune, StoredImage};
pub use volume::Volume;

use ember_snapshot::store::Store;
use ember_vmm::kernel::Initramfs;

use crate::error::{Error, ErrorKind};
use crate::progress::Progress;
use crate::{Code, Language};
use cache::Cache;

/// The kernels and images of this machine's user, in a cache directory.
///
/// A sandbox finds what it needs by itself; this is for preparing it beforehand, for watching, and
/// for a cache in another place. Everything here blocks, the first time for as long as a download
/// and a build take; several processes that want the same thing build it once.
#[derive(Debug, Clone)]
pub struct Assets {
    cache: Cache,
    progress: Progress,
}

impl Assets {
    /// Those in `$EMBER_CACHE`, `$XDG_CACHE_HOME/ember` or `~/.cache/ember`.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`] when none of the variables is set.
    pub fn of_user() -> Result<Self, Error> {
        let cache = Cache::of_user().map_err(AssetError::Cache)?;
        Ok(Self {
            cache,
            progress: Progress::default(),
        })
    }

    /// Those in `directory`, which is created when something is to be put there.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            cache: Cache::at(directory),
            progress: Progress::default(),
        }
    }

    /// Tells `progress` about the work.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.cache.root()
    }

    /// Prepares a kernel.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`], with what is missing and how to get it.
    pub fn kernel(&self, kernel: &Kernel) -> Result<ReadyKernel, Error> {
        Ok(kernel::prepare(self, kernel)?)
    }

    /// Fetches the newest stock kernel, also when an older one is there.
    ///
    /// # Errors
    /// As [`kernel`](Self::kernel).
    pub fn renew_stock_kernel(&self) -> Result<ReadyKernel, Error> {
        Ok(kernel::stock(self, true)?)
    }

    /// Prepares an image.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a pack that there is no recipe of, else
    /// [`ErrorKind::Unprepared`], with what is missing and how to get it.
    pub fn image(&self, image: &Image) -> Result<ReadyImage, Error> {
        Ok(image::prepare(self, image, false)?)
    }

    /// Prepares an image from what its name stands for today: asks the registry what its tag is,
    /// or builds the pack from the newest packages, also when an older one is there.
    ///
    /// # Errors
    /// As [`image`](Self::image).
    pub fn renew_image(&self, image: &Image) -> Result<ReadyImage, Error> {
        Ok(image::prepare(self, image, true)?)
    }

    /// Prepares a volume, and says where its file is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a file that is no squashfs, else
    /// [`ErrorKind::Unprepared`], with what is missing.
    pub fn volume(&self, volume: &Volume) -> Result<PathBuf, Error> {
        Ok(self.open_volume(volume)?.0)
    }

    /// Prepares a volume: its file, and that file open.
    pub(crate) fn open_volume(&self, volume: &Volume) -> Result<(PathBuf, File), Error> {
        Ok(volume::open(self, volume)?)
    }

    /// All images that are kept, by name.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`] if the cache cannot be read.
    pub fn images(&self) -> Result<Vec<StoredImage>, Error> {
        Ok(stored::list(self)?)
    }

    /// Removes images that are no longer wanted, and says which. Sandboxes that use one keep it for
    /// as long as they live; what is needed again is made again.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`] if the cache cannot be changed.
    pub fn prune_images(&self, which: &Prune) -> Result<Vec<StoredImage>, Error> {
        Ok(stored::prune(self, which)?)
    }

    /// Builds the pack `name` from the newest packages, also when an older one is there.
    ///
    /// # Errors
    /// As [`image`](Self::image).
    pub fn renew_pack(&self, name: &str) -> Result<ReadyImage, Error> {
        let recipe = recipe::Shelf::of_user().find(name);
        let recipe = recipe.map_err(AssetError::Recipe)?;
        Ok(image::pack(self, &recipe, true)?)
    }

    /// All packs that can be asked for, Ember's own and then the user's, with their languages.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`] if the cache cannot be read.
    pub fn packs(&self) -> Result<Vec<Pack>, Error> {
        Ok(image::packs(self, &recipe::Shelf::of_user())?)
    }

    /// The pack that `code` runs in if nothing is said: the first of [`packs`](Self::packs) that is
    /// for its language.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] if there is none, with the languages that there are.
    pub fn image_for(&self, code: &Code) -> Result<Image, Error> {
        let mut packs = self.packs()?;
        packs.retain(|pack| !pack.is_collection);
        if let Some(pack) = packs.iter().find(|pack| code.may_be_in(&pack.languages)) {
            return Ok(Image::pack(&pack.name));
        }
        let all: Vec<Language> = packs.into_iter().flat_map(|pack| pack.languages).collect();
        match code.find_language(&all) {
            Err(error) => Err(error),
            Ok(language) => {
                let message = format!("no pack has the language {}", language.name);
                Err(Error::new(ErrorKind::Internal, message))
            }
        }
    }

    /// What tells whether `file`, open, is still what it was. See [`Stamp`].
    pub(crate) fn stamp(&self, path: &Path, file: &File) -> std::io::Result<Stamp> {
        Stamp::of(self.cache.root(), path, file)
    }

    /// The templates that were built before.
    pub(crate) fn templates(&self) -> Store {
        Store::open(self.cache.root().join("templates"))
    }

    /// Who is told about the work.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Builds the initramfs that a guest of `kernel` starts from: the agent as `/init`, and the
    /// kernel's modules.
    ///
    /// # Errors
    /// [`ErrorKind::Unprepared`] if a module cannot be read.
    pub fn initramfs(&self, kernel: &ReadyKernel) -> Result<Initramfs, Error> {
        let built = initramfs::build(ember_guest::AGENT, &kernel.modules);
        Ok(built.map_err(AssetError::Initramfs)?)
    }
}

/// Anything that can go wrong here.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) enum AssetError {
    Cache(#[from] cache::CacheError),
    Apt(#[from] apt::AptError),
    Recipe(#[from] recipe::RecipeError),
    Pack(#[from] pack::PackError),
    Tree(#[from] tree::TreeError),
    Write(#[from] squashfs::WriteError),
    Module(#[from] modules::ModuleError),
    Kernel(#[from] kernel::KernelError),
    Image(#[from] image::ReadError),
    Initramfs(#[from] initramfs::InitramfsError),
    Pull(#[from] oci::PullError),
    Import(#[from] import::ImportError),
    Volume(#[from] volume::VolumeError),
}

impl From<AssetError> for Error {
    fn from(error: AssetError) -> Self {
        let kind = match &error {
            AssetError::Recipe(_) => ErrorKind::InvalidRequest,
            AssetError::Pull(error) if error.is_request() => ErrorKind::InvalidRequest,
            AssetError::Volume(error) if error.is_request() => ErrorKind::InvalidRequest,
            _ => ErrorKind::Unprepared,
        };
        let what = match &error {
            AssetError::Kernel(_) | AssetError::Module(_) => "prepare the kernel",
            AssetError::Initramfs(_) => "build the initramfs",
            AssetError::Recipe(_) => "find the image",
            AssetError::Pull(_) => "pull the image",
            AssetError::Volume(_) => "use the volume",
            _ => "prepare the image or kernel",
        };
        Error::because(kind, format!("cannot {what}"), error)
    }
}
