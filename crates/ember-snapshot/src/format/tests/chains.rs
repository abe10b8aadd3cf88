//! Snapshots on top of each other.

use super::*;
use crate::memory::{MemoryBuilder, MemoryImage};

/// A chain of `depth` diffs on a base, `0.ember` being the base. Gives the memory on top.
fn build(directory: &Path, depth: u8) -> MemoryImage {
    let mut below = sample::base_image();
    let path = |number: u8| directory.join(format!("{number}.ember"));
    write_file(&path(0), Memory::Base(&below), None, &sample::contents()).unwrap();
    for number in 1..=depth {
        let mut builder = MemoryBuilder::from_image(&below).unwrap();
        let offset = u64::from(number % 8) * PAGE_SIZE;
        builder.write(offset, &[100 + number; 4096]).unwrap();
        let current = builder.seal().unwrap();
        let memory = Memory::Diff {
            parent: &below,
            parent_name: &format!("{}.ember", number - 1),
            current: &current,
            changed: &PageSet::all(current.bytes()),
        };
        write_file(&path(number), memory, None, &sample::contents()).unwrap();
        below = current;
    }
    below
}

fn in_directory(directory: &Path) -> impl FnMut(&Parent) -> io::Result<PathBuf> + use<> {
    let directory = directory.to_owned();
    move |parent| Ok(directory.join(&parent.name))
}

#[test]
fn a_chain_of_ten_is_loaded_and_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let memory = build(directory.path(), 10);
    let top = directory.path().join("10.ember");
    let chain = Chain::open(&top, in_directory(directory.path())).unwrap();
    assert_eq!(chain.memory().layers().len(), 11);
    // From here on the names do not matter.
    let compact = directory.path().join("compact.ember");
    for number in 0..=9 {
        fs::remove_file(directory.path().join(format!("{number}.ember"))).unwrap();
    }
    let loaded = chain.load().unwrap();
    assert_eq!(loaded.compute_hash().unwrap(), memory.hash().unwrap());
    assert_eq!(loaded.hash().unwrap(), memory.hash().unwrap());

    chain.compact(&compact).unwrap();
    let file = SnapshotFile::open(&compact).unwrap();
    assert_eq!(file.snapshot().index.kind(), LayerKind::Base);
    let nobody = |_: &Parent| Err(io::ErrorKind::NotFound.into());
    let alone = Chain::open(&compact, nobody).unwrap();
    assert_eq!(
        alone.load().unwrap().compute_hash().unwrap(),
        memory.hash().unwrap()
    );
    assert_eq!(alone.top().contents.state, chain.top().contents.state);

    // What was based on the chain can be based on its compacted form.
    let child = directory.path().join("child.ember");
    let diff = Memory::Diff {
        parent: &memory,
        parent_name: "10.ember",
        current: &memory,
        changed: &PageSet::new(),
    };
    write_file(&child, diff, None, &sample::contents()).unwrap();
    let chain = Chain::open(&child, |_| Ok(compact.clone())).unwrap();
    assert_eq!(
        chain.load().unwrap().compute_hash().unwrap(),
        memory.hash().unwrap()
    );
}

#[test]
fn another_parent_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    build(directory.path(), 2);
    let base = directory.path().join("0.ember");
    let error = Chain::open(&directory.path().join("2.ember"), |_| Ok(base.clone())).unwrap_err();
    assert!(matches!(error, ChainError::WrongParent { .. }), "{error}");
    let error = Chain::open(&directory.path().join("2.ember"), |_| {
        Err(io::ErrorKind::NotFound.into())
    })
    .unwrap_err();
    assert!(error.to_string().contains("\"1.ember\""), "{error}");
}

#[test]
fn a_circle_ends() {
    // A diff to itself, in which nothing changes: the hash is right.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("circle.ember");
    let image = sample::base_image();
    let diff = Memory::Diff {
        parent: &image,
        parent_name: "circle.ember",
        current: &image,
        changed: &PageSet::new(),
    };
    write_file(&path, diff, None, &sample::contents()).unwrap();
    let error = Chain::open(&path, in_directory(directory.path())).unwrap_err();
    assert!(matches!(error, ChainError::TooLong), "{error}");
}

#[test]
fn a_damaged_page_is_found_when_it_is_loaded() {
    let directory = tempfile::tempdir().unwrap();
    build(directory.path(), 1);
    let path = directory.path().join("0.ember");
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER_BYTES + 5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let chain = Chain::open(
        &directory.path().join("1.ember"),
        in_directory(directory.path()),
    )
    .unwrap();
    let error = chain.load().unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.to_string().contains("damaged"), "{source}");
    assert!(
        chain
            .compact(&directory.path().join("compact.ember"))
            .is_err()
    );
    assert!(!directory.path().join("compact.ember").exists());
}
