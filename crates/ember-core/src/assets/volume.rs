//! Volumes: read-only file systems that a guest has beside its root.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::squashfs::{NotSquashfs, SUPERBLOCK_SIZE, recognise};
use super::{AssetError, Assets, image, import};

/// Files that guests have beside their image, read-only: data, models, dependencies.
///
/// Every guest that has one reads the same file of this host, which the host keeps in memory once.
/// See [`SandboxBuilder::volume`](crate::SandboxBuilder::volume).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume(Source);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Archive(PathBuf),
    Directory(PathBuf),
}

impl Volume {
    /// A squashfs file that exists. It is only ever read, and must not change while a guest or a
    /// template has it.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }

    /// What is in a tar file, plain or compressed by gzip or Zstandard. It becomes a squashfs when it
    /// is first needed, and again when the file was changed.
    pub fn archive(path: impl Into<PathBuf>) -> Self {
        Self(Source::Archive(path.into()))
    }

    /// What is in a directory of this host. It becomes a squashfs when it is first needed, and again
    /// when anything in it was changed; a guest that has it sees no change. Permissions stay what
    /// they are; who is not root has all of it belong to the guest's root.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self(Source::Directory(path.into()))
    }

    /// What is found at `path`: a directory, a squashfs file, or else a tar file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self(match path.is_dir() {
            true => Source::Directory(path),
            // Also what cannot be read: that is said where it is used.
            false if image::is_file_system(&path) => Source::File(path),
            false => Source::Archive(path),
        })
    }
}

impl fmt::Display for Volume {
    /// The path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Source::File(path) | Source::Archive(path) | Source::Directory(path)) = &self.0;
        path.display().fmt(f)
    }
}

/// Why a file is no volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be mounted", path.display())]
    Wrong { path: PathBuf, source: NotSquashfs },
}

impl VolumeError {
    /// Whether it will be the same the next time.
    pub(super) fn is_request(&self) -> bool {
        matches!(self, Self::Wrong { .. })
    }
}

/// The file of `volume`, made if it has to be, and open.
pub(super) fn open(assets: &Assets, volume: &Volume) -> Result<(PathBuf, File), AssetError> {
    let path = match &volume.0 {
        // Who loads a template from its file need not be where this one is.
        Source::File(path) => std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        Source::Archive(path) => import::archive(assets, path)?.file,
        Source::Directory(path) => import::directory(assets, path)?.file,
    };
    let file = checked(&path)?;
    Ok((path, file))
}

fn checked(path: &Path) -> Result<File, VolumeError> {
    let failed = |source| VolumeError::Read {
        path: path.to_owned(),
        source,
    };
    let wrong = |source| VolumeError::Wrong {
        path: path.to_owned(),
        source,
    };
    // Before it is opened: of a pipe that would have no end.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(wrong(NotSquashfs::Other));
    }
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut begin = Vec::new();
    let read = (&file).take(SUPERBLOCK_SIZE).read_to_end(&mut begin);
    read.map_err(failed)?;
    recognise(&begin, length).map_err(wrong)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
