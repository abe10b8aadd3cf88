//! Archives that a hostile guest could have sent.

use std::fs;

use super::*;

fn artifacts(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Artifacts {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    Artifacts {
        tar: builder.into_inner().unwrap(),
        ..Artifacts::default()
    }
}

fn header(kind: tar::EntryType, path: &str, target: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    // As they are, past what the crate would refuse to write.
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    header
}

fn file(builder: &mut tar::Builder<Vec<u8>>, path: &str, contents: &str) {
    let header = header(tar::EntryType::Regular, path, "", contents.len() as u64);
    builder.append(&header, contents.as_bytes()).unwrap();
}

#[tokio::test]
async fn what_was_collected_is_listed_read_and_unpacked() {
    let artifacts = artifacts(|builder| {
        file(builder, "out/b", "two");
        file(builder, "a", "one");
        let link = header(tar::EntryType::Symlink, "link", "a", 0);
        builder.append(&link, std::io::empty()).unwrap();
        let link = header(tar::EntryType::Symlink, "away", "../..", 0);
        builder.append(&link, std::io::empty()).unwrap();
    });
    let list = artifacts.list().unwrap();
    let names: Vec<_> = list.iter().map(|it| it.name.to_str().unwrap()).collect();
    assert_eq!(names, ["a", "away", "link", "out/b"]);
    assert_eq!(list[2].target.as_deref(), Some(Path::new("a")));
    assert_eq!(artifacts.read("out/b").unwrap().unwrap(), b"two");
    assert_eq!(artifacts.read("/a").unwrap().unwrap(), b"one");
    assert_eq!(artifacts.read("link").unwrap(), None);
    let place = tempfile::tempdir().unwrap();
    let done = artifacts.unpack(place.path().join("new")).await.unwrap();
    assert_eq!((done.entries, done.bytes), (4, 6));
    assert_eq!(done.left_out, ["away"]);
    assert_eq!(fs::read(place.path().join("new/link")).unwrap(), b"one");
}

#[tokio::test]
async fn what_leads_out_is_refused() {
    for path in ["../x", "/x", "a/../../x"] {
        let artifacts = artifacts(|builder| file(builder, path, "x"));
        let place = tempfile::tempdir().unwrap();
        let error = artifacts.unpack(place.path().join("in")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert_eq!(artifacts.list().unwrap_err().kind(), ErrorKind::Damaged);
        assert!(!place.path().join("x").exists());
    }
    let nothing = Artifacts::default();
    assert!(nothing.list().unwrap().is_empty());
    let mut cut = artifacts(|builder| file(builder, "a", &"a".repeat(5000)));
    cut.tar.truncate(2000);
    assert_eq!(cut.read("a").unwrap_err().kind(), ErrorKind::Damaged);
}
