//! A temporary file that holds the contents of an image's files until the image is written.
//!
//! It has no name: whatever becomes of this process, nothing is left, and nothing of an archive is
//! ever a file of this host that somebody could open. It is on the disk of the cache, since `/tmp`
//! may be memory.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// What is written at once.
const BUFFER: usize = 1 << 20;

/// A spool that is being filled.
#[derive(Debug)]
pub(crate) struct Spool {
    file: Arc<File>,
    output: BufWriter<File>,
    position: u64,
}

/// A file's contents in a spool. They can be read once the spool has been [finished](Spool::finish).
#[derive(Debug)]
pub(crate) struct Spooled {
    file: Arc<File>,
    start: u64,
    length: u64,
}

impl Spool {
    /// An empty one, on the disk that `directory` is on.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        Ok(Self {
            output: BufWriter::with_capacity(BUFFER, file.try_clone()?),
            file: Arc::new(file),
            position: 0,
        })
    }

    /// Takes in all of `contents`. What it had read when it fails takes room, and nothing else.
    pub(crate) fn take(&mut self, contents: &mut dyn Read) -> io::Result<Spooled> {
        let start = self.position;
        let mut length = 0;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = match contents.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.output.write_all(&buffer[..count])?;
            self.position += count as u64;
            length += count as u64;
        }
        Ok(Spooled {
            file: Arc::clone(&self.file),
            start,
            length,
        })
    }

    /// Writes what is still in memory.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl Spooled {
    /// Reads them from the beginning.
    pub(crate) fn reader(&self) -> SpooledReader<'_> {
        SpooledReader {
            file: &self.file,
            position: self.start,
            left: self.length,
        }
    }
}

/// See [`Spooled::reader`].
#[derive(Debug)]
pub(crate) struct SpooledReader<'a> {
    file: &'a File,
    position: u64,
    left: u64,
}

impl Read for SpooledReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..room], self.position)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
