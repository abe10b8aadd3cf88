//! Reading snapshots.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::container::{HEADER_BYTES, Header, Section, SnapshotId};
use super::sections::{self, IdHasher, Kind};
use super::{FormatError, Manifest, OpenError, decode_state};
use crate::disk::StoredDisk;
use crate::memory::{Layer, LayerIndex, LayerKind};
use crate::pages::PAGE_SIZE;
use crate::source::PageSource;
use crate::state::VmState;
use crate::working_set::WorkingSet;

/// What is in a snapshot besides memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// What it is and what it was made from.
    pub manifest: Manifest,
    /// The state of the machine. Nobody has checked it for sense.
    pub state: VmState,
    /// What the layers above know of the guest.
    pub guest: Vec<u8>,
    /// The pages that clones need first, if they were recorded.
    pub working_set: Option<WorkingSet>,
}

impl Contents {
    /// What they say that cannot be, in view of the memory that goes with them.
    pub(super) fn contradiction(&self, bytes: u64, kind: LayerKind) -> Option<&'static str> {
        let Self {
            manifest, state, ..
        } = self;
        let pages = bytes / PAGE_SIZE;
        let beyond = |set: &WorkingSet| set.end() > pages;
        if manifest.memory_bytes != bytes || state.memory_bytes != bytes {
            Some("manifest, machine state and memory differ in the size of the memory")
        } else if u64::from(manifest.vcpus) != state.vcpus.len() as u64 {
            Some("manifest and machine state differ in the number of virtual CPUs")
        } else if manifest.parent.is_some() != (kind == LayerKind::Diff) {
            Some("a diff needs a parent, and a base has none")
        } else if self.working_set.as_ref().is_some_and(beyond) {
            Some("the working set goes beyond the memory")
        } else {
            None
        }
    }
}

/// A snapshot file but for its page data: decoded, and known to be what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What names it.
    pub id: SnapshotId,
    /// What is in it besides memory.
    pub contents: Contents,
    /// Which pages it has.
    pub index: LayerIndex,
    /// Where its page data begins.
    pub data_offset: u64,
    /// The disk that the guest writes to, if it has one.
    pub disk: Option<DiskPages>,
}

/// Where the pages of a disk are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPages {
    /// Which pages there are.
    pub index: LayerIndex,
    /// Where they begin.
    pub data_offset: u64,
}

impl Snapshot {
    /// Reads a snapshot of `bytes` bytes.
    ///
    /// Allocates in proportion to what is really there, whatever the bytes say. Page data is not
    /// looked at: each page is checked when it is read.
    pub fn decode(reader: &mut (impl Read + Seek), bytes: u64) -> Result<Self, FormatError> {
        reader.seek(SeekFrom::Start(0))?;
        let mut page = Vec::new();
        reader.take(HEADER_BYTES as u64).read_to_end(&mut page)?;
        let Some((page, _)) = page.split_first_chunk() else {
            return Err(if page.starts_with(b"\x8fEMBER") {
                FormatError::Damaged("the file is shorter than its header")
            } else {
                FormatError::NotASnapshot
            });
        };
        let header = Header::decode(page, bytes)?;
        let mut read = Sections::default();
        let mut id = IdHasher::new();
        for section in &header.sections {
            let kind = sections::kind_of(section)?;
            id.section(section);
            match kind.map(|kind| kind.id) {
                Some(id) if id == sections::PAGES.id => read.pages = Some(*section),
                Some(id) if id == sections::DISK_PAGES.id => read.disk_pages = Some(*section),
                _ => {}
            }
            if kind.is_some_and(|kind| sections::is_pages(kind.id)) {
                continue;
            }
            let content = match kind {
                Some(kind) => read_section(reader, section, kind.name, |part| id.content(part))?,
                None => {
                    skip_section(reader, section, |part| id.content(part))?;
                    continue;
                }
            };
            read.contents.push((section.id, content));
        }
        if id.finish() != header.id {
            return Err(FormatError::Checksum("id"));
        }
        read.decode(header.id)
    }

    /// The memory of this snapshot, whose page data is in `source`.
    pub fn layer(&self, source: Box<dyn PageSource>) -> Layer {
        Layer::new(self.index.clone(), source, self.data_offset)
    }
}

/// What was read of a file and is not decoded yet.
#[derive(Default)]
struct Sections {
    contents: Vec<(u32, Vec<u8>)>,
    pages: Option<Section>,
    disk_pages: Option<Section>,
}

impl Sections {
    fn take(&mut self, kind: &Kind) -> Option<Vec<u8>> {
        let at = self.contents.iter().position(|(id, _)| *id == kind.id)?;
        Some(self.contents.swap_remove(at).1)
    }

    fn require(&mut self, kind: &Kind) -> Result<Vec<u8>, FormatError> {
        self.take(kind)
            .ok_or(FormatError::MissingSection(kind.name))
    }

    fn decode(mut self, id: SnapshotId) -> Result<Snapshot, FormatError> {
        let manifest: Manifest = serde_json::from_slice(&self.require(&sections::MANIFEST)?)
            .map_err(FormatError::Manifest)?;
        let contents = Contents {
            manifest,
            state: decode_state(&self.require(&sections::STATE)?)?,
            guest: self.require(&sections::GUEST)?,
            working_set: self
                .take(&sections::WORKING_SET)
                .map(|bytes| WorkingSet::decode(&bytes))
                .transpose()
                .map_err(FormatError::WorkingSet)?,
        };
        let index = LayerIndex::decode(&self.require(&sections::MEMORY)?)?;
        let missing = FormatError::MissingSection(sections::PAGES.name);
        let pages = self.pages.ok_or(missing)?;
        if !holds(&pages, &index) {
            return Err(FormatError::Contradiction(
                "the page data is not what the memory index describes",
            ));
        }
        if contents.manifest.memory_hash.is_none() {
            return Err(FormatError::Contradiction(
                "the manifest has no hash of the memory",
            ));
        }
        if let Some(what) = contents.contradiction(index.memory_bytes(), index.kind()) {
            return Err(FormatError::Contradiction(what));
        }
        let disk = self.disk()?;
        Ok(Snapshot {
            id,
            contents,
            index,
            data_offset: pages.offset,
            disk,
        })
    }

    fn disk(&mut self) -> Result<Option<DiskPages>, FormatError> {
        let index = self.take(&sections::DISK);
        let index = index.map(|bytes| LayerIndex::decode(&bytes)).transpose();
        match (index.map_err(FormatError::DiskIndex)?, self.disk_pages) {
            (None, None) => Ok(None),
            (Some(index), Some(pages))
                if index.kind() == LayerKind::Base && holds(&pages, &index) =>
            {
                Ok(Some(DiskPages {
                    index,
                    data_offset: pages.offset,
                }))
            }
            _ => Err(FormatError::Contradiction(
                "the disk data is not what the disk index describes",
            )),
        }
    }
}

/// Whether the section `pages` can have the pages of `index`.
fn holds(pages: &Section, index: &LayerIndex) -> bool {
    pages.offset.is_multiple_of(PAGE_SIZE)
        && index.stored_pages().checked_mul(PAGE_SIZE) == Some(pages.length)
}

/// Reads a section whole, shows it to `hash` and checks it.
fn read_section(
    reader: &mut (impl Read + Seek),
    section: &Section,
    name: &'static str,
    mut hash: impl FnMut(&[u8]),
) -> Result<Vec<u8>, FormatError> {
    reader.seek(SeekFrom::Start(section.offset))?;
    // Grows with what comes, and not with what is announced.
    let mut content = Vec::new();
    reader.take(section.length).read_to_end(&mut content)?;
    if content.len() as u64 != section.length {
        return Err(FormatError::Damaged("the file ends within a section"));
    }
    if crc32c::crc32c(&content) != section.checksum {
        return Err(FormatError::Checksum(name));
    }
    hash(&content);
    Ok(content)
}

/// Goes through a section that is not known, for the sake of the id.
fn skip_section(
    reader: &mut (impl Read + Seek),
    section: &Section,
    mut hash: impl FnMut(&[u8]),
) -> Result<(), FormatError> {
    reader.seek(SeekFrom::Start(section.offset))?;
    let mut rest = reader.take(section.length);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = rest.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash(buffer.get(..count).unwrap_or_default());
    }
    if rest.limit() != 0 {
        return Err(FormatError::Damaged("the file ends within a section"));
    }
    Ok(())
}

/// A snapshot together with the file that has its page data.
#[derive(Debug)]
pub struct SnapshotFile {
    snapshot: Snapshot,
    file: File,
}

impl SnapshotFile {
    /// Opens a snapshot and reads everything but page data.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let open = || {
            // Without waiting: a FIFO of that name would never let go.
            let flags = rustix::fs::OFlags::NONBLOCK.bits();
            let flags = i32::try_from(flags).unwrap_or(0);
            let mut file = OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(FormatError::NotASnapshot);
            }
            let snapshot = Snapshot::decode(&mut file, metadata.len())?;
            Ok(Self { snapshot, file })
        };
        open().map_err(|reason| OpenError {
            path: path.to_owned(),
            reason,
        })
    }

    /// What is in it.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The disk that the guest writes to, if it has one.
    pub fn disk(&self) -> io::Result<Option<StoredDisk>> {
        let Some(disk) = &self.snapshot.disk else {
            return Ok(None);
        };
        let source = Box::new(self.file.try_clone()?);
        let layer = Layer::new(disk.index.clone(), source, disk.data_offset);
        StoredDisk::new(layer).map(Some).map_err(io::Error::other)
    }

    /// The snapshot and the layer with its memory.
    pub fn into_parts(self) -> (Snapshot, Layer) {
        let layer = self.snapshot.layer(Box::new(self.file));
        (self.snapshot, layer)
    }
}
