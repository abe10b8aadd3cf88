//! Trees of files as tar streams, for both ends of the channel.
//!
//! The same code takes a stream from a hostile guest apart on the host, and packs what a hostile
//! program has left in the guest, so nothing that it meets is believed:
//!
//! - Every directory on the way to a file is opened beneath the tree's own directory and through no
//!   symbolic link at all (openat2(2), `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`), by the kernel
//!   and at once, so that nobody can exchange one meanwhile.
//! - A file is made anew (`O_EXCL`) where one of its name is removed before, so that nothing is ever
//!   written through what is there.
//! - What an archive says of sizes is compared with what may still come before anything is done. At
//!   most a buffer, and a name, are in memory.
//!
//! All of it waits for files and streams: on the host it has its own thread.

mod pack;
mod path;
mod read;
mod system;
#[cfg(test)]
mod tests;
mod unpack;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

pub use pack::{LeftOut, Packer};
pub use system::{SystemEntry, SystemKind, read_system};
pub use unpack::{Links, Unpacked, read_each, unpack};

/// A file of an archive that was only [read](read_each).
pub use unpack::Member;

/// What is in memory of a file at a time.
const BUFFER: usize = 64 * 1024;
/// The size of a tar file's blocks.
const BLOCK: u64 = 512;
/// Directories within directories are gone into so far.
const MAX_DEPTH: usize = 128;
/// The longest path, and target of a link: Linux's `PATH_MAX`, less the byte that ends it.
const MAX_PATH: usize = 4095;
/// The longest name: Linux's `NAME_MAX`.
const MAX_NAME: usize = 255;

/// How much an archive may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of the stream: contents, and a block or more for each file's header.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

impl Caps {
    /// No bounds: of what is trusted.
    pub const NONE: Self = Self {
        bytes: u64::MAX,
        entries: u64::MAX,
    };
}

/// Why an archive could not be made, or was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It has what no archive here may have.
    #[error("the archive is refused: its entry {path:?} {why}")]
    Refused {
        /// The entry, shortened.
        path: String,
        /// What is wrong with it.
        why: Refusal,
    },
    /// It is none, or damaged.
    #[error("the archive is damaged: {0}")]
    Damaged(io::Error),
    /// It is larger than it may be.
    #[error("it is more than {most} bytes, which is the most that it may be")]
    TooManyBytes {
        /// How much it may be.
        most: u64,
    },
    /// It has more files than it may have.
    #[error("it has more than {most} files, which is the most that it may have")]
    TooManyEntries {
        /// How many it may have.
        most: u64,
    },
    /// A file could not be read or made.
    #[error("cannot {what} {path:?}: {source}")]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The stream could not be read or written.
    #[error("the archive's stream broke off: {0}")]
    Stream(io::Error),
}

/// What is wrong with an entry of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Its path begins with a slash.
    #[error("has an absolute path")]
    Absolute,
    /// Its path goes up.
    #[error("has `..` in its path")]
    Parent,
    /// Its path is none that Linux takes.
    #[error("has a path that is empty or too long")]
    Path,
    /// It is a device, a pipe, or something else that is no file.
    #[error("is neither a file, nor a directory, nor a link")]
    Kind,
    /// It is a file with holes, whose size cannot be told by what comes.
    #[error("is a sparse file")]
    Sparse,
    /// It links to something else than a file of the same tree.
    #[error("is a hard link to what is no file of the same tree")]
    HardLink,
    /// What describes it is longer than anything that has to be described.
    #[error("has a description that is too long, or twice the same one")]
    Description,
    /// Its size in one place is another than in the other.
    #[error("states two sizes")]
    Size,
    /// Its owner is none that Linux has.
    #[error("has an owner that is no number of Linux")]
    Owner,
}

impl Error {
    fn file(what: &'static str, path: &[u8], error: impl Into<io::Error>) -> Self {
        Self::File {
            what,
            path: shown(path),
            source: error.into(),
        }
    }
}

/// A path for people.
fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path.get(..256).unwrap_or(path));
    text.chars().filter(|c| !c.is_control()).collect()
}

/// How paths in a tree are followed: nowhere else, and through no link.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Opens what `path` is in the tree `root`: an empty path is the root itself.
fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), BENEATH)
}
