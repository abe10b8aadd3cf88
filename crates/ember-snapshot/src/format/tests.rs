use std::fs;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};

use super::container::{HEADER_BYTES, Header};
use super::*;
use crate::memory::LayerKind;
use crate::pages::{PAGE_SIZE, PageSet};

mod chains;
mod disks;
mod hostile;
mod sample;

/// The file of the sample as a base.
fn base_bytes() -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    write(
        &mut out,
        Memory::Base(&sample::base_image()),
        None,
        &sample::contents(),
    )
    .unwrap();
    out.into_inner()
}

/// The file of the sample as a diff to the base.
fn diff_bytes() -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let memory = Memory::Diff {
        parent: &sample::base_image(),
        parent_name: "base",
        current: &sample::diff_image(),
        changed: &PageSet::all(sample::PAGES * PAGE_SIZE),
    };
    write(&mut out, memory, None, &sample::contents()).unwrap();
    out.into_inner()
}

fn decode(bytes: &[u8]) -> Result<Snapshot, FormatError> {
    Snapshot::decode(&mut Cursor::new(bytes), bytes.len() as u64)
}

/// What was written, with what the writer fills in.
fn with_filled_in(snapshot: &Snapshot) -> Contents {
    let mut contents = sample::contents();
    contents.manifest.memory_hash = snapshot.contents.manifest.memory_hash;
    contents.manifest.parent = snapshot.contents.manifest.parent.clone();
    contents
}

#[test]
fn what_was_written_is_read() {
    let snapshot = decode(&base_bytes()).unwrap();
    assert_eq!(snapshot.contents, with_filled_in(&snapshot));
    let hash = sample::base_image().hash().unwrap();
    assert_eq!(snapshot.contents.manifest.memory_hash, Some(hash));
    assert_eq!(snapshot.contents.manifest.parent, None);
    assert_eq!(snapshot.index.kind(), LayerKind::Base);
    assert_eq!(snapshot.index.stored_pages(), 3);

    let diff = decode(&diff_bytes()).unwrap();
    assert_eq!(diff.contents, with_filled_in(&diff));
    let parent = diff.contents.manifest.parent.unwrap();
    assert_eq!((parent.name.as_str(), parent.memory_hash), ("base", hash));
    assert_eq!(diff.index.kind(), LayerKind::Diff);
    assert_eq!(diff.index.stored_pages(), 1);
    assert_ne!(diff.id, snapshot.id);
}

#[test]
fn page_data_is_where_a_page_begins() {
    let bytes = base_bytes();
    let snapshot = decode(&bytes).unwrap();
    assert_eq!(snapshot.data_offset % PAGE_SIZE, 0);
    let at = usize::try_from(snapshot.data_offset).unwrap();
    assert_eq!(bytes[at..at + 4096], [1; 4096]);
    assert_eq!(bytes[at + 4096..at + 8192], [2; 4096]);
}

#[test]
fn people_can_read_the_manifest() {
    let bytes = base_bytes();
    let text = String::from_utf8_lossy(&bytes);
    for part in [
        "\"created\": \"2027-01-15T08:00:00Z\"",
        "\"name\": \"vmlinux\"",
        "\"warm_up\": \"import numpy\"",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn a_manifest_may_know_more_and_less() {
    let minimal = r#"{"created":"2027-01-15T08:00:00Z","created_by":"x","architecture":"x86_64",
        "vcpus":1,"memory_bytes":4096,"from_the_future":{"a":[1]}}"#;
    let manifest: Manifest = serde_json::from_str(minimal).unwrap();
    assert_eq!(manifest.cpu, CpuRequirements::default());
    // Times that the notation does not have become such that it has.
    let mut manifest = manifest;
    manifest.created = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(9);
    assert!(
        serde_json::to_string(&manifest)
            .unwrap()
            .contains("1970-01-01")
    );
    manifest.created += std::time::Duration::from_secs(1 << 40);
    assert!(
        serde_json::to_string(&manifest)
            .unwrap()
            .contains("9999-12-31")
    );
}

#[test]
fn what_contradicts_itself_is_not_written() {
    let image = sample::base_image();
    let refused = |change: fn(&mut Contents)| {
        let mut contents = sample::contents();
        change(&mut contents);
        let result = write(
            Cursor::new(Vec::new()),
            Memory::Base(&image),
            None,
            &contents,
        );
        assert!(
            matches!(result, Err(WriteError::Contradiction(_))),
            "{result:?}"
        );
    };
    refused(|contents| contents.manifest.memory_bytes += PAGE_SIZE);
    refused(|contents| contents.state.memory_bytes += PAGE_SIZE);
    refused(|contents| contents.manifest.vcpus += 1);
    refused(|contents| {
        let run = crate::PageRun::new(8, 1).unwrap();
        contents.working_set = Some(crate::WorkingSet {
            read: [run].into_iter().collect(),
            ..Default::default()
        });
    });
    let mut contents = sample::contents();
    contents.guest = vec![0; (16 << 20) + 1];
    let result = write(
        Cursor::new(Vec::new()),
        Memory::Base(&image),
        None,
        &contents,
    );
    assert!(
        matches!(result, Err(WriteError::TooLarge { .. })),
        "{result:?}"
    );
}

#[test]
fn a_file_is_there_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.ember");
    let image = sample::base_image();
    let id = write_file(&path, Memory::Base(&image), None, &sample::contents()).unwrap();
    assert_eq!(SnapshotFile::open(&path).unwrap().snapshot().id, id);
    assert_eq!(fs::read(&path).unwrap(), base_bytes());
    // A write that fails leaves what was there before, and nothing beside it.
    let mut contents = sample::contents();
    contents.guest = vec![0; (16 << 20) + 1];
    write_file(&path, Memory::Base(&image), None, &contents).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), base_bytes());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    // One that succeeds replaces it.
    let diff = Memory::Base(&sample::diff_image());
    assert_ne!(
        write_file(&path, diff, None, &sample::contents()).unwrap(),
        id
    );

    let nowhere = directory.path().join("missing/a.ember");
    let error = write_file(&nowhere, Memory::Base(&image), None, &sample::contents()).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let message = |path: &Path| {
        let error = SnapshotFile::open(path).unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        error.reason.to_string()
    };
    let path = directory.path().join("x.ember");
    assert!(message(&path).contains("cannot be read"));
    fs::write(&path, "some text").unwrap();
    assert!(message(&path).contains("no snapshot"));
    assert!(message(directory.path()).contains("no snapshot"));
    // Which would make a plain open wait for somebody to write.
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(message(&fifo).contains("no snapshot"));
}

/// The golden files: what this version writes, and what every later one has to read or to refuse
/// by its version.
#[test]
fn the_format_is_the_one_of_the_golden_files() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut wrong = Vec::new();
    for (name, written) in [
        ("base.ember", base_bytes()),
        ("diff.ember", diff_bytes()),
        ("disk.ember", disks::bytes()),
    ] {
        let path = directory.join(name);
        if std::env::var_os("EMBER_WRITE_GOLDEN").is_some() {
            fs::write(&path, &written).unwrap();
        }
        if fs::read(&path).unwrap_or_default() != written {
            wrong.push(path);
        }
    }
    assert!(
        wrong.is_empty(),
        "snapshots are written differently from {wrong:?}. Do not just write the files anew: raise \
         the version of the section that changed (format/sections.rs) or of the frame \
         (FORMAT_VERSION), so that snapshots on disk are refused instead of misunderstood, say so \
         in docs/snapshots.md, and then run this test once with EMBER_WRITE_GOLDEN=1"
    );
    for name in ["base.ember", "diff.ember", "disk.ember"] {
        let file = SnapshotFile::open(&directory.join(name)).unwrap();
        let snapshot = file.snapshot();
        assert_eq!(snapshot.contents, with_filled_in(snapshot));
    }
}

#[test]
fn the_header_is_what_is_on_disk() {
    let bytes = base_bytes();
    assert_eq!(bytes[..8], *b"\x8fEMBER\r\n");
    assert_eq!(bytes[8..12], 1_u32.to_le_bytes());
    assert_eq!(bytes[12..16], 6_u32.to_le_bytes());
    assert_eq!(bytes[16..24], (bytes.len() as u64).to_le_bytes());
    // The first section: page data, version 1, three pages behind the header, no checksum.
    let mut entry = Vec::new();
    entry.extend([1, 0, 0, 0, 1, 0, 0, 0]);
    entry.extend(4096_u64.to_le_bytes());
    entry.extend((3 * PAGE_SIZE).to_le_bytes());
    entry.extend([0; 8]);
    assert_eq!(bytes[64..96], entry);
}
