//! A chain of layers behind one index.

use std::io;
use std::ops::Range;

use super::index::{InvalidChain, PageIndex};
use super::layer::Layer;
use super::{CHUNK_BYTES, MemoryError};
use crate::pages::{PAGE_SIZE, PageRun};
use crate::source::PageSource;

/// A guest's memory in layers, wherever they are. Every page that is read is checked.
#[derive(Debug)]
pub struct LayeredMemory {
    layers: Vec<Layer>,
    index: PageIndex,
}

impl LayeredMemory {
    /// Puts layers together, base first.
    pub fn new(layers: Vec<Layer>) -> Result<Self, InvalidChain> {
        let index = PageIndex::merge(layers.iter().map(Layer::index))?;
        Ok(Self { layers, index })
    }

    /// The size of the memory.
    pub fn bytes(&self) -> u64 {
        self.index.memory_bytes()
    }

    /// Where each page is.
    pub fn index(&self) -> &PageIndex {
        &self.index
    }

    /// The layers, base first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Calls `visit` with the offset and the content of everything that is stored, in ascending
    /// order and in chunks.
    pub(crate) fn read_pieces(
        &self,
        mut visit: impl FnMut(u64, &[u8]) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let mut buffer = Vec::new();
        for piece in self.index.pieces() {
            for run in piece.run.pieces(CHUNK_BYTES / PAGE_SIZE) {
                let read = |buffer: &mut Vec<u8>| {
                    buffer.resize(usize::try_from(run.bytes()).map_err(io::Error::other)?, 0);
                    self.read_at(run.offset(), buffer)
                };
                read(&mut buffer).map_err(MemoryError::io("read the pages of a snapshot"))?;
                visit(run.offset(), &buffer)?;
            }
        }
        Ok(())
    }
}

impl PageSource for LayeredMemory {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let length = buf.len() as u64;
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= self.bytes());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        if !offset.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let Some(run) = PageRun::new(offset / PAGE_SIZE, length / PAGE_SIZE) else {
            return Ok(());
        };
        buf.fill(0);
        for piece in self.index.within(run) {
            let layer = self.layers.get(piece.layer);
            let range = bytes_within(&piece.run, offset).and_then(|range| buf.get_mut(range));
            let (layer, part) = layer.zip(range).ok_or(io::ErrorKind::InvalidInput)?;
            layer.read_stored(piece.first, part)?;
        }
        Ok(())
    }
}

/// Where the bytes of `run` are in a buffer that begins at `offset`.
fn bytes_within(run: &PageRun, offset: u64) -> Option<Range<usize>> {
    let start = usize::try_from(run.offset().checked_sub(offset)?).ok()?;
    Some(start..start.checked_add(usize::try_from(run.bytes()).ok()?)?)
}
