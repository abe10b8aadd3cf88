//! Writes root file systems as squashfs images.
//!
//! The format is that of the kernel's `fs/squashfs/squashfs_fs.h`, version 4.0, compressed with
//! LZ4: of the compressors that a stock kernel can read it takes the fewest instructions to read,
//! and every clone reads. The writer is here, rather than in a tool to be installed, because an
//! embedder's machine has no such tool; because owners and modes come from the [tree](super::tree)
//! and not from the disk; and because equal trees must give equal images, byte for byte.
//!
//! What it leaves out, as the format allows: fragments (a file's last block is a short block of
//! its own, so that reading a small file does not decompress its neighbours), extended attributes,
//! the export table.

mod metadata;
mod superblock;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spool::Spooled;
use super::tree::{Entry, Node};
use metadata::{Metadata, Reference};
pub(crate) use superblock::{NotSquashfs, recognise};

const MAGIC: u32 = 0x7371_7368;
pub(crate) const SUPERBLOCK_SIZE: u64 = 96;
const BLOCK_LOG: u16 = 17;
const BLOCK_SIZE: usize = 1 << BLOCK_LOG;
const COMPRESSOR_LZ4: u16 = 5;
/// "No fragments", "no extended attributes", "compressor options follow the superblock".
const FLAGS: u16 = 0x0010 | 0x0200 | 0x0400;
/// In place of the position of a table that is not there, or the index of a fragment.
const NONE_64: u64 = u64::MAX;
const NONE_32: u32 = u32::MAX;
/// In a block's size: the block is stored as it is.
const STORED: u32 = 1 << 24;
/// Block devices and page caches come in pages.
const PADDING: u64 = 4096;

const DIRECTORY: u16 = 1;
const FILE: u16 = 2;
const LINK: u16 = 3;
const LARGE_DIRECTORY: u16 = 8;
const LARGE_FILE: u16 = 9;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("cannot write the image {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {} into the image", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the tree is too large for a squashfs image: {0}")]
    TooLarge(&'static str),
    #[error("an image's root must be a directory")]
    RootIsNoDirectory,
}

/// Writes `root` as an image to the new file `path`.
pub(crate) fn write(root: &Entry, path: &Path) -> Result<(), WriteError> {
    let failed = |source| WriteError::Write {
        path: path.to_owned(),
        source,
    };
    if !matches!(root.node, Node::Directory(_)) {
        return Err(WriteError::RootIsNoDirectory);
    }
    let file = File::create(path).map_err(failed)?;
    let mut writer = Writer {
        path,
        output: BufWriter::with_capacity(BLOCK_SIZE, file),
        position: 0,
        inodes: Metadata::default(),
        directories: Metadata::default(),
        ids: Vec::new(),
        next_inode: 1,
        names: HashMap::new(),
        written: HashMap::new(),
        block: vec![0; BLOCK_SIZE],
        compressed: vec![0; lz4_flex::block::get_maximum_output_size(BLOCK_SIZE)],
    };

    writer.put(&[0; SUPERBLOCK_SIZE as usize])?;
    // The LZ4 options, which the kernel insists on: a metadata block, stored, with the version of
    // LZ4's format (1) and no flags.
    writer.put(&0x8008_u16.to_le_bytes())?;
    writer.put(&1_u32.to_le_bytes())?;
    writer.put(&0_u32.to_le_bytes())?;

    let mut names = HashMap::new();
    let inodes = count(root, &mut names)?;
    names.retain(|_, names| *names > 1);
    writer.names = names;
    // The root's parent is an inode number that nothing has.
    let root = writer.entry(root, inodes + 1)?;
    writer
        .finish(root.reference, inodes)
        .map_err(|error| match error {
            FinishError::Write(error) => error,
            FinishError::Io(source) => failed(source),
        })
}

/// Counts inodes, and the names of each file that may have several.
fn count(entry: &Entry, names: &mut HashMap<FileId, u32>) -> Result<u32, WriteError> {
    let mut inodes = 1_u32;
    match &entry.node {
        Node::Directory(children) => {
            for child in children.values() {
                inodes = inodes
                    .checked_add(count(child, names)?)
                    .ok_or(WriteError::TooLarge("more than 2^32 files"))?;
            }
        }
        Node::Spooled(file) => {
            let names = names.entry(Arc::as_ptr(file)).or_default();
            *names += 1;
            if *names > 1 {
                inodes = 0;
            }
        }
        _ => {}
    }
    Ok(inodes)
}

/// What tells a spooled file from others while the tree is there. Never followed.
type FileId = *const Spooled;

struct Writer<'a> {
    path: &'a Path,
    output: BufWriter<File>,
    position: u64,
    inodes: Metadata,
    directories: Metadata,
    /// User and group ids; inodes hold indices into this.
    ids: Vec<u32>,
    next_inode: u32,
    /// How many names the files have that have more than one.
    names: HashMap<FileId, u32>,
    /// Those of them that have been written.
    written: HashMap<FileId, Inode>,
    block: Vec<u8>,
    compressed: Vec<u8>,
}

/// An inode that has been written, as its directory names it.
#[derive(Clone, Copy)]
struct Inode {
    reference: Reference,
    number: u32,
    /// The basic type, also of a large file or directory.
    kind: u16,
}

enum FinishError {
    Write(WriteError),
    Io(io::Error),
}

impl From<WriteError> for FinishError {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

impl From<io::Error> for FinishError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.output
            .write_all(bytes)
            .map_err(|source| WriteError::Write {
                path: self.path.to_owned(),
                source,
            })?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Writes `entry` and all below it: data to the image, inodes and listings to their tables.
    fn entry(&mut self, entry: &Entry, parent: u32) -> Result<Inode, WriteError> {
        let links = match &entry.node {
            Node::Spooled(file) => {
                let id = Arc::as_ptr(file);
                if let Some(inode) = self.written.get(&id) {
                    return Ok(*inode);
                }
                self.names.get(&id).copied().unwrap_or(1)
            }
            _ => 1,
        };
        // Numbered on the way down, since children name their parent; written on the way up,
        // since a listing names where its children's inodes are.
        let number = self.next_inode;
        self.next_inode += 1;
        match &entry.node {
            Node::Directory(children) => {
                let mut listed = Vec::with_capacity(children.len());
                for (name, child) in children {
                    listed.push((name.as_slice(), self.entry(child, number)?));
                }
                self.directory(entry, number, parent, &listed)
            }
            Node::File(path) => {
                let failed = |source| WriteError::Read {
                    path: path.clone(),
                    source,
                };
                let mut source = File::open(path).map_err(failed)?;
                self.file(entry, (number, links), &mut source, failed)
            }
            Node::Bytes(bytes) => {
                let path = PathBuf::from("(memory)");
                let failed = |source| WriteError::Read {
                    path: path.clone(),
                    source,
                };
                self.file(entry, (number, links), &mut bytes.as_slice(), failed)
            }
            Node::Spooled(file) => {
                let path = PathBuf::from("(temporary file)");
                let failed = |source| WriteError::Read {
                    path: path.clone(),
                    source,
                };
                let inode = self.file(entry, (number, links), &mut file.reader(), failed)?;
                if links > 1 {
                    self.written.insert(Arc::as_ptr(file), inode);
                }
                Ok(inode)
            }
            Node::Link(target) => {
                let size = u32::try_from(target.len())
                    .map_err(|_| WriteError::TooLarge("a link's target of more than 4 GiB"))?;
                let reference = self.inode(LINK, entry, number)?;
                self.inodes.u32(1); // links to it
                self.inodes.u32(size);
                self.inodes.put(target);
                Ok(Inode {
                    reference,
                    number,
                    kind: LINK,
                })
            }
        }
    }

    /// Begins an inode with what all kinds have in common.
    fn inode(&mut self, kind: u16, entry: &Entry, number: u32) -> Result<Reference, WriteError> {
        let user = self.id(entry.user)?;
        let group = self.id(entry.group)?;
        let reference = self.inodes.here()?;
        self.inodes.u16(kind);
        self.inodes.u16(entry.mode);
        self.inodes.u16(user);
        self.inodes.u16(group);
        self.inodes.u32(entry.modified);
        self.inodes.u32(number);
        Ok(reference)
    }

    fn id(&mut self, id: u32) -> Result<u16, WriteError> {
        let index = self.ids.iter().position(|known| *known == id);
        let index = index.unwrap_or_else(|| {
            self.ids.push(id);
            self.ids.len() - 1
        });
        u16::try_from(index).map_err(|_| WriteError::TooLarge("more than 65,535 owners"))
    }

    fn file(
        &mut self,
        entry: &Entry,
        (number, links): (u32, u32),
        source: &mut dyn Read,
        failed: impl Fn(io::Error) -> WriteError,
    ) -> Result<Inode, WriteError> {
        let start = self.position;
        let mut size = 0_u64;
        let mut blocks = Vec::new();
        loop {
            let mut filled = 0;
            while filled < BLOCK_SIZE {
                match source.read(&mut self.block[filled..]) {
                    Ok(0) => break,
                    Ok(more) => filled += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            if filled == 0 {
                break;
            }
            size += filled as u64;
            blocks.push(self.data_block(filled)?);
            if filled < BLOCK_SIZE {
                break;
            }
        }

        let narrow = u32::try_from(start).ok().zip(u32::try_from(size).ok());
        // The plain form has no count of names.
        let reference = if let (Some((start, size)), 1) = (narrow, links) {
            let reference = self.inode(FILE, entry, number)?;
            self.inodes.u32(start);
            self.inodes.u32(NONE_32); // fragment
            self.inodes.u32(0); // offset in the fragment
            self.inodes.u32(size);
            reference
        } else {
            let reference = self.inode(LARGE_FILE, entry, number)?;
            self.inodes.u64(start);
            self.inodes.u64(size);
            self.inodes.u64(0); // bytes saved by holes
            self.inodes.u32(links);
            self.inodes.u32(NONE_32); // fragment
            self.inodes.u32(0); // offset in the fragment
            self.inodes.u32(NONE_32); // extended attributes
            reference
        };
        for block in blocks {
            self.inodes.u32(block);
        }
        Ok(Inode {
            reference,
            number,
            kind: FILE,
        })
    }

    /// Writes the first `length` bytes of the buffer as a block of data, and says its size field.
    fn data_block(&mut self, length: usize) -> Result<u32, WriteError> {
        let data = &self.block[..length];
        if data.iter().all(|byte| *byte == 0) {
            return Ok(0); // a hole
        }
        let (stored, size) = match lz4_flex::block::compress_into(data, &mut self.compressed) {
            Ok(size) if size < length => (false, size),
            // Did not become smaller.
            _ => (true, length),
        };
        let bytes = if stored {
            &self.block[..size]
        } else {
            &self.compressed[..size]
        };
        self.output
            .write_all(bytes)
            .map_err(|source| WriteError::Write {
                path: self.path.to_owned(),
                source,
            })?;
        self.position += size as u64;
        // At most BLOCK_SIZE.
        let size = u32::try_from(size).map_err(|_| WriteError::TooLarge("a block"))?;
        Ok(if stored { size | STORED } else { size })
    }

    fn directory(
        &mut self,
        entry: &Entry,
        number: u32,
        parent: u32,
        children: &[(&[u8], Inode)],
    ) -> Result<Inode, WriteError> {
        let listing = self.directories.here()?;
        let length = self.listing(children)?;
        // The size that a directory states counts `.` and `..`, which are not in the listing.
        let size = length
            .checked_add(3)
            .ok_or(WriteError::TooLarge("a directory's listing of 4 GiB"))?;
        let subdirectories = children.iter().filter(|(_, child)| child.kind == DIRECTORY);
        let links = 2 + u32::try_from(subdirectories.count())
            .map_err(|_| WriteError::TooLarge("more than 2^32 directories in one"))?;

        let reference = if let Ok(size) = u16::try_from(size) {
            let reference = self.inode(DIRECTORY, entry, number)?;
            self.inodes.u32(listing.block);
            self.inodes.u32(links);
            self.inodes.u16(size);
            self.inodes.u16(listing.offset);
            self.inodes.u32(parent);
            reference
        } else {
            let reference = self.inode(LARGE_DIRECTORY, entry, number)?;
            self.inodes.u32(links);
            self.inodes.u32(size);
            self.inodes.u32(listing.block);
            self.inodes.u32(parent);
            self.inodes.u16(0); // no index: listings are searched from the front
            self.inodes.u16(listing.offset);
            self.inodes.u32(NONE_32); // extended attributes
            reference
        };
        Ok(Inode {
            reference,
            number,
            kind: DIRECTORY,
        })
    }

    /// Writes the listing of a directory and says how long it is.
    fn listing(&mut self, children: &[(&[u8], Inode)]) -> Result<u32, WriteError> {
        let mut length = 0_usize;
        let mut rest = children;
        while let Some((_, first)) = rest.first() {
            // One header covers at most 256 entries whose inodes are in one metadata block and
            // whose numbers are near the first one's.
            let run = rest
                .iter()
                .take(256)
                .take_while(|(_, child)| {
                    child.reference.block == first.reference.block
                        && difference(child.number, first.number).is_some()
                })
                .count();
            let (these, after) = rest.split_at(run);
            rest = after;

            let entries = u32::try_from(run - 1).unwrap_or(u32::MAX);
            self.directories.u32(entries);
            self.directories.u32(first.reference.block);
            self.directories.u32(first.number);
            length += 12;
            for (name, child) in these {
                let name_size = u16::try_from(name.len())
                    .ok()
                    .filter(|size| (1..=256).contains(size))
                    .ok_or(WriteError::TooLarge("a name of more than 256 bytes"))?;
                let difference = difference(child.number, first.number).unwrap_or_default();
                self.directories.u16(child.reference.offset);
                self.directories.put(&difference.to_le_bytes());
                self.directories.u16(child.kind);
                self.directories.u16(name_size - 1);
                self.directories.put(name);
                length += 8 + name.len();
            }
        }
        u32::try_from(length).map_err(|_| WriteError::TooLarge("a directory's listing of 4 GiB"))
    }

    fn finish(mut self, root: Reference, inodes: u32) -> Result<(), FinishError> {
        let inode_table = self.position;
        let table = std::mem::take(&mut self.inodes).finish()?;
        self.put(&table)?;
        let directory_table = self.position;
        let table = std::mem::take(&mut self.directories).finish()?;
        self.put(&table)?;

        // The table of ids: metadata blocks, then an index with the position of each.
        let mut ids = Metadata::default();
        for id in std::mem::take(&mut self.ids) {
            ids.u32(id);
        }
        let id_count = u16::try_from(ids.length() / 4)
            .map_err(|_| WriteError::TooLarge("more than 65,535 owners"))?;
        let first = self.position;
        let (table, blocks) = ids.finish_with_blocks()?;
        self.put(&table)?;
        let id_table = self.position;
        for block in blocks {
            self.put(&(first + u64::from(block)).to_le_bytes())?;
        }
        let bytes_used = self.position;
        let padding = bytes_used.next_multiple_of(PADDING) - bytes_used;
        self.put(&vec![0; padding as usize])?;

        let mut superblock = Vec::with_capacity(SUPERBLOCK_SIZE as usize);
        superblock.extend_from_slice(&MAGIC.to_le_bytes());
        superblock.extend_from_slice(&inodes.to_le_bytes());
        superblock.extend_from_slice(&0_u32.to_le_bytes()); // when it was made
        superblock.extend_from_slice(&(BLOCK_SIZE as u32).to_le_bytes());
        superblock.extend_from_slice(&0_u32.to_le_bytes()); // fragments
        for field in [COMPRESSOR_LZ4, BLOCK_LOG, FLAGS, id_count, 4, 0] {
            superblock.extend_from_slice(&field.to_le_bytes());
        }
        for field in [
            root.packed(),
            bytes_used,
            id_table,
            NONE_64, // extended attributes
            inode_table,
            directory_table,
            NONE_64, // fragments
            NONE_64, // export table
        ] {
            superblock.extend_from_slice(&field.to_le_bytes());
        }
        self.output.seek(SeekFrom::Start(0))?;
        self.output.write_all(&superblock)?;
        self.output.flush()?;
        Ok(())
    }
}

/// `number - base`, if it fits a directory entry.
fn difference(number: u32, base: u32) -> Option<i16> {
    i16::try_from(i64::from(number) - i64::from(base)).ok()
}

#[cfg(test)]
mod tests;
