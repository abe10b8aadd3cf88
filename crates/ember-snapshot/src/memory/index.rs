//! Many layers as one.

use super::layer::{Content, Extent, LayerIndex, LayerKind};
use crate::pages::PageRun;

/// Why layers do not make a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidChain {
    /// There is none.
    #[error("a memory needs at least one layer")]
    Empty,
    /// The first is no base, or one above it is.
    #[error("layer {0} is in the wrong place: the first has to be a base and all others diffs")]
    Kind(usize),
    /// They are not for memories of one size.
    #[error("layer {layer} is for a memory of {found} bytes and those below for one of {expected}")]
    Size {
        /// The layer, counted from the base.
        layer: usize,
        /// The size of the base's memory.
        expected: u64,
        /// The size of this layer's memory.
        found: u64,
    },
}

/// Pages of the guest whose content is in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The pages.
    pub run: PageRun,
    /// The layer that has them, counted from the base.
    pub layer: usize,
    /// The stored page of that layer with which they begin.
    pub first: u64,
}

impl Piece {
    /// The part of it that lies in `run`.
    pub(super) fn within(&self, run: &PageRun) -> Option<Self> {
        let part = self.run.intersection(run)?;
        Some(Self {
            run: part,
            layer: self.layer,
            first: self.first + (part.start() - self.run.start()),
        })
    }
}

/// Where each page of a memory is found, over all layers. Pages in no piece are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageIndex {
    memory_bytes: u64,
    pieces: Vec<Piece>,
}

impl PageIndex {
    /// Merges the layers of a memory, base first.
    pub fn merge<'a>(
        layers: impl IntoIterator<Item = &'a LayerIndex>,
    ) -> Result<Self, InvalidChain> {
        let mut merged: Option<Self> = None;
        for (number, layer) in layers.into_iter().enumerate() {
            let below = match (merged.take(), layer.kind()) {
                (None, LayerKind::Base) => Self {
                    memory_bytes: layer.memory_bytes(),
                    pieces: Vec::new(),
                },
                (Some(below), LayerKind::Diff) => below,
                _ => return Err(InvalidChain::Kind(number)),
            };
            if below.memory_bytes != layer.memory_bytes() {
                return Err(InvalidChain::Size {
                    layer: number,
                    expected: below.memory_bytes,
                    found: layer.memory_bytes(),
                });
            }
            merged = Some(below.covered(number, layer.extents()));
        }
        merged.ok_or(InvalidChain::Empty)
    }

    /// The index with `extents` of `layer` on top.
    fn covered(self, layer: usize, extents: &[Extent]) -> Self {
        let mut pieces = Vec::with_capacity(self.pieces.len() + extents.len());
        let mut above = extents.iter().peekable();
        for piece in &self.pieces {
            let mut start = piece.run.start();
            let keep = |start, end: u64| {
                PageRun::new(start, end.saturating_sub(start)).and_then(|run| piece.within(&run))
            };
            while above.next_if(|extent| extent.run.end() <= start).is_some() {}
            // Those that reach beyond this piece are still needed for the next.
            for extent in above.clone() {
                if extent.run.start() >= piece.run.end() {
                    break;
                }
                pieces.extend(keep(start, extent.run.start()));
                start = extent.run.end();
            }
            pieces.extend(keep(start, piece.run.end()));
        }
        for extent in extents {
            if let Content::Stored { first } = extent.content {
                pieces.push(Piece {
                    run: extent.run,
                    layer,
                    first,
                });
            }
        }
        // Two sorted halves: the standard sort merges them in linear time.
        pieces.sort_by_key(|piece| piece.run.start());
        Self {
            memory_bytes: self.memory_bytes,
            pieces,
        }
    }

    /// The size of the memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// All pieces, in ascending order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many pages are stored anywhere: all others are zero.
    pub fn stored_pages(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.run.pages()).sum()
    }

    /// The parts of pieces that lie in `run`, in ascending order.
    pub fn within(&self, run: PageRun) -> impl Iterator<Item = Piece> + '_ {
        let first = self
            .pieces
            .partition_point(|piece| piece.run.end() <= run.start());
        self.pieces
            .get(first..)
            .unwrap_or_default()
            .iter()
            .map_while(move |piece| piece.within(&run))
    }
}
