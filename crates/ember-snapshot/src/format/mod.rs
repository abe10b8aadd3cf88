//! The snapshot file.
//!
//! One file, `NAME.ember`, is one layer: a base stands for itself, a diff needs the snapshot that
//! it was made from. The first page of a file is its [header](container), with the directory of
//! the sections that make up the rest. All numbers are little-endian.
//!
//! A snapshot is named by its [id](SnapshotId), the hash of all of its sections but the page data,
//! which those sections in turn have checksums of. Everything but page data is read, bounded and
//! checked when a file is [opened](SnapshotFile::open); page data is checked when it is read.
//! `docs/snapshots.md` describes the format and the rules by which it may change.

mod chain;
pub mod container;
mod manifest;
mod reader;
#[cfg(feature = "fuzzing")]
pub(crate) mod repair;
mod sections;
mod vm_state;
mod writer;

use std::io;
use std::path::PathBuf;

use crate::memory::InvalidIndex;
use crate::pages::InvalidPages;

pub use chain::{Chain, ChainError, MAX_CHAIN};
pub use container::SnapshotId;
pub use manifest::{Artefact, CpuRequirements, Manifest, Parent};
pub use reader::{Contents, DiskPages, Snapshot, SnapshotFile};
pub use vm_state::{decode_state, encode_state};
pub use writer::{Memory, WriteError, write, write_file};

/// The version of the file's frame: header, directory, alignment. Raise it when an older reader
/// would misunderstand the frame; what is in a section has a version of its own.
pub const FORMAT_VERSION: u32 = 1;

/// How a file name of a snapshot ends.
pub const EXTENSION: &str = "ember";

/// Why bytes are not a snapshot that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The beginning is not that of a snapshot.
    #[error("this is no snapshot: the file does not begin as one does")]
    NotASnapshot,
    /// The file was written by a program that knows another format.
    #[error(
        "the snapshot has format version {found} and this program reads version \
         {FORMAT_VERSION}; build the template anew, or use the program that wrote it"
    )]
    Version {
        /// The version of the file.
        found: u32,
    },
    /// A section's content has a version that is not known.
    #[error(
        "the {section} of the snapshot has version {found} and this program reads version \
         {known}; build the template anew, or use the program that wrote it"
    )]
    SectionVersion {
        /// Which section.
        section: &'static str,
        /// Its version in the file.
        found: u16,
        /// The version that is known.
        known: u16,
    },
    /// There is a section that must be understood and is not.
    #[error("the snapshot needs section {0}, which this program does not know")]
    UnknownSection(u32),
    /// A section that every snapshot has is not there.
    #[error("the snapshot has no {0}")]
    MissingSection(&'static str),
    /// The header, the directory or a section is not what was written.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    /// A section is not what was written.
    #[error("the snapshot is damaged: the checksum of its {0} is wrong")]
    Checksum(&'static str),
    /// A section is larger than any that was ever written.
    #[error("the {section} of the snapshot has {length} bytes; the limit is {limit}")]
    TooLarge {
        /// Which section.
        section: &'static str,
        /// Its length.
        length: u64,
        /// The most it may have.
        limit: u64,
    },
    /// The manifest is not one.
    #[error("the manifest of the snapshot cannot be read")]
    Manifest(#[source] serde_json::Error),
    /// The state of the machine is not one.
    #[error("the machine's state in the snapshot cannot be read")]
    State(#[source] postcard::Error),
    /// The index of the memory is not one.
    #[error(transparent)]
    Index(#[from] InvalidIndex),
    /// The index of the disk is not one.
    #[error("the index of the disk in the snapshot cannot be read")]
    DiskIndex(#[source] InvalidIndex),
    /// The working set is not one.
    #[error("the working set of the snapshot cannot be read")]
    WorkingSet(#[source] InvalidPages),
    /// Two sections say different things.
    #[error("the snapshot contradicts itself: {0}")]
    Contradiction(&'static str),
    /// The file could not be read.
    #[error("the snapshot cannot be read")]
    Read(#[from] io::Error),
}

/// A snapshot that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the snapshot {}", path.display())]
pub struct OpenError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub reason: FormatError,
}

#[cfg(test)]
mod tests;
