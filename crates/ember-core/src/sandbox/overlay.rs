//! The file that a guest's disk is on that it writes to.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arcbox_ext4::error::FormatError;
use arcbox_ext4::{FormatOptions, Formatter};
use ember_snapshot::disk;

use crate::error::{Error, ErrorKind};
use crate::overlay::Overlay;
use crate::size::ByteSize;

/// What a group of blocks of ext4 has with blocks of 4 KiB: the file system is whole groups of them.
const GROUP: u64 = 128 << 20;
/// Far beyond what anybody writes over an image, and within what the formatter's numbers can say. The
/// index of a snapshot has room for some 1 TiB of it that is not zero.
pub(crate) const MOST: ByteSize = ByteSize::gib(4096);

/// A disk that somebody wants: its size in bytes, and where its file is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OverlayPlan {
    pub(crate) bytes: u64,
    pub(crate) directory: PathBuf,
}

impl OverlayPlan {
    /// What `overlay` asks for, if that is a file and can be. Blocks.
    pub(super) fn of(overlay: &Overlay) -> Result<Option<Self>, Error> {
        let Some(directory) = overlay.directory() else {
            return Ok(None);
        };
        // For as long as anything is made of it, wherever this process goes.
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        let size = overlay.size();
        if size > MOST || size.as_bytes() == 0 {
            let message = format!("an overlay in a file has 1 byte to {MOST}, and not {size}");
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        // Before a template is looked for or booted that could have no such file.
        let found = fs::metadata(&directory).and_then(|it| match it.is_dir() {
            true => Ok(()),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        found.map_err(|error| no_file(&directory, error))?;
        Ok(Some(Self {
            bytes: size.as_bytes().next_multiple_of(GROUP),
            directory,
        }))
    }
}

/// The file, which has no name and is gone with the last who has it.
#[derive(Debug, Clone)]
pub(crate) struct OverlayFile {
    file: Arc<File>,
    /// Where its copies are made.
    directory: PathBuf,
}

impl OverlayFile {
    /// One with an empty file system. Blocks.
    pub(super) fn create(plan: &OverlayPlan) -> Result<Self, Error> {
        let made = Self::empty(&plan.directory)?;
        made.format(plan.bytes).map_err(|error| {
            let source = match error {
                FormatError::Io(error) => error,
                other => io::Error::other(other),
            };
            no_room("make a file system", &plan.directory, source)
        })?;
        Ok(made)
    }

    /// One with nothing in it at all.
    pub(crate) fn empty(directory: &Path) -> Result<Self, Error> {
        let file = tempfile::tempfile_in(directory).map_err(|error| no_file(directory, error))?;
        Ok(Self {
            file: Arc::new(file),
            directory: directory.to_owned(),
        })
    }

    fn format(&self, bytes: u64) -> Result<(), FormatError> {
        // The formatter wants a path, and writes much that is zero, which every clone would copy.
        let written = tempfile::tempfile_in(&self.directory)?;
        let path = format!("/proc/self/fd/{}", written.as_raw_fd());
        Formatter::with_options(Path::new(&path), FormatOptions::new(bytes))?.close()?;
        written.set_len(bytes)?;
        index_directories(&written)?;
        disk::copy_data(&written, &self.file)?;
        Ok(())
    }

    /// Another one with the same content. Blocks. Nobody may write to this one meanwhile.
    pub(crate) fn copy(&self) -> Result<Self, Error> {
        let copy = Self::empty(&self.directory)?;
        disk::copy(&self.file, &copy.file)
            .map_err(|error| no_room("copy what a guest has written", &self.directory, error))?;
        Ok(copy)
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// How much room it takes on the host.
    pub(crate) fn stored_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }
}

/// Lets directories have an index: a large one would be searched from its beginning each time. The
/// formatter leaves that out, and there is no checksum to be kept (Linux `fs/ext4/ext4.h`,
/// `struct ext4_super_block`).
fn index_directories(file: &File) -> io::Result<()> {
    const SUPERBLOCK: u64 = 1024;
    const FEATURES: u64 = SUPERBLOCK + 0x5c;
    const SEED: u64 = SUPERBLOCK + 0xec;
    const HASH: u64 = SUPERBLOCK + 0xfc;
    const DIR_INDEX: u32 = 0x20;
    const HALF_MD4: u8 = 1;
    let mut features = [0; 4];
    file.read_exact_at(&mut features, FEATURES)?;
    let features = u32::from_le_bytes(features) | DIR_INDEX;
    let mut seed = [0; 16];
    getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
    file.write_all_at(&seed, SEED)?;
    file.write_all_at(&[HALF_MD4], HASH)?;
    file.write_all_at(&features.to_le_bytes(), FEATURES)
}

fn no_file(directory: &Path, error: io::Error) -> Error {
    let message = format!(
        "cannot make a file for what a guest writes in {}",
        directory.display()
    );
    match kind_of(&error) {
        ErrorKind::Unprepared => {
            let message = format!("{message}: choose another directory");
            Error::because(ErrorKind::Unprepared, message, error)
        }
        kind => Error::because(kind, message, error),
    }
}

fn no_room(doing: &str, directory: &Path, error: io::Error) -> Error {
    let message = format!("cannot {doing} in {}", directory.display());
    Error::because(kind_of(&error), message, error)
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ if ember_vmm::is_exhausted(error) => ErrorKind::Exhausted,
        _ => ErrorKind::Unprepared,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(size: ByteSize, directory: &Path) -> Result<Option<OverlayPlan>, Error> {
        OverlayPlan::of(&Overlay::file(size).within(directory))
    }

    #[test]
    fn a_file_has_whole_groups_and_what_it_can_have() {
        let size = |size| plan(size, Path::new("/")).map(|it| it.unwrap().bytes);
        assert_eq!(size(ByteSize::bytes(1)).unwrap(), GROUP);
        assert_eq!(size(ByteSize::mib(128)).unwrap(), GROUP);
        assert_eq!(size(ByteSize::mib(129)).unwrap(), 2 * GROUP);
        assert_eq!(size(MOST).unwrap(), MOST.as_bytes());
        for size in [
            ByteSize::bytes(0),
            ByteSize::gib(4097),
            ByteSize::gib(u64::MAX),
        ] {
            let error = plan(size, Path::new("/")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        }
        let memory = Overlay::memory(ByteSize::gib(1));
        assert_eq!(OverlayPlan::of(&memory).unwrap(), None);
    }

    #[test]
    fn a_new_file_system_takes_little_and_leaves_no_name() {
        let directory = tempfile::tempdir().unwrap();
        for size in [ByteSize::mib(1), ByteSize::mib(300), ByteSize::gib(10)] {
            let plan = plan(size, directory.path()).unwrap().unwrap();
            let overlay = OverlayFile::create(&plan).unwrap();
            let bytes = |it: &OverlayFile| it.file.metadata().unwrap().len();
            assert_eq!(bytes(&overlay), plan.bytes);
            // Two bitmaps for each group, and its share of what describes them all.
            let most = (plan.bytes / GROUP + 16) * 3 * 4096;
            let stored = overlay.stored_bytes().unwrap();
            assert!(stored <= most, "{stored} of {most} bytes for {size}");

            let copy = overlay.copy().unwrap();
            assert_eq!(bytes(&copy), plan.bytes);
            assert!(copy.stored_bytes().unwrap() <= most);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        for path in ["/does/not/exist", "/proc/self/maps"] {
            let error = plan(ByteSize::mib(1), Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unprepared);
            assert!(error.to_string().contains(path), "{error}");
        }
        // One that was removed since, as whoever loads a template may find.
        let error = OverlayFile::empty(Path::new("/does/not/exist")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unprepared);
    }
}
