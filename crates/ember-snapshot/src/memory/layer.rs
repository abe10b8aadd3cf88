//! One layer of a guest's memory: which pages it has, and where.

use std::fmt;
use std::io;

use crate::pages::{MAX_MEMORY_BYTES, PAGE_SIZE, PageRun};
use crate::source::PageSource;

/// What a layer is to the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// The first: pages that it does not have are zero.
    Base,
    /// What changed: pages that it does not have are those of the layer below.
    Diff,
}

/// What a layer says of a run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// They are zero now. Only in a diff.
    Zero,
    /// Their content is in the layer, from its stored page `first` on.
    Stored {
        /// Counted from the layer's first stored page.
        first: u64,
    },
}

/// A run of pages of which a layer says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The pages.
    pub run: PageRun,
    /// What they contain.
    pub content: Content,
}

/// Why bytes are not the index of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidIndex {
    /// There are more or fewer bytes than its head says.
    #[error("the index of the memory has {found} bytes, and not as many as its head says")]
    Length {
        /// What follows from its head, as far as that makes sense.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// The size is none that a memory can have.
    #[error("the index of the memory is for {0} bytes, which no memory has")]
    Size(u64),
    /// The kind is none that is known.
    #[error("the memory is a layer of the unknown kind {0}")]
    Kind(u64),
    /// An extent is empty, overlaps another one, ends beyond the memory or makes no sense.
    #[error("extent {0} of the memory is out of order, out of range or of an unknown kind")]
    Extent(u64),
}

/// What the encoding of an index begins with: size of the memory, kind of the layer, number of
/// extents.
const HEAD_BYTES: usize = 24;
/// First page, number of pages, kind of content.
const EXTENT_BYTES: usize = 24;
/// CRC-32C of a stored page.
const CHECKSUM_BYTES: usize = 4;

const KIND_BASE: u64 = 0;
const KIND_DIFF: u64 = 1;
const CONTENT_STORED: u64 = 0;
const CONTENT_ZERO: u64 = 1;

/// Which pages a layer has, where, and what their checksums are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    memory_bytes: u64,
    kind: LayerKind,
    extents: Vec<Extent>,
    /// One for each stored page.
    checksums: Vec<u32>,
}

impl LayerIndex {
    /// The caller has kept the rules that [`decode`](Self::decode) checks.
    pub(super) fn new(
        memory_bytes: u64,
        kind: LayerKind,
        extents: Vec<Extent>,
        checksums: Vec<u32>,
    ) -> Self {
        Self {
            memory_bytes,
            kind,
            extents,
            checksums,
        }
    }

    /// The size of the memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Base or diff.
    pub fn kind(&self) -> LayerKind {
        self.kind
    }

    /// Its extents, in ascending order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// How many pages the layer stores.
    pub fn stored_pages(&self) -> u64 {
        self.checksums.len() as u64
    }

    /// Writes the index as bytes, all numbers little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(
            HEAD_BYTES + self.extents.len() * EXTENT_BYTES + self.checksums.len() * CHECKSUM_BYTES,
        );
        let kind = match self.kind {
            LayerKind::Base => KIND_BASE,
            LayerKind::Diff => KIND_DIFF,
        };
        bytes.extend(self.memory_bytes.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((self.extents.len() as u64).to_le_bytes());
        for extent in &self.extents {
            let content = match extent.content {
                Content::Stored { .. } => CONTENT_STORED,
                Content::Zero => CONTENT_ZERO,
            };
            bytes.extend(extent.run.start().to_le_bytes());
            bytes.extend(extent.run.pages().to_le_bytes());
            bytes.extend(content.to_le_bytes());
        }
        for checksum in &self.checksums {
            bytes.extend(checksum.to_le_bytes());
        }
        bytes
    }

    /// Reads an index from what [`encode`](Self::encode) wrote.
    ///
    /// Extents have to be in ascending order and their content is stored in that order without
    /// gaps, so that no stored page can stand for more than one page of the guest. What this
    /// allocates is in proportion to `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidIndex> {
        let wrong_length = |expected| InvalidIndex::Length {
            expected,
            found: bytes.len() as u64,
        };
        let (head, rest) = bytes
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or(wrong_length(HEAD_BYTES as u64))?;
        let [memory_bytes, kind, count] = head.as_chunks::<8>().0 else {
            return Err(wrong_length(HEAD_BYTES as u64));
        };
        let memory_bytes = u64::from_le_bytes(*memory_bytes);
        let kind = match u64::from_le_bytes(*kind) {
            KIND_BASE => LayerKind::Base,
            KIND_DIFF => LayerKind::Diff,
            other => return Err(InvalidIndex::Kind(other)),
        };
        super::checked_size(memory_bytes).map_err(|_| InvalidIndex::Size(memory_bytes))?;

        // A count that runs over cannot be right either.
        let extent_bytes = u64::from_le_bytes(*count)
            .checked_mul(EXTENT_BYTES as u64)
            .filter(|length| *length <= rest.len() as u64)
            .ok_or(wrong_length(u64::MAX))?;
        let (extents_part, checksums_part) = usize::try_from(extent_bytes)
            .ok()
            .and_then(|length| rest.split_at_checked(length))
            .ok_or(wrong_length(HEAD_BYTES as u64 + extent_bytes))?;
        let (extents, stored) = decode_extents(extents_part, kind, memory_bytes)?;
        // Nothing runs over: there are no more than 2^32 pages.
        if checksums_part.len() as u64 != stored * CHECKSUM_BYTES as u64 {
            let checksum_bytes = stored * CHECKSUM_BYTES as u64;
            return Err(wrong_length(
                HEAD_BYTES as u64 + extent_bytes + checksum_bytes,
            ));
        }
        let (checksums, _) = checksums_part.as_chunks::<CHECKSUM_BYTES>();
        let checksums = checksums.iter().copied().map(u32::from_le_bytes).collect();
        Ok(Self::new(memory_bytes, kind, extents, checksums))
    }
}

/// The extents in `bytes` and the number of stored pages.
fn decode_extents(
    bytes: &[u8],
    kind: LayerKind,
    memory_bytes: u64,
) -> Result<(Vec<Extent>, u64), InvalidIndex> {
    const { assert!(MAX_MEMORY_BYTES / PAGE_SIZE <= 1 << 32) };
    let (encoded, _) = bytes.as_chunks::<EXTENT_BYTES>();
    let mut extents = Vec::with_capacity(encoded.len());
    let (mut lowest, mut stored) = (0, 0);
    for (number, extent) in (0..).zip(encoded) {
        let invalid = InvalidIndex::Extent(number);
        let [start, pages, content] = extent.as_chunks::<8>().0 else {
            return Err(invalid);
        };
        let run = PageRun::new(u64::from_le_bytes(*start), u64::from_le_bytes(*pages))
            .filter(|run| run.start() >= lowest && run.end() <= memory_bytes / PAGE_SIZE)
            .ok_or(invalid)?;
        let content = match u64::from_le_bytes(*content) {
            CONTENT_STORED => Content::Stored { first: stored },
            CONTENT_ZERO if kind == LayerKind::Diff => Content::Zero,
            _ => return Err(invalid),
        };
        if content != Content::Zero {
            stored += run.pages();
        }
        lowest = run.end();
        extents.push(Extent { run, content });
    }
    Ok((extents, stored))
}

/// A layer: its index and where its pages can be read.
pub struct Layer {
    index: LayerIndex,
    source: Box<dyn PageSource>,
    data_offset: u64,
}

impl Layer {
    /// A layer whose stored pages are in `source` from `data_offset` on.
    pub fn new(index: LayerIndex, source: Box<dyn PageSource>, data_offset: u64) -> Self {
        Self {
            index,
            source,
            data_offset,
        }
    }

    /// Which pages it has.
    pub fn index(&self) -> &LayerIndex {
        &self.index
    }

    /// Reads stored pages from `first` on into `buf` and checks them.
    pub(super) fn read_stored(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        let offset = first
            .checked_mul(PAGE_SIZE)
            .and_then(|offset| offset.checked_add(self.data_offset))
            .ok_or(io::ErrorKind::InvalidInput)?;
        self.source.read_at(offset, buf)?;
        let pages = buf.chunks(PAGE_SIZE as usize);
        let from = usize::try_from(first).map_err(io::Error::other)?;
        let checksums = self.index.checksums.get(from..).unwrap_or_default();
        if checksums.len() < pages.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, (page, checksum)) in (first..).zip(pages.zip(checksums)) {
            if crc32c::crc32c(page) != *checksum {
                let message = format!("stored page {number} is damaged: its checksum is wrong");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer")
            .field("kind", &self.index.kind)
            .field("memory_bytes", &self.index.memory_bytes)
            .field("extents", &self.index.extents.len())
            .field("stored_pages", &self.index.stored_pages())
            .finish_non_exhaustive()
    }
}
