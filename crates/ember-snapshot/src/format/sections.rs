//! The sections of a snapshot.

use super::container::Section;
use super::{FormatError, SnapshotId};

/// What is known of a section.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) id: u32,
    pub(super) name: &'static str,
    /// The version of its content that this program writes and reads.
    pub(super) version: u16,
    /// The most bytes it may have, so that nobody reads without bound.
    pub(super) limit: u64,
    /// Whether a program that does not know it may pass over it.
    pub(super) skippable: bool,
}

/// Whether the section `id` is pages, which an index has the checksums of, and which are read one by one.
pub(super) fn is_pages(id: u32) -> bool {
    [PAGES.id, DISK_PAGES.id].contains(&id)
}

const MIB: u64 = 1 << 20;

/// The stored pages of the memory.
pub(super) const PAGES: Kind = Kind {
    id: 1,
    name: "page data",
    version: 1,
    limit: u64::MAX,
    skippable: false,
};
/// [`Manifest`](super::Manifest) as JSON.
pub(super) const MANIFEST: Kind = Kind {
    id: 2,
    name: "manifest",
    version: 1,
    limit: MIB,
    skippable: false,
};
/// [`VmState`](crate::state::VmState) as postcard. Its encoding has no names in it, so any change
/// to any of its types is a new version.
pub(super) const STATE: Kind = Kind {
    id: 3,
    name: "machine state",
    version: 1,
    limit: 16 * MIB,
    skippable: false,
};
/// What the layers above know of the guest. They put a version of their own into it.
pub(super) const GUEST: Kind = Kind {
    id: 4,
    name: "guest section",
    version: 1,
    limit: 16 * MIB,
    skippable: false,
};
/// [`LayerIndex`](crate::memory::LayerIndex).
pub(super) const MEMORY: Kind = Kind {
    id: 5,
    name: "memory index",
    version: 1,
    limit: 1024 * MIB,
    skippable: false,
};
/// [`WorkingSet`](crate::WorkingSet). A snapshot can do without.
pub(super) const WORKING_SET: Kind = Kind {
    id: 6,
    name: "working set",
    version: 1,
    limit: 64 * MIB,
    skippable: true,
};

/// The stored pages of the disk that the guest writes to.
pub(super) const DISK_PAGES: Kind = Kind {
    id: 7,
    name: "disk data",
    version: 1,
    limit: u64::MAX,
    skippable: false,
};
/// [`LayerIndex`](crate::memory::LayerIndex) of that disk, a base. A snapshot of a guest without one
/// has neither.
pub(super) const DISK: Kind = Kind {
    id: 8,
    name: "disk index",
    version: 1,
    limit: 1024 * MIB,
    skippable: false,
};

const KNOWN: [&Kind; 8] = [
    &PAGES,
    &MANIFEST,
    &STATE,
    &GUEST,
    &MEMORY,
    &WORKING_SET,
    &DISK_PAGES,
    &DISK,
];

/// What the section is: `None` if it is not known and can be passed over.
pub(super) fn kind_of(section: &Section) -> Result<Option<&'static Kind>, FormatError> {
    let Some(kind) = KNOWN.into_iter().find(|kind| kind.id == section.id) else {
        return if section.skippable {
            Ok(None)
        } else {
            Err(FormatError::UnknownSection(section.id))
        };
    };
    if section.version != kind.version {
        if kind.skippable {
            return Ok(None);
        }
        return Err(FormatError::SectionVersion {
            section: kind.name,
            found: section.version,
            known: kind.version,
        });
    }
    if section.length > kind.limit {
        return Err(FormatError::TooLarge {
            section: kind.name,
            length: section.length,
            limit: kind.limit,
        });
    }
    Ok(Some(kind))
}

/// Computes the id of a snapshot from its sections in the order of the file.
#[derive(Debug)]
pub(super) struct IdHasher(blake3::Hasher);

impl IdHasher {
    pub(super) fn new() -> Self {
        Self(blake3::Hasher::new_derive_key("ember snapshot id, v1"))
    }

    /// Adds the head of a section. Its content follows, in pieces, unless it is pages.
    pub(super) fn section(&mut self, section: &Section) {
        self.0.update(&section.id.to_le_bytes());
        self.0.update(&section.version.to_le_bytes());
        self.0.update(&[u8::from(section.skippable)]);
        self.0.update(&section.length.to_le_bytes());
    }

    pub(super) fn content(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> SnapshotId {
        (*self.0.finalize().as_bytes()).into()
    }
}
