//! Where what guests write over their image is kept.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::size::ByteSize;

/// Where what a guest writes over its image is kept, in files and what is in `/tmp` together, and how
/// much that may be.
///
/// A [`ByteSize`] stands for so much [in memory](Self::memory).
///
/// ```
/// use ember_core::{ByteSize, Image, Sandbox, Overlay};
///
/// let builder = Sandbox::builder(Image::pack("python"))
///     .memory(ByteSize::mib(256))
///     .overlay(Overlay::file(ByteSize::gib(8)).within("/var/tmp"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    size: ByteSize,
    file: Option<Directory>,
}

/// Where a file is made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Directory {
    Usual,
    At(PathBuf),
}

impl Overlay {
    /// In the guest's own memory: nothing is quicker, and nothing is left of it but that much less for
    /// programs.
    pub fn memory(size: ByteSize) -> Self {
        Self { size, file: None }
    }

    /// In a file of this host, which has no name and is gone with the guest: more than a guest has of
    /// memory can be written. The file takes the room that is really written to, and gives back what
    /// the guest removes. What it can hold is a multiple of 128 MiB, of which the guest's file system
    /// (ext4) takes some 2 % for itself: `size` is rounded up.
    ///
    /// It is made in the directory that the environment variable `TMPDIR` names, else in `/var/tmp`,
    /// unless another one is [named](Self::within). If there is no room left on the host's disk, the
    /// guest is told of input/output errors, and may not be able to write any more.
    ///
    /// A clone begins with what had been written before, in a file of its own: nothing is copied for
    /// that where the host's file system can have files share their content (Btrfs, XFS), and else
    /// all that was written, while nobody waits for it (clones that are kept ready), or the clone's
    /// maker and, of a live fork, the guest itself do.
    pub fn file(size: ByteSize) -> Self {
        Self {
            size,
            file: Some(Directory::Usual),
        }
    }

    /// As much in a [file](Self::file) in `directory`.
    #[must_use]
    pub fn within(self, directory: impl Into<PathBuf>) -> Self {
        Self {
            size: self.size,
            file: Some(Directory::At(directory.into())),
        }
    }

    /// How much may be written.
    pub fn size(&self) -> ByteSize {
        self.size
    }

    /// Where the file is made, if it is to be in one.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        match &self.file {
            None => None,
            Some(Directory::Usual) => Some(usual_directory()),
            Some(Directory::At(directory)) => Some(directory.clone()),
        }
    }
}

/// Where files are made that are large and not kept (file-hierarchy(7)): `/tmp` is in memory on many
/// hosts.
pub(crate) fn usual_directory() -> PathBuf {
    let named = env::var_os("TMPDIR").filter(|it| Path::new(it).is_absolute());
    named.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

impl From<ByteSize> for Overlay {
    fn from(size: ByteSize) -> Self {
        Self::memory(size)
    }
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.directory() {
            None => write!(f, "{} in memory", self.size),
            Some(directory) => write!(f, "{} in {}", self.size, directory.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_alone_is_in_memory() {
        let overlay = Overlay::from(ByteSize::mib(64));
        assert_eq!(overlay, Overlay::memory(ByteSize::mib(64)));
        assert_eq!(overlay.directory(), None);
        assert_eq!(overlay.to_string(), "64 MiB in memory");
        let file = overlay.within("/srv");
        assert_eq!(file.directory(), Some("/srv".into()));
        assert_eq!(file, Overlay::file(ByteSize::mib(64)).within("/srv"));
        assert_eq!(file.to_string(), "64 MiB in /srv");
    }
}
