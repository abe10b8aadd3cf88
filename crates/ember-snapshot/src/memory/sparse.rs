//! Files with holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;

use super::CHUNK_BYTES;
use crate::pages::{PAGE_SIZE, PageRun};

/// Calls `visit` with the runs of pages of `file` that are not holes, in ascending order.
///
/// Uses the file's position for nothing, though the calls move it: they take all offsets as
/// arguments, so that several threads can do this at once.
pub(super) fn data_runs(
    file: &File,
    bytes: u64,
    mut visit: impl FnMut(PageRun) -> io::Result<()>,
) -> io::Result<()> {
    let mut position = 0;
    while position < bytes {
        let start = match seek(file, SeekFrom::Data(position)) {
            Ok(start) => start,
            // There is no data from here on.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(bytes);
        // What is stored in larger units than pages (huge pages) begins and ends with a page.
        let (first, after) = (start / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        position = after * PAGE_SIZE;
        match PageRun::new(first, after.saturating_sub(first)) {
            Some(run) => visit(run)?,
            None => break,
        }
    }
    Ok(())
}

/// Calls `visit` with the first page and the content of the runs, at most a chunk at a time.
pub(crate) fn read_runs<E: From<io::Error>>(
    file: &File,
    bytes: u64,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = Vec::new();
    let mut failed = None;
    let walked = data_runs(file, bytes, |run| {
        for piece in run.pieces(CHUNK_BYTES / PAGE_SIZE) {
            let length = usize::try_from(piece.bytes()).map_err(io::Error::other)?;
            buffer.resize(length, 0);
            file.read_exact_at(&mut buffer, piece.offset())?;
            if let Err(error) = visit(piece.start(), &buffer) {
                failed = Some(error);
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(())
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(walked?),
    }
}

/// Copies what is in `from` to the same place in `to`, which is empty; holes stay holes.
pub(crate) fn copy(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    data_runs(from, bytes, |run| {
        let end = run.offset() + run.bytes();
        let mut position = run.offset();
        while position < end {
            let length = usize::try_from(end - position).unwrap_or(usize::MAX);
            let (mut at, mut goes) = (position, position);
            match copy_file_range(from, Some(&mut at), to, Some(&mut goes), length) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(copied) => position += copied as u64,
                Err(Errno::INTR) => {}
                // Huge pages, or files of different kinds: the kernel has no short way.
                Err(Errno::INVAL | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    return copy_by_hand(from, to, position, end);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    })
}

fn copy_by_hand(from: &File, to: &File, mut position: u64, end: u64) -> io::Result<()> {
    let mut buffer = Vec::new();
    while position < end {
        let length = (end - position).min(CHUNK_BYTES);
        buffer.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        from.read_exact_at(&mut buffer, position)?;
        to.write_all_at(&buffer, position)?;
        position += length;
    }
    Ok(())
}
