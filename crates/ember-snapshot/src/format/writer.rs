//! Writing snapshots.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::container::{HEADER_BYTES, Header, Section, SnapshotId};
use super::reader::Contents;
use super::sections::{self, IdHasher, Kind};
use super::{FormatError, Parent, encode_state};
use crate::memory::{LayerIndex, LayerKind, MemoryError, MemoryImage, write_base, write_diff};
use crate::pages::{PAGE_SIZE, PageSet};

/// What fails when a disk cannot be read.
const READING_DISK: &str = "read a guest's disk";

/// How much page data goes to the file in one call.
const BUFFER_BYTES: usize = 1 << 20;

/// The memory of a snapshot that is being written.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// All of it.
    Base(&'a MemoryImage),
    /// What is different from another snapshot's.
    Diff {
        /// The other snapshot's memory.
        parent: &'a MemoryImage,
        /// How to find the other snapshot.
        parent_name: &'a str,
        /// The memory.
        current: &'a MemoryImage,
        /// The pages that may be different. All others are known not to be.
        changed: &'a PageSet,
    },
}

impl Memory<'_> {
    fn current(&self) -> &MemoryImage {
        match self {
            Self::Base(image) | Self::Diff { current: image, .. } => image,
        }
    }

    fn kind(&self) -> LayerKind {
        match self {
            Self::Base(_) => LayerKind::Base,
            Self::Diff { .. } => LayerKind::Diff,
        }
    }

    fn parent(&self) -> Result<Option<Parent>, MemoryError> {
        match self {
            Self::Base(_) => Ok(None),
            Self::Diff {
                parent,
                parent_name,
                ..
            } => Ok(Some(Parent {
                memory_hash: parent.hash()?,
                name: (*parent_name).to_owned(),
            })),
        }
    }
}

/// Why a snapshot could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The file could not be written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file, or its directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The bytes could not be written.
    #[error("cannot write the snapshot")]
    Out(#[from] io::Error),
    /// The memory could not be read or written.
    #[error("cannot write the memory of the snapshot")]
    Memory(#[from] MemoryError),
    /// What should be written does not fit together.
    #[error("this would be no snapshot: {0}")]
    Contradiction(&'static str),
    /// A section is larger than a reader would take.
    #[error("the {section} of the snapshot would have {length} bytes; the limit is {limit}")]
    TooLarge {
        /// Which section.
        section: &'static str,
        /// Its length.
        length: u64,
        /// The most it may have.
        limit: u64,
    },
    /// The machine's state could not be encoded.
    #[error("cannot encode the machine's state")]
    State(#[source] FormatError),
    /// The manifest could not be encoded.
    #[error("cannot encode the manifest")]
    Manifest(#[source] serde_json::Error),
}

/// Writes a snapshot to the file `path`, which is then complete and on disk, or not there.
///
/// `disk` is what the guest has written to a disk of its own: all of it is written, whatever the
/// memory is based on, and nobody may change it meanwhile. What the manifest says of the memory's hash
/// and of a parent is filled in here.
pub fn write_file(
    path: &Path,
    memory: Memory<'_>,
    disk: Option<&File>,
    contents: &Contents,
) -> Result<SnapshotId, WriteError> {
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| WriteError::Io {
            action,
            path,
            source,
        }
    };
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new("."));
    // Gone when this returns early. After a crash, a hidden file of this prefix is left.
    let mut temporary = tempfile::Builder::new()
        .prefix(".partial-")
        .tempfile_in(directory)
        .map_err(io_error("create a file in", directory))?;
    let id = write(temporary.as_file_mut(), memory, disk, contents)?;
    temporary
        .as_file()
        .sync_all()
        .map_err(io_error("write", path))?;
    let persisted = temporary.persist(path).map_err(|error| error.error);
    persisted.map_err(io_error("create", path))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("write", directory))?;
    Ok(id)
}

/// Writes a snapshot to `out`, which is empty, as [`write_file`] does.
pub fn write<W: Write + Seek>(
    out: W,
    memory: Memory<'_>,
    disk: Option<&File>,
    contents: &Contents,
) -> Result<SnapshotId, WriteError> {
    let image = memory.current();
    let mut contents = contents.clone();
    contents.manifest.parent = memory.parent()?;
    if let Some(what) = contents.contradiction(image.bytes(), memory.kind()) {
        return Err(WriteError::Contradiction(what));
    }
    contents.manifest.memory_hash = Some(image.hash()?);

    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    // The header comes last, so that a file that was cut off is none.
    out.write_all(&[0; HEADER_BYTES])?;
    let (index, out) = match memory {
        Memory::Base(image) => write_base(image, out)?,
        Memory::Diff {
            parent,
            current,
            changed,
            ..
        } => write_diff(parent, current, changed, out)?,
    };
    let mut sections = Sections::new(out);
    sections.pages(&sections::PAGES, &index)?;
    let disk_index = disk.map(|disk| sections.disk(disk)).transpose()?;
    sections.finish(&contents, &index, disk_index.as_ref())
}

/// The sections behind the page data.
struct Sections<W: Write + Seek> {
    out: BufWriter<W>,
    id: IdHasher,
    written: Vec<Section>,
    position: u64,
}

impl<W: Write + Seek> Sections<W> {
    /// `out` stands at the end of the memory's pages, which follow the header.
    fn new(out: BufWriter<W>) -> Self {
        Self {
            out,
            id: IdHasher::new(),
            written: Vec::new(),
            position: HEADER_BYTES as u64,
        }
    }

    /// Notes that the pages of `index` have been written.
    fn pages(&mut self, kind: &Kind, index: &LayerIndex) -> Result<(), WriteError> {
        self.entry(kind, index.stored_pages() * PAGE_SIZE, 0)
    }

    /// Writes the pages of a disk.
    fn disk(&mut self, disk: &File) -> Result<LayerIndex, WriteError> {
        let bytes = disk
            .metadata()
            .map_err(MemoryError::io(READING_DISK))?
            .len();
        let (index, _) = crate::memory::write_file(disk, bytes, READING_DISK, &mut self.out)?;
        self.pages(&sections::DISK_PAGES, &index)?;
        Ok(index)
    }

    fn entry(&mut self, kind: &Kind, length: u64, checksum: u32) -> Result<(), WriteError> {
        if length > kind.limit {
            return Err(WriteError::TooLarge {
                section: kind.name,
                length,
                limit: kind.limit,
            });
        }
        let section = Section {
            id: kind.id,
            version: kind.version,
            skippable: kind.skippable,
            offset: self.position,
            length,
            checksum,
        };
        self.id.section(&section);
        self.written.push(section);
        self.position += length;
        Ok(())
    }

    fn section(&mut self, kind: &Kind, content: &[u8]) -> Result<(), WriteError> {
        self.entry(kind, content.len() as u64, crc32c::crc32c(content))?;
        self.id.content(content);
        self.out.write_all(content)?;
        Ok(())
    }

    fn finish(
        mut self,
        contents: &Contents,
        index: &LayerIndex,
        disk: Option<&LayerIndex>,
    ) -> Result<SnapshotId, WriteError> {
        let mut manifest =
            serde_json::to_vec_pretty(&contents.manifest).map_err(WriteError::Manifest)?;
        manifest.push(b'\n');
        let state = encode_state(&contents.state).map_err(WriteError::State)?;
        self.section(&sections::MANIFEST, &manifest)?;
        self.section(&sections::STATE, &state)?;
        self.section(&sections::GUEST, &contents.guest)?;
        self.section(&sections::MEMORY, &index.encode())?;
        if let Some(working_set) = &contents.working_set {
            self.section(&sections::WORKING_SET, &working_set.encode())?;
        }
        if let Some(disk) = disk {
            self.section(&sections::DISK, &disk.encode())?;
        }
        let header = Header {
            file_bytes: self.position,
            id: self.id.finish(),
            sections: self.written,
        };
        let page = header
            .encode()
            .ok_or(WriteError::Contradiction("it has too many sections"))?;
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&page)?;
        self.out.flush()?;
        Ok(header.id)
    }
}
