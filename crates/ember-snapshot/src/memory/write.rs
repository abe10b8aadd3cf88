//! Writing layers.

use std::fs::File;
use std::io::{self, Write};

use super::layer::{Content, Extent, LayerIndex, LayerKind};
use super::{CHUNK_BYTES, MemoryError, MemoryImage, checked_size, is_zero, sparse};
use crate::pages::{PAGE_SIZE, PageRun, PageSet};
use crate::source::PageSource;

/// Writes the stored pages of a layer one after the other, and makes its index meanwhile.
#[derive(Debug)]
pub struct LayerWriter<W> {
    out: W,
    memory_bytes: u64,
    kind: LayerKind,
    extents: Vec<Extent>,
    checksums: Vec<u32>,
    /// The lowest page that may come next.
    next: u64,
}

impl<W: Write> LayerWriter<W> {
    /// A layer of a memory of `memory_bytes` bytes whose stored pages go to `out`.
    pub fn new(out: W, memory_bytes: u64, kind: LayerKind) -> Result<Self, MemoryError> {
        Ok(Self {
            out,
            memory_bytes: checked_size(memory_bytes)?,
            kind,
            extents: Vec::new(),
            checksums: Vec::new(),
            next: 0,
        })
    }

    /// Writes a page, all of them in ascending order. One of zeroes takes no room.
    pub fn page(
        &mut self,
        number: u64,
        bytes: &[u8; PAGE_SIZE as usize],
    ) -> Result<(), MemoryError> {
        if number < self.next {
            return Err(MemoryError::Order(number));
        }
        let run = PageRun::new(number, 1)
            .filter(|run| run.end() <= self.memory_bytes / PAGE_SIZE)
            .ok_or(MemoryError::Range {
                offset: number.saturating_mul(PAGE_SIZE),
                length: bytes.len(),
                memory_bytes: self.memory_bytes,
            })?;
        self.next = run.end();
        if is_zero(bytes) {
            if self.kind == LayerKind::Diff {
                self.extend(run, Content::Zero);
            }
            return Ok(());
        }
        self.out
            .write_all(bytes)
            .map_err(MemoryError::io("write the pages of a snapshot"))?;
        let first = self.checksums.len() as u64;
        self.checksums.push(crc32c::crc32c(bytes));
        self.extend(run, Content::Stored { first });
        Ok(())
    }

    /// Adds to the last extent if the page continues it.
    fn extend(&mut self, run: PageRun, content: Content) {
        if let Some(last) = self.extents.last_mut()
            && last.run.end() == run.start()
            && matches!(last.content, Content::Zero) == matches!(content, Content::Zero)
            && let Some(longer) = PageRun::new(last.run.start(), last.run.pages() + 1)
        {
            last.run = longer;
        } else {
            self.extents.push(Extent { run, content });
        }
    }

    /// The index of what was written, and where it went.
    pub fn finish(self) -> (LayerIndex, W) {
        let index = LayerIndex::new(self.memory_bytes, self.kind, self.extents, self.checksums);
        (index, self.out)
    }
}

/// Writes all of `image` as a base to `out`.
pub fn write_base<W: Write>(image: &MemoryImage, out: W) -> Result<(LayerIndex, W), MemoryError> {
    write_file(image.file(), image.bytes(), "read a file in memory", out)
}

/// Writes what is in `file`, of `bytes` bytes, as a base to `out`. `reading` is what fails when it
/// cannot be read.
pub(crate) fn write_file<W: Write>(
    file: &File,
    bytes: u64,
    reading: &'static str,
    out: W,
) -> Result<(LayerIndex, W), MemoryError> {
    let mut writer = LayerWriter::new(out, bytes, LayerKind::Base)?;
    sparse::read_runs(file, bytes, |first, bytes| {
        for (number, page) in (first..).zip(bytes.as_chunks().0) {
            writer.page(number, page).map_err(Stop::Write)?;
        }
        Ok(())
    })
    .map_err(|stop| match stop {
        Stop::Write(error) => error,
        Stop::Read(source) => MemoryError::io(reading)(source),
    })?;
    Ok(writer.finish())
}

/// Why going through an image ended early.
enum Stop {
    Read(io::Error),
    Write(MemoryError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Writes a diff to `out`: those of the pages `changed` that `current` has differently from
/// `parent`.
///
/// `current` has a memory of the same size; nobody compares the pages that are not in `changed`.
pub fn write_diff<W: Write>(
    parent: &MemoryImage,
    current: &dyn PageSource,
    changed: &PageSet,
    out: W,
) -> Result<(LayerIndex, W), MemoryError> {
    let mut writer = LayerWriter::new(out, parent.bytes(), LayerKind::Diff)?;
    let (mut before, mut now) = (Vec::new(), Vec::new());
    let pieces = |run: &PageRun| run.pieces(CHUNK_BYTES / PAGE_SIZE);
    for run in changed.runs().iter().flat_map(pieces) {
        let range = |length| MemoryError::Range {
            offset: run.offset(),
            length,
            memory_bytes: parent.bytes(),
        };
        let length = usize::try_from(run.bytes()).map_err(|_| range(usize::MAX))?;
        if run.end() > parent.bytes() / PAGE_SIZE {
            return Err(range(length));
        }
        before.resize(length, 0);
        now.resize(length, 0);
        parent
            .read_at(run.offset(), &mut before)
            .map_err(MemoryError::io(
                "read the memory that a snapshot is based on",
            ))?;
        current
            .read_at(run.offset(), &mut now)
            .map_err(MemoryError::io("read the memory of a guest"))?;
        let pages = before.as_chunks().0.iter().zip(now.as_chunks().0);
        for (number, (before, now)) in (run.start()..).zip(pages) {
            if before != now {
                writer.page(number, now)?;
            }
        }
    }
    Ok(writer.finish())
}
