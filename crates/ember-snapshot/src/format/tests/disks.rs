//! Snapshots of guests that have a disk of their own.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::hostile::{Part, altered_from, content};
use super::*;
use crate::disk;

const DISK_PAGES: u64 = 64;

/// A disk with something on three of its pages, one of which is zeroes that were written.
fn disk() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK_PAGES * PAGE_SIZE).unwrap();
    for (page, value) in [(0, 7), (40, 0), (63, 9)] {
        file.write_all_at(&[value; PAGE_SIZE as usize], page * PAGE_SIZE)
            .unwrap();
    }
    file
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The file of the sample as a base, with that disk.
pub(super) fn bytes() -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let image = sample::base_image();
    let memory = Memory::Base(&image);
    write(&mut out, memory, Some(&disk()), &sample::contents()).unwrap();
    out.into_inner()
}

fn loaded(path: &Path) -> Result<File, crate::memory::MemoryError> {
    let chain = Chain::open(path, |_| Err(io::ErrorKind::NotFound.into())).unwrap();
    let file = tempfile::tempfile().unwrap();
    chain.disk().unwrap().load(&file)?;
    Ok(file)
}

#[test]
fn a_disk_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.ember");
    fs::write(&path, bytes()).unwrap();
    let file = loaded(&path).unwrap();
    assert_eq!(read(&file), read(&disk()));
    // What is zero takes no room, also if it was written.
    assert_eq!(
        decode(&bytes()).unwrap().disk.unwrap().index.stored_pages(),
        2
    );
    assert!(file.metadata().unwrap().blocks() * 512 < 8 * PAGE_SIZE);

    assert!(decode(&base_bytes()).unwrap().disk.is_none());
}

#[test]
fn a_compacted_chain_keeps_the_disk_of_its_top() {
    let directory = tempfile::tempdir().unwrap();
    let (base, top) = (
        directory.path().join("base.ember"),
        directory.path().join("top.ember"),
    );
    let (below, above) = (sample::base_image(), sample::diff_image());
    let contents = sample::contents();
    write_file(&base, Memory::Base(&below), None, &contents).unwrap();
    let memory = Memory::Diff {
        parent: &below,
        parent_name: "base.ember",
        current: &above,
        changed: &PageSet::all(sample::PAGES * PAGE_SIZE),
    };
    write_file(&top, memory, Some(&disk()), &contents).unwrap();
    let chain = Chain::open(&top, |parent| Ok(directory.path().join(&parent.name))).unwrap();
    chain.compact(&top).unwrap();
    assert_eq!(read(&loaded(&top).unwrap()), read(&disk()));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn a_damaged_page_is_noticed_when_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.ember");
    let mut bytes = bytes();
    let at = usize::try_from(decode(&bytes).unwrap().disk.unwrap().data_offset).unwrap();
    bytes[at + 4096] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = loaded(&path).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("checksum"), "{cause}");
}

#[test]
fn a_disk_and_its_index_belong_together() {
    let refused = |change: fn(&mut Vec<Part>)| {
        let error = decode(&altered_from(&bytes(), change)).unwrap_err();
        assert!(
            matches!(
                error,
                FormatError::Contradiction(_)
                    | FormatError::DiskIndex(_)
                    | FormatError::SectionVersion { .. }
            ),
            "{error:?}"
        );
    };
    refused(|parts| parts.retain(|part| part.0 != 7));
    refused(|parts| parts.retain(|part| part.0 != 8));
    refused(|parts| content(parts, 7).truncate(4096));
    refused(|parts| content(parts, 8)[0] ^= 1);
    // A diff: of what?
    refused(|parts| content(parts, 8)[8] = 1);
    refused(|parts| parts.iter_mut().find(|part| part.0 == 8).unwrap().1 = 2);
}

#[test]
fn a_copy_has_the_holes_of_its_original() {
    let from = disk();
    let to = tempfile::tempfile().unwrap();
    disk::copy(&from, &to).unwrap();
    assert_eq!(read(&to), read(&from));
    assert!(to.metadata().unwrap().blocks() <= from.metadata().unwrap().blocks());
    // Of another file system, or in memory.
    let image = sample::base_image();
    let to = tempfile::tempfile().unwrap();
    disk::copy(image.file(), &to).unwrap();
    assert_eq!(read(&to), read(image.file()));
}
