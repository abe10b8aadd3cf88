//! Templates in files of the user's own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ember_snapshot::memory::MemoryHash;

use super::file::{self, Form, read_error};
use super::{Inner, Template};
use crate::backing::{Backing, MemoryUse};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind};
use crate::placement::Placement;
use crate::size::ByteSize;

/// How a template is loaded from a file.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    pub(super) image: Option<PathBuf>,
    pub(super) volumes: BTreeMap<PathBuf, PathBuf>,
    pub(super) kick_signal: Option<i32>,
    pub(super) placement: Option<Placement>,
    pub(super) memory: MemoryUse,
    pub(super) overlay_directory: Option<PathBuf>,
    pub(super) overlay_limit: Option<ByteSize>,
    shells: usize,
}

impl LoadOptions {
    /// As it was when it was saved.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the image is that the template was made from, if it has been moved. The content has to
    /// be the same.
    #[must_use]
    pub fn image(mut self, path: impl Into<PathBuf>) -> Self {
        self.image = Some(path.into());
        self
    }

    /// Where the file is of the volume that its guests have at `place`, if it has been moved. The
    /// content has to be the same.
    #[must_use]
    pub fn volume(mut self, place: impl Into<PathBuf>, file: impl Into<PathBuf>) -> Self {
        self.volumes.insert(place.into(), file.into());
        self
    }

    /// Where the files of its clones are made, if they write to [files](crate::Overlay::file).
    #[must_use]
    pub fn overlay_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.overlay_directory = Some(directory.into());
        self
    }

    /// The most that each of its clones may be able to write to a file: a template that says more is
    /// refused. 4 TiB if not said, the most that there can be. A file says itself what its guests have,
    /// and it may be somebody else's.
    #[must_use]
    pub fn overlay_limit(mut self, size: ByteSize) -> Self {
        self.overlay_limit = Some(size);
        self
    }

    /// See [`SandboxBuilder::kick_signal`](crate::SandboxBuilder::kick_signal).
    #[must_use]
    pub fn kick_signal(mut self, number: i32) -> Self {
        self.kick_signal = Some(number);
        self
    }

    /// Where its clones run: see [`Placement`].
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = Some(placement);
        self
    }

    /// See [`TemplateBuilder::backing`](crate::TemplateBuilder::backing).
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> Self {
        self.memory.backing = backing;
        self
    }

    /// See [`TemplateBuilder::mergeable`](crate::TemplateBuilder::mergeable), and its warning.
    #[must_use]
    pub fn mergeable(mut self, mergeable: bool) -> Self {
        self.memory.mergeable = mergeable;
        self
    }

    /// See [`TemplateBuilder::memory_cap`](crate::TemplateBuilder::memory_cap). A file says nothing of
    /// it: it is this host's memory.
    #[must_use]
    pub fn memory_cap(mut self, cap: ByteSize) -> Self {
        self.memory.cap = Some(cap);
        self
    }

    /// See [`TemplateBuilder::shells`](crate::TemplateBuilder::shells).
    #[must_use]
    pub fn shells(mut self, count: usize) -> Self {
        self.shells = count;
        self
    }
}

impl Template {
    /// Saves the template as the file `path`, which is then complete and on disk, or not there.
    ///
    /// A template of a clone ([`Sandbox::snapshot`](crate::Sandbox::snapshot)) whose own template is
    /// in a file, be it in the cache, is saved as what is different, and needs that file from then
    /// on: [`compact`](Self::compact) makes it one that needs no other, and
    /// [`save_whole`](Self::save_whole) saves it as one.
    ///
    /// The file holds the guest's memory, with all secrets that were in it, and only its owner may
    /// read it.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] if the disk is full, [`ErrorKind::InvalidRequest`] if there can be
    /// no such file, [`ErrorKind::Unprepared`] if it cannot be written for another reason.
    pub async fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.write(path.as_ref(), Form::Diff).await
    }

    /// [Saves](Self::save) the template as a file that needs no other but those of the image and the
    /// volumes.
    ///
    /// # Errors
    /// As for [`save`](Self::save).
    pub async fn save_whole(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.write(path.as_ref(), Form::Whole).await
    }

    async fn write(&self, path: &Path, form: Form) -> Result<(), Error> {
        let path = path.to_owned();
        self.examine("saving a template", move |inner| {
            file::write(inner, &path, form)
        })
        .await
    }

    /// Loads the template from the file `path`. The file is not needed any more when this returns:
    /// it can be changed or removed without harm to the template and its clones.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the file, or one that it depends on, is no template or not what was
    /// written; [`ErrorKind::Unprepared`] if it cannot be read, or its image or a volume is not there;
    /// [`ErrorKind::HostUnsupported`] if this host cannot run it, with what it lacks.
    pub async fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load_with(path, LoadOptions::default()).await
    }

    /// Loads the template from the file `path` as `options` say.
    ///
    /// # Errors
    /// As for [`load`](Self::load), and [`ErrorKind::InvalidRequest`] for an image or volume that is
    /// another.
    pub async fn load_with(path: impl AsRef<Path>, options: LoadOptions) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let shells = options.shells;
        options.memory.backing.check()?;
        let inner = blocking("loading a template", move || {
            let loaded = file::read(&path).map_err(|error| read_error(&path, error))?;
            loaded.into_described(&options)
        })
        .await?;
        Ok(Self::new(inner, shells))
    }

    /// Makes the saved template `path` one that needs no other, if it is not. Those that are based
    /// on it go on to be.
    ///
    /// # Errors
    /// As for [`load`](Self::load) and [`save`](Self::save). The file is then what it was.
    pub async fn compact(path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref().to_owned();
        blocking("compacting a template", move || file::compact(&path)).await
    }

    /// The digest of its memory, which is the same for as long as the template exists, and once it
    /// is loaded from a file. Computed when it is first asked for.
    ///
    /// # Errors
    /// [`ErrorKind::Exhausted`] if the host cannot read it.
    pub async fn digest(&self) -> Result<MemoryHash, Error> {
        self.examine("hashing a template", |inner| {
            inner.memory.image().hash().map_err(file::memory_error)
        })
        .await
    }

    /// Reads all of its memory and holds it against its [digest](Self::digest).
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if it is not what it was.
    pub async fn verify(&self) -> Result<(), Error> {
        self.examine("checking a template", |inner| {
            let image = inner.memory.image();
            let expected = image.hash().map_err(file::memory_error)?;
            let found = image.compute_hash().map_err(file::memory_error)?;
            if found == expected {
                return Ok(());
            }
            let message = format!("the template's memory is {found} and should be {expected}");
            Err(Error::new(ErrorKind::Damaged, message))
        })
        .await
    }

    /// Does something with it that takes its time.
    async fn examine<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = std::sync::Arc::clone(&self.inner);
        blocking(what, move || work(&inner)).await
    }
}
