//! A table of metadata: a byte stream that is stored in compressed blocks of 8 KiB.

use super::WriteError;

const BLOCK: usize = 8192;
/// In a block's header: the block is stored as it is.
const STORED: u16 = 0x8000;

/// A table that is being written.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// Finished blocks, each with its header.
    blocks: Vec<u8>,
    /// Where each finished block begins.
    starts: Vec<u32>,
    /// The block being filled: at most `BLOCK` bytes.
    open: Vec<u8>,
    length: usize,
    overflown: bool,
}

/// A position in a table: where the block is stored, and where in the block as it was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reference {
    pub(super) block: u32,
    pub(super) offset: u16,
}

impl Reference {
    /// As the superblock holds it.
    pub(super) fn packed(self) -> u64 {
        u64::from(self.block) << 16 | u64::from(self.offset)
    }
}

impl Metadata {
    /// Where the next byte will be.
    pub(super) fn here(&mut self) -> Result<Reference, WriteError> {
        if self.open.len() == BLOCK {
            self.close_block();
        }
        if self.overflown {
            return Err(too_large());
        }
        Ok(Reference {
            block: u32::try_from(self.blocks.len()).map_err(|_| too_large())?,
            offset: u16::try_from(self.open.len()).map_err(|_| too_large())?,
        })
    }

    pub(super) fn put(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            if self.open.len() == BLOCK {
                self.close_block();
            }
            let room = BLOCK - self.open.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.open.extend_from_slice(now);
            bytes = later;
        }
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// How many bytes were put in.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The table as it is stored.
    pub(super) fn finish(self) -> Result<Vec<u8>, WriteError> {
        self.finish_with_blocks().map(|(bytes, _)| bytes)
    }

    /// The table as it is stored, and where in it each block begins.
    pub(super) fn finish_with_blocks(mut self) -> Result<(Vec<u8>, Vec<u32>), WriteError> {
        if !self.open.is_empty() {
            self.close_block();
        }
        if self.overflown {
            return Err(too_large());
        }
        Ok((self.blocks, self.starts))
    }

    fn close_block(&mut self) {
        match u32::try_from(self.blocks.len()) {
            Ok(start) => self.starts.push(start),
            // Said by the next call that can fail.
            Err(_) => self.overflown = true,
        }
        let compressed = lz4_flex::block::compress(&self.open);
        let (bytes, flag) = if compressed.len() < self.open.len() {
            (&compressed, 0)
        } else {
            (&self.open, STORED)
        };
        // At most `BLOCK`, which leaves the flag's bit free.
        let size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.blocks.extend_from_slice(&(size | flag).to_le_bytes());
        self.blocks.extend_from_slice(bytes);
        self.open.clear();
    }
}

fn too_large() -> WriteError {
    WriteError::TooLarge("more than 4 GiB of metadata")
}
