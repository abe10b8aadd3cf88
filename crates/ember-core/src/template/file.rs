//! Templates in files.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ember_snapshot::disk::StoredDisk;
use ember_snapshot::format::{
    self, Chain, ChainError, Contents, CpuRequirements, MAX_CHAIN, Manifest, OpenError, Snapshot,
    SnapshotFile, WriteError,
};
use ember_snapshot::memory::{MemoryError, MemoryImage};
use ember_vmm::Checkpoint;

use super::capture::restore_error;
use super::guest::{Guest, GuestError};
use super::memory::{Memory, Saved};
use super::origin::{Origin, Source, digest};
use super::parcel::Parcel;
use super::{Inner, LoadOptions, working_set};
use crate::assets::ReadyImage;
use crate::error::{Error, ErrorKind};
use crate::overlay::usual_directory;
use crate::placement::Place;
use crate::sandbox::overlay::{MOST, OverlayFile};
use crate::sandbox::{Fixture, ReadyVolume};
use crate::size::ByteSize;

/// Why a file is no template that could be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("the snapshot does not say what is on the guest's disk")]
    NoImage,
    #[error(
        "the snapshot's guest has {has} volumes, and the snapshot says what is on {said} of them"
    )]
    Volumes { has: usize, said: usize },
    #[error("the snapshot contradicts itself about the disk that its guest writes to")]
    Overlay,
}

/// A template's file, read and checked.
pub(super) struct Loaded {
    path: PathBuf,
    snapshot: Snapshot,
    memory: MemoryImage,
    /// What its guest writes to, if that is a disk.
    overlay: Option<StoredDisk>,
    pub(super) guest: Guest,
    pub(super) origin: Origin,
}

/// Reads the template `path` with all those that it is based on, and checks every byte of it but those
/// of what its guest has written to a disk, which are checked when they are loaded.
pub(super) fn read(path: &Path) -> Result<Loaded, ReadError> {
    let chain = Chain::open(path, locate_from(path))?;
    let manifest = &chain.top().contents.manifest;
    let (image, volumes) = manifest.images.split_first().ok_or(ReadError::NoImage)?;
    let origin = Origin {
        kernel: manifest.kernel.clone().map(Source::Known),
        image: Source::Known(image.clone()),
        volumes: volumes.iter().cloned().map(Source::Known).collect(),
        built_from: manifest.built_from.clone(),
    };
    let guest = Guest::decode(&chain.top().contents.guest)?;
    let (has, said) = (guest.volumes().len(), volumes.len());
    if has != said {
        return Err(ReadError::Volumes { has, said });
    }
    let memory = chain.load()?;
    let (snapshot, _, overlay) = chain.into_parts();
    if guest.has_overlay_disk != overlay.is_some() {
        return Err(ReadError::Overlay);
    }
    Ok(Loaded {
        path: path.to_owned(),
        snapshot,
        memory,
        overlay,
        guest,
        origin,
    })
}

/// A parent is named from the directory of its child.
fn locate_from(path: &Path) -> impl FnMut(&format::Parent) -> io::Result<PathBuf> {
    let mut child = path.to_owned();
    move |parent| {
        child = child.with_file_name(&parent.name);
        Ok(child.clone())
    }
}

impl Loaded {
    /// The template, if this host can run it. Its clones have what is in `fixture`, but for the
    /// interpreters that are kept warm, which are in its memory, and what they write to, which is in a
    /// file in `overlay_directory`.
    pub(super) fn into_inner(
        self,
        mut fixture: Fixture,
        overlay_directory: Option<&Path>,
    ) -> Result<Inner, Error> {
        fixture.runners.clone_from(&self.guest.runners);
        let hello = self.guest.hello();
        let contents = self.snapshot.contents;
        let file =
            self.memory.file().try_clone().map_err(|error| {
                Error::because(ErrorKind::Exhausted, "cannot keep a memory", error)
            })?;
        let checkpoint = Checkpoint::new(contents.state, Arc::new(file)).map_err(restore_error)?;
        // The largest, and last: there may be a reason to refuse it before.
        fixture.overlay = match &self.overlay {
            None => None,
            Some(stored) => Some(load_overlay(stored, &self.path, overlay_directory)?),
        };
        let touched = contents.working_set.as_ref();
        let ahead = working_set::ahead(&self.memory, fixture.memory.backing, touched)?;
        let memory = Memory::new(self.memory, None);
        if let Some(hash) = contents.manifest.memory_hash {
            memory.set_saved(Saved {
                path: std::path::absolute(&self.path).unwrap_or(self.path),
                hash,
            });
        }
        Ok(Inner {
            paused: None,
            checkpoint,
            memory: Arc::new(memory),
            fixture,
            hello,
            working_set: contents.working_set,
            ahead,
            parcel: Parcel::default(),
        })
    }

    /// The template as its file and `options` describe it.
    pub(super) fn into_described(self, options: &LoadOptions) -> Result<Inner, Error> {
        let path = match &options.image {
            Some(path) => path.clone(),
            None => self.guest.image().to_owned(),
        };
        let limit = options.overlay_limit.unwrap_or(MOST).min(MOST);
        if let Some(overlay) = &self.overlay
            && overlay.bytes() > limit.as_bytes()
        {
            let message = format!(
                "guests of the template {} write to a disk of {}, and {limit} is the most that they may",
                self.path.display(),
                ByteSize::bytes(overlay.bytes()),
            );
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        // Before the image, which is usually the largest and read to its end.
        let volumes = self.volumes(options)?;
        let disk = self.disk("image", &path, &self.origin.image)?;
        let fixture = Fixture {
            image: ReadyImage {
                file: path,
                languages: self.guest.languages.clone(),
                account: self.guest.account.clone(),
                config: self.guest.config.clone(),
                // Only whoever boots it has to know.
                file_system: None,
                memory_mib: None,
            },
            disk,
            volumes,
            overlay: None,
            kick_signal: options.kick_signal,
            place: Place::of(options.placement)?,
            memory: options.memory,
            settings: self.guest.settings(),
            origin: Arc::new(self.origin.clone()),
            runners: self.guest.runners.clone(),
        };
        self.into_inner(fixture, options.overlay_directory.as_deref())
    }

    /// The volumes, where they were or where `options` say that they are.
    fn volumes(&self, options: &LoadOptions) -> Result<Vec<ReadyVolume>, Error> {
        let has = |place: &PathBuf| self.guest.volumes().any(|(it, _)| it == place);
        if let Some(place) = options.volumes.keys().find(|place| !has(place)) {
            let message = format!(
                "the template {} has no volume at {}",
                self.path.display(),
                place.display()
            );
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let volumes = self.guest.volumes().zip(&self.origin.volumes);
        let volumes = volumes.map(|((place, was), source)| {
            let file = options.volumes.get(place).map_or(was, PathBuf::as_path);
            Ok(ReadyVolume {
                place: place.to_owned(),
                file: file.to_owned(),
                disk: self.disk("volume", file, source)?,
            })
        });
        volumes.collect()
    }

    /// The file `path`, open, if it is what `source` was.
    fn disk(&self, what: &str, path: &Path, source: &Source) -> Result<Arc<File>, Error> {
        let problem = |kind, problem: &str| {
            let message = format!(
                "the template {} needs the {what} {}, {problem}; `LoadOptions::{what}` says where \
                 else it is",
                self.path.display(),
                path.display(),
            );
            move |error: io::Error| Error::because(kind, message, error)
        };
        let unusable = problem(ErrorKind::Unprepared, "which cannot be read");
        let disk = File::open(path).and_then(|disk| Ok((digest(&disk)?, disk)));
        let (found, disk) = disk.map_err(unusable)?;
        // A guest believes what it has read of its disk before: on another it would go astray.
        if let Source::Known(known) = source
            && known.digest != found
        {
            let other = io::Error::other(format!("it is {found} and should be {}", known.digest));
            let wrong = problem(ErrorKind::InvalidRequest, "and that file is another");
            return Err(wrong(other));
        }
        Ok(Arc::new(disk))
    }
}

/// What the guest of the template `path` has written to a disk.
fn load_overlay(
    stored: &StoredDisk,
    path: &Path,
    directory: Option<&Path>,
) -> Result<OverlayFile, Error> {
    let directory = directory.map_or_else(usual_directory, Path::to_owned);
    let overlay = OverlayFile::empty(&directory)?;
    let loaded = stored.load(overlay.file());
    loaded.map_err(|error| read_error(path, error.into()))?;
    Ok(overlay)
}

/// Whether a template may depend on the file of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// It has all its memory.
    Whole,
    /// It has what is different from the template that it came from, if that is in a file.
    Diff,
}

/// Writes the template to the file `path`, which is then complete and on disk, or not there.
pub(super) fn write(inner: &Inner, path: &Path, form: Form) -> Result<(), Error> {
    let contents = contents(inner)?;
    let image = inner.memory.image();
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let disk = inner.fixture.overlay.as_ref().map(|it| &**it.file());
    let parent = match form {
        Form::Whole => None,
        Form::Diff => parent(inner, &path),
    };
    let written = match &parent {
        None => format::write_file(&path, format::Memory::Base(image), disk, &contents),
        Some((parent, name)) => {
            // What is a hole in both is zero in both.
            let changed = parent
                .image()
                .data_pages()
                .and_then(|before| Ok(before.union(&image.data_pages()?)));
            let memory = |changed| format::Memory::Diff {
                parent: parent.image(),
                parent_name: name,
                current: image,
                changed,
            };
            match changed {
                Ok(changed) => format::write_file(&path, memory(&changed), disk, &contents),
                Err(error) => Err(error.into()),
            }
        }
    };
    written.map_err(|error| write_error(&path, error))?;
    let hash = image.hash().map_err(memory_error)?;
    inner.memory.set_saved(Saved { path, hash });
    Ok(())
}

/// The template that `inner` was changed from, and its name in a file at `path`; `None` if it cannot
/// be found in a file, or should not be relied on.
fn parent(inner: &Inner, path: &Path) -> Option<(Arc<Memory>, String)> {
    let (saved, memory) = inner.memory.saved_parent()?;
    let directory = path.parent()?;
    let name = match saved.path.parent() {
        Some(parent) if parent == directory => Path::new(saved.path.file_name()?),
        _ => saved.path.as_path(),
    };
    let name = name.to_str()?.to_owned();

    let first = SnapshotFile::open(&saved.path).ok()?;
    if first.snapshot().contents.manifest.memory_hash != Some(saved.hash) {
        return None;
    }
    // The file that is to be written must not be one of those that it would depend on.
    let mut below = BTreeSet::from([saved.path.clone()]);
    let mut locate = locate_from(&saved.path);
    let mut next = first.snapshot().contents.manifest.parent.clone();
    while let Some(wanted) = next {
        let found = locate(&wanted).ok()?;
        let file = SnapshotFile::open(&found).ok()?;
        if below.len() >= MAX_CHAIN - 1 || !below.insert(found) {
            return None;
        }
        next = file.snapshot().contents.manifest.parent.clone();
    }
    let same = |below: &PathBuf| match (below.canonicalize(), path.canonicalize()) {
        (Ok(below), Ok(path)) => below == path,
        _ => false,
    };
    if below.iter().any(same) {
        return None;
    }
    let memory = match memory {
        Some(memory) => memory,
        None => {
            let chain = Chain::open(&saved.path, locate_from(&saved.path)).ok()?;
            Arc::new(Memory::new(chain.load().ok()?, None))
        }
    };
    Some((memory, name))
}

fn contents(inner: &Inner) -> Result<Contents, Error> {
    let state = inner.checkpoint.state().clone();
    let origin = &inner.fixture.origin;
    // In the order of the disks, of which the image is the first.
    let sources = std::iter::once(&origin.image).chain(&origin.volumes);
    let images = sources
        .zip(inner.fixture.read_only_disks())
        .map(|(source, disk)| source.artefact_of(disk))
        .collect::<io::Result<_>>()
        .map_err(|error| {
            let message = "cannot read the image or a volume that the template was made from";
            Error::because(ErrorKind::Unprepared, message, error)
        })?;
    let vendor = ember_vmm::Processor::of_host().ok();
    let manifest = Manifest {
        created: SystemTime::now(),
        created_by: concat!("ember ", env!("CARGO_PKG_VERSION")).to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        vcpus: u32::try_from(state.vcpus.len()).unwrap_or(u32::MAX),
        memory_bytes: state.memory_bytes,
        memory_hash: None,
        kernel: origin.kernel.as_ref().and_then(Source::artefact),
        images,
        cpu: CpuRequirements {
            vendor: vendor.map(|processor| processor.vendor().to_owned()),
            ..CpuRequirements::default()
        },
        parent: None,
        built_from: origin.built_from.clone(),
    };
    let guest = Guest::new(&inner.hello, &inner.fixture).encode();
    let guest = guest
        .map_err(|error| Error::because(ErrorKind::Internal, "cannot describe the guest", error))?;
    Ok(Contents {
        manifest,
        state,
        guest,
        working_set: inner.working_set.clone(),
    })
}

/// Makes the template `path` one that needs no other.
pub(super) fn compact(path: &Path) -> Result<(), Error> {
    let chain =
        Chain::open(path, locate_from(path)).map_err(|error| read_error(path, error.into()))?;
    if chain.top().contents.manifest.parent.is_none() {
        return Ok(());
    }
    chain
        .compact(path)
        .map_err(|error| write_error(path, error))?;
    Ok(())
}

/// What it means to the caller that a template could not be read.
pub(super) fn read_error(path: &Path, error: ReadError) -> Error {
    let opened = |error: &OpenError| match &error.reason {
        format::FormatError::Read(_) => ErrorKind::Unprepared,
        _ => ErrorKind::Damaged,
    };
    let kind = match &error {
        ReadError::Chain(ChainError::Open(error)) => opened(error),
        ReadError::Memory(error) => memory_kind(error),
        _ => ErrorKind::Damaged,
    };
    let message = format!("cannot use the template {}", path.display());
    Error::because(kind, message, error)
}

/// An error with all its causes, in one line.
pub(super) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn memory_kind(error: &MemoryError) -> ErrorKind {
    match error {
        MemoryError::Io { source, .. } => match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => ErrorKind::Damaged,
            _ => ErrorKind::Exhausted,
        },
        _ => ErrorKind::Damaged,
    }
}

/// What it means that a memory, which is there, cannot be read.
pub(super) fn memory_error(error: MemoryError) -> Error {
    let kind = memory_kind(&error);
    Error::because(kind, "cannot read a template's memory", error)
}

fn write_error(path: &Path, error: WriteError) -> Error {
    let source = match &error {
        WriteError::Io { source, .. }
        | WriteError::Out(source)
        | WriteError::Memory(MemoryError::Io { source, .. }) => Some(source.kind()),
        _ => None,
    };
    let kind = match source {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => ErrorKind::Exhausted,
        Some(
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem,
        ) => ErrorKind::InvalidRequest,
        Some(_) => ErrorKind::Unprepared,
        None => ErrorKind::Internal,
    };
    let message = format!("cannot save the template as {}", path.display());
    Error::because(kind, message, error)
}
