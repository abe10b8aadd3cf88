//! The frame of a snapshot file: header and directory.
//!
//! The first page of the file:
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 8 | `8f 45 4d 42 45 52 0d 0a`: not text, and no longer itself if line ends were converted |
//! | 8 | 4 | version of the frame |
//! | 12 | 4 | number of sections |
//! | 16 | 8 | length of the file |
//! | 24 | 4 | CRC-32C of this page, with zeroes here |
//! | 28 | 4 | zero |
//! | 32 | 32 | id of the snapshot |
//! | 64 | 32 each | the sections, in the order of their offsets |
//!
//! A section:
//!
//! | offset | bytes | |
//! | --- | --- | --- |
//! | 0 | 4 | what it is |
//! | 4 | 2 | version of its content |
//! | 6 | 2 | 1 if a reader that does not know it may pass over it |
//! | 8 | 8 | where it begins in the file |
//! | 16 | 8 | its length |
//! | 24 | 4 | CRC-32C of its content; zero for page data |
//! | 28 | 4 | zero |

use super::{FORMAT_VERSION, FormatError};
use crate::digest::digest;
use crate::pages::PAGE_SIZE;

digest! {
    /// What names a snapshot: the hash of all of its sections but the page data, whose checksums
    /// are among them.
    SnapshotId
}

/// The length of the header with the directory.
pub const HEADER_BYTES: usize = PAGE_SIZE as usize;

const MAGIC: [u8; 8] = *b"\x8fEMBER\r\n";
const FIXED_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32;
const CHECKSUM_AT: std::ops::Range<usize> = 24..28;
const MAX_SECTIONS: usize = (HEADER_BYTES - FIXED_BYTES) / ENTRY_BYTES;
const FLAG_SKIPPABLE: u16 = 1;

// Tripwires. Snapshots on disk have this layout: whoever changes a number raises FORMAT_VERSION and
// says in docs/snapshots.md what becomes of the snapshots that there are.
const _: () = assert!(HEADER_BYTES == 4096);
const _: () = assert!(MAX_SECTIONS == 126);

/// A section of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it is.
    pub id: u32,
    /// The version of its content.
    pub version: u16,
    /// Whether a reader that does not know it may pass over it.
    pub skippable: bool,
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub length: u64,
    /// CRC-32C of its content.
    pub checksum: u32,
}

/// The header of a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The length of the file.
    pub file_bytes: u64,
    /// What names the snapshot.
    pub id: SnapshotId,
    /// Its sections, in the order of their offsets.
    pub sections: Vec<Section>,
}

impl Header {
    /// Writes the header as the first page of a file. `None` if there are too many sections.
    pub fn encode(&self) -> Option<[u8; HEADER_BYTES]> {
        let count = u32::try_from(self.sections.len()).ok()?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(self.file_bytes.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(self.id.as_bytes());
        for section in &self.sections {
            let flags = if section.skippable { FLAG_SKIPPABLE } else { 0 };
            bytes.extend(section.id.to_le_bytes());
            bytes.extend(section.version.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(section.offset.to_le_bytes());
            bytes.extend(section.length.to_le_bytes());
            bytes.extend(section.checksum.to_le_bytes());
            bytes.extend([0; 4]);
        }
        let mut page = [0; HEADER_BYTES];
        page.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        let checksum = crc32c::crc32c(&page);
        page.get_mut(CHECKSUM_AT)?
            .copy_from_slice(&checksum.to_le_bytes());
        Some(page)
    }

    /// Reads the header of a file of `file_bytes` bytes.
    ///
    /// Afterwards every section lies within the file, behind the header, and none overlaps another
    /// or appears twice.
    pub fn decode(page: &[u8; HEADER_BYTES], file_bytes: u64) -> Result<Self, FormatError> {
        let mut rest = Fields(page);
        if rest.take()? != MAGIC {
            return Err(FormatError::NotASnapshot);
        }
        // First of all: what follows is only known for this version.
        let found = u32::from_le_bytes(rest.take()?);
        if found != FORMAT_VERSION {
            return Err(FormatError::Version { found });
        }
        let count = u32::from_le_bytes(rest.take()?);
        let stated_bytes = u64::from_le_bytes(rest.take()?);
        let checksum = u32::from_le_bytes(rest.take()?);
        let reserved = u32::from_le_bytes(rest.take()?);
        let id = SnapshotId::from(rest.take::<32>()?);

        let mut unsigned = *page;
        unsigned.get_mut(CHECKSUM_AT).unwrap_or_default().fill(0);
        if crc32c::crc32c(&unsigned) != checksum {
            return Err(FormatError::Checksum("header"));
        }
        if stated_bytes != file_bytes {
            return Err(FormatError::Damaged(
                "the file is shorter or longer than it says",
            ));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > MAX_SECTIONS {
            return Err(FormatError::Damaged(
                "it has more sections than there can be",
            ));
        }
        let mut sections = Vec::with_capacity(count);
        let mut lowest = HEADER_BYTES as u64;
        for _ in 0..count {
            let section = rest.section()?;
            let end = section.offset.checked_add(section.length);
            lowest = end
                .filter(|end| section.offset >= lowest && *end <= file_bytes)
                .ok_or(FormatError::Damaged(
                    "a section is out of order or out of the file",
                ))?;
            if sections
                .iter()
                .any(|other: &Section| other.id == section.id)
            {
                return Err(FormatError::Damaged("a section is there twice"));
            }
            sections.push(section);
        }
        // Whatever is meant by these one day, this program would not do it.
        if reserved != 0 || rest.0.iter().any(|byte| *byte != 0) {
            return Err(FormatError::Damaged(
                "the header says what nobody has defined",
            ));
        }
        Ok(Self {
            file_bytes,
            id,
            sections,
        })
    }
}

/// What is left of the header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (field, rest) = self
            .0
            .split_first_chunk()
            .ok_or(FormatError::Damaged("the header is too short"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn section(&mut self) -> Result<Section, FormatError> {
        let id = u32::from_le_bytes(self.take()?);
        let version = u16::from_le_bytes(self.take()?);
        let flags = u16::from_le_bytes(self.take()?);
        let section = Section {
            id,
            version,
            skippable: flags & FLAG_SKIPPABLE != 0,
            offset: u64::from_le_bytes(self.take()?),
            length: u64::from_le_bytes(self.take()?),
            checksum: u32::from_le_bytes(self.take()?),
        };
        if flags & !FLAG_SKIPPABLE != 0 || self.take()? != [0; 4] {
            return Err(FormatError::Damaged(
                "a section says what nobody has defined",
            ));
        }
        Ok(section)
    }
}
