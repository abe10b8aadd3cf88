//! Archives of systems: layers of container images, and root file systems.

use std::io::Read;

use super::read::{Holds, What, each};
use super::{Caps, Error};

/// A file, directory or link of a system.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemEntry {
    /// Its path below the root, of names with a slash between them. Empty is the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: SystemKind,
    /// Permissions, with set-id and sticky bits.
    pub mode: u16,
    /// Whose it is.
    pub user: u32,
    /// Whose group's.
    pub group: u32,
    /// When it was changed, in seconds since 1970.
    pub modified: u64,
    /// How many bytes it has.
    pub size: u64,
    /// Whether it has extended attributes. They are not told.
    pub has_attributes: bool,
}

/// What an entry of a system is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SystemKind {
    /// A directory.
    Directory,
    /// A file, whose contents follow.
    File,
    /// A symbolic link, with its text.
    Symlink(Vec<u8>),
    /// Another name of what is at this path, of the same form as [`SystemEntry::path`].
    HardLink(Vec<u8>),
    /// A device or a pipe.
    Special,
}

/// Reads the archive of a system, or of a layer of one, and makes nothing of it: `take` is handed
/// each entry and its contents, of which it need not read all.
///
/// What paths and sizes are refused, and what is bounded, is as for [`unpack`](super::unpack()), but
/// for devices and pipes, which systems have.
///
/// # Errors
/// What is wrong with the archive or its stream, as `take`'s own errors are told; and these.
pub fn read_system<E: From<Error>>(
    input: impl Read,
    caps: Caps,
    mut take: impl FnMut(SystemEntry, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    each(input, caps, Holds::System, |entry, contents| {
        let kind = match &entry.what {
            What::Directory => SystemKind::Directory,
            What::File => SystemKind::File,
            What::Symlink(target) => SystemKind::Symlink(target.clone()),
            What::HardLink(target) => SystemKind::HardLink(target.bytes().to_vec()),
            What::Special => SystemKind::Special,
        };
        let told = SystemEntry {
            path: entry.path.bytes().to_vec(),
            kind,
            // Twelve bits.
            mode: u16::try_from(entry.mode).unwrap_or(0),
            user: entry.owner.0,
            group: entry.owner.1,
            modified: entry.modified,
            size: entry.size,
            has_attributes: entry.has_attributes,
        };
        take(told, contents)
    })
}
