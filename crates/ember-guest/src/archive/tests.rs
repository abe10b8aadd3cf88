//! Archives that nobody honest would make, and what comes of honest ones.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::path::{Inside, stays_inside};
use super::*;

/// A directory with a tree in it, beside which there is something that must stay as it is.
struct Place {
    outer: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("secret"), "untouched").unwrap();
        fs::create_dir(outer.path().join("tree")).unwrap();
        Self { outer }
    }

    fn tree(&self) -> PathBuf {
        self.outer.path().join("tree")
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, Error> {
        self.unpack_with(archive, caps(), Links::Inside)
    }

    fn unpack_with(&self, archive: &[u8], caps: Caps, links: Links) -> Result<Unpacked, Error> {
        let directory = fs::File::open(self.tree()).unwrap();
        let result = unpack(directory.as_fd(), archive, caps, links);
        // Whatever it was.
        let names: Vec<_> = fs::read_dir(self.outer.path())
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let secret = fs::read_to_string(self.outer.path().join("secret")).unwrap();
        assert_eq!(secret, "untouched");
        result
    }
}

fn caps() -> Caps {
    Caps {
        bytes: 1 << 20,
        entries: 100,
    }
}

/// An entry whose names are put in as they are, past the checks of who writes archives.
fn raw(kind: EntryType, path: &[u8], target: &[u8], size: u64, contents: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path);
    old.linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(contents);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn file(path: &str, contents: &str) -> Vec<u8> {
    let contents = contents.as_bytes();
    raw(
        EntryType::Regular,
        path.as_bytes(),
        b"",
        contents.len() as u64,
        contents,
    )
}

fn link(path: &str, target: &str) -> Vec<u8> {
    raw(
        EntryType::Symlink,
        path.as_bytes(),
        target.as_bytes(),
        0,
        b"",
    )
}

fn hard(path: &str, target: &str) -> Vec<u8> {
    raw(EntryType::Link, path.as_bytes(), target.as_bytes(), 0, b"")
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = entries.concat();
    out.resize(out.len() + 1024, 0);
    out
}

fn refusal(result: Result<Unpacked, Error>) -> Refusal {
    match result {
        Err(Error::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn paths_that_lead_out_are_refused() {
    for (path, why) in [
        ("/no-such-place/x", Refusal::Absolute),
        ("//secret", Refusal::Absolute),
        ("../secret", Refusal::Parent),
        ("a/../../secret", Refusal::Parent),
        ("a/..", Refusal::Parent),
        ("", Refusal::Path),
        (".", Refusal::Path),
    ] {
        let place = Place::new();
        let result = place.unpack(&archive(&[file(path, "x")]));
        assert_eq!(refusal(result), why, "{path:?}");
        assert_eq!(fs::read_dir(place.tree()).unwrap().count(), 0, "{path:?}");
        // By the long way as well.
        let mut long = path.as_bytes().to_vec();
        long.push(0);
        let long = raw(
            EntryType::GNULongName,
            b"././@LongLink",
            b"",
            long.len() as u64,
            &long,
        );
        let result = place.unpack(&archive(&[long, file("harmless", "x")]));
        assert_eq!(refusal(result), why, "{path:?}");
        let pax = pax(&[("path", path)]);
        if !path.is_empty() {
            let result = place.unpack(&archive(&[pax, file("harmless", "x")]));
            assert_eq!(refusal(result), why, "{path:?}");
        }
    }
    let place = Place::new();
    let deep = "d/".repeat(MAX_DEPTH + 1) + "f";
    let deep = pax(&[("path", &deep)]);
    let result = place.unpack(&archive(&[deep, file("harmless", "x")]));
    assert_eq!(refusal(result), Refusal::Path);
    let long = pax(&[("path", &"n".repeat(256))]);
    let result = place.unpack(&archive(&[long, file("harmless", "x")]));
    assert_eq!(refusal(result), Refusal::Path);
}

fn pax(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions(pairs.iter().map(|(key, value)| (*key, value.as_bytes())))
        .unwrap();
    let mut out = builder.into_inner().unwrap();
    // Without the archive's end.
    out.truncate(out.len() - 1024);
    out
}

#[test]
fn nothing_goes_through_links() {
    for target in ["..", "../secret", "/", ".", "/no-such-place"] {
        let place = Place::new();
        // Of the archive's own, and one that was there.
        let through = archive(&[link("door", target), file("door/secret", "changed")]);
        for links in [Links::Any, Links::Inside] {
            let result = place.unpack_with(&through, caps(), links);
            if links == Links::Any || target == "." {
                assert!(matches!(result, Err(Error::File { .. })), "{result:?}");
            } else {
                // The link was left out, so that this is a directory.
                assert_eq!(result.unwrap().left_out, ["door"]);
                fs::remove_dir_all(place.tree().join("door")).unwrap();
            }
            let _ = fs::remove_file(place.tree().join("door"));
        }
        symlink(target, place.tree().join("door")).unwrap();
        for entry in [
            file("door/secret", "changed"),
            link("door/secret", "/"),
            raw(EntryType::Directory, b"door/new", b"", 0, b""),
            raw(EntryType::Directory, b"door", b"", 0, b""),
        ] {
            let result = place.unpack_with(&archive(&[entry]), caps(), Links::Any);
            assert!(matches!(result, Err(Error::File { .. })), "{result:?}");
        }
        // What is a link itself is replaced, not written through.
        place.unpack(&archive(&[file("door", "mine")])).unwrap();
        let door = place.tree().join("door");
        assert!(fs::symlink_metadata(&door).unwrap().is_file());
        assert_eq!(fs::read_to_string(door).unwrap(), "mine");
    }
}

#[test]
fn links_that_lead_out_are_left_out() {
    let place = Place::new();
    let entries = [
        link("a", "/no-such-place/x"),
        link("b", "../secret"),
        link("d/c", "../../secret"),
        // Right by its names, wrong by what `s` may be.
        link("s", "."),
        link("e", "s/../../secret"),
        link("inside", "d/x"),
        link("d/up", "../d/x"),
        file("d/x", "fine"),
    ];
    let done = place.unpack(&archive(&entries)).unwrap();
    assert_eq!(done.left_out, ["a", "b", "d/c", "e"]);
    assert_eq!(done.left_out_count, 4);
    for name in ["inside", "d/up"] {
        assert_eq!(fs::read_to_string(place.tree().join(name)).unwrap(), "fine");
    }
}

#[test]
fn hard_links_are_to_files_of_the_tree() {
    let place = Place::new();
    symlink("../secret", place.tree().join("soft")).unwrap();
    fs::create_dir(place.tree().join("d")).unwrap();
    for target in [
        "../secret",
        "/no-such-place/x",
        "soft",
        "d",
        "nothing",
        "x",
        "",
        "soft/x",
        "a/../../secret",
    ] {
        let result = place.unpack(&archive(&[hard("x", target)]));
        assert!(
            matches!(refusal(result), Refusal::HardLink | Refusal::Path),
            "{target}"
        );
        assert!(!place.tree().join("x").exists(), "{target}");
    }
    // What is written to a second name that was linked does not change the first.
    let entries = [file("one", "1"), hard("two", "one"), file("two", "2")];
    let done = place.unpack(&archive(&entries)).unwrap();
    assert_eq!((done.entries, done.bytes), (3, 2));
    assert_eq!(fs::read_to_string(place.tree().join("one")).unwrap(), "1");
    assert_eq!(fs::read_to_string(place.tree().join("two")).unwrap(), "2");
    // Nor that of somebody who linked a file of ours from elsewhere before.
    fs::hard_link(place.outer.path().join("secret"), place.tree().join("h")).unwrap();
    place.unpack(&archive(&[file("h", "changed")])).unwrap();
}

#[test]
fn what_is_no_file_is_refused() {
    for kind in [
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::new(b'V'),
    ] {
        let place = Place::new();
        let result = place.unpack(&archive(&[raw(kind, b"x", b"", 0, b"")]));
        assert_eq!(refusal(result), Refusal::Kind);
    }
    let place = Place::new();
    let sparse = raw(EntryType::GNUSparse, b"x", b"", 0, b"");
    assert_eq!(refusal(place.unpack(&archive(&[sparse]))), Refusal::Sparse);
    let sparse = pax(&[("GNU.sparse.realsize", "1099511627776")]);
    let result = place.unpack(&archive(&[sparse, file("x", "x")]));
    assert_eq!(refusal(result), Refusal::Sparse);
}

#[test]
fn sizes_are_not_believed() {
    let place = Place::new();
    // More than may come, before anything is made; more than a number holds; more than comes.
    for size in [1 << 20, 1 << 40, u64::MAX, u64::MAX - 511] {
        let entry = raw(EntryType::Regular, b"x", b"", size, b"little");
        let result = place.unpack(&archive(&[entry]));
        assert!(
            matches!(result, Err(Error::TooManyBytes { .. } | Error::Damaged(_))),
            "{result:?}"
        );
        assert!(!place.tree().join("x").exists());
    }
    let entry = raw(EntryType::Regular, b"x", b"", 100_000, b"little");
    assert!(matches!(
        place.unpack(&archive(&[entry])),
        Err(Error::Damaged(_))
    ));
    let two = pax(&[("size", "1")]);
    let result = place.unpack(&archive(&[two, file("x", "long")]));
    assert_eq!(refusal(result), Refusal::Size);
    // Descriptions are read into memory.
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        let long = vec![b'x'; 100_000];
        let entry = raw(kind, b"x", b"", long.len() as u64, &long);
        let result = place.unpack(&archive(&[entry, file("x", "")]));
        assert_eq!(refusal(result), Refusal::Description);
        let entry = raw(kind, b"x", b"", 0, b"");
        let endless: Vec<Vec<u8>> = (0..2).map(|_| entry.clone()).collect();
        let result = place.unpack(&archive(&endless));
        assert!(
            kind == EntryType::XGlobalHeader || result.is_err(),
            "{kind:?}"
        );
    }
}

#[test]
fn more_than_may_be_is_refused() {
    let place = Place::new();
    let few = Caps {
        bytes: 1 << 20,
        entries: 3,
    };
    let entries: Vec<Vec<u8>> = (0..4).map(|it| file(&format!("{it}"), "x")).collect();
    let result = place.unpack_with(&archive(&entries), few, Links::Inside);
    assert!(
        matches!(result, Err(Error::TooManyEntries { most: 3 })),
        "{result:?}"
    );
    place
        .unpack_with(&archive(&entries[..3]), few, Links::Inside)
        .unwrap();
    let small = Caps {
        bytes: 3 * 1024,
        entries: 100,
    };
    let result = place.unpack_with(&archive(&entries), small, Links::Inside);
    assert!(
        matches!(result, Err(Error::TooManyBytes { most: 3072 })),
        "{result:?}"
    );
    // Behind its end, too.
    let mut endless = archive(&entries[..1]);
    endless.resize(4 << 20, 7);
    let result = place.unpack(&endless);
    assert!(matches!(result, Err(Error::Damaged(_))), "{result:?}");
}

#[test]
fn what_is_cut_off_is_noticed() {
    let place = Place::new();
    let whole = archive(&[file("a", "aaa"), file("b", &"b".repeat(2000))]);
    let end = whole.len() - 1024;
    for cut in [1, 511, 513, 1025, 1600, end - 1] {
        let result = place.unpack(&whole[..cut]);
        assert!(
            matches!(result, Err(Error::Damaged(_))),
            "{cut}: {result:?}"
        );
    }
    let nonsense = vec![7; 4096];
    assert!(matches!(place.unpack(&nonsense), Err(Error::Damaged(_))));
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let directory = fs::File::open(place.tree()).unwrap();
    let input = Cursor::new(&whole[..700]).chain(Broken);
    let result = unpack(directory.as_fd(), input, caps(), Links::Inside);
    assert!(matches!(result, Err(Error::Stream(_))), "{result:?}");
}

#[test]
fn of_duplicates_the_last_counts() {
    let place = Place::new();
    let entries = [
        file("x", "first"),
        link("x", "y"),
        file("x", "last"),
        raw(EntryType::Directory, b"d/", b"", 0, b""),
        raw(EntryType::Directory, b"d", b"", 0, b""),
    ];
    place.unpack(&archive(&entries)).unwrap();
    assert_eq!(fs::read_to_string(place.tree().join("x")).unwrap(), "last");
    // A file does not take a directory's place, nor the other way round.
    place.unpack(&archive(&[file("d", "x")])).unwrap_err();
    place.unpack(&archive(&[file("x/y", "x")])).unwrap_err();
    let directory = raw(EntryType::Directory, b"x", b"", 0, b"");
    place.unpack(&archive(&[directory])).unwrap_err();
}

#[test]
fn no_file_gets_more_rights_than_permissions() {
    let place = Place::new();
    let mut header = Header::new_gnu();
    header.set_mode(0o6755);
    header.set_size(0);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut header, "x", io::empty()).unwrap();
    header.set_mode(0);
    header.set_entry_type(EntryType::Directory);
    builder.append_data(&mut header, "d", io::empty()).unwrap();
    place.unpack(&builder.into_inner().unwrap()).unwrap();
    let mode = |name: &str| fs::metadata(place.tree().join(name)).unwrap().mode();
    assert_eq!(mode("x") & 0o7000, 0);
    assert_eq!(mode("x") & 0o700, 0o700);
    assert_eq!(mode("d") & 0o7777, 0o700);
}

fn packed(
    directory: &Path,
    caps: Caps,
    lenient: bool,
    patterns: &[&str],
) -> (Result<Vec<u8>, Error>, Vec<String>) {
    let opened = fs::File::open(directory).unwrap();
    let mut left_out = Vec::new();
    let mut packer = Packer::new(Vec::new(), caps, lenient, |path: &[u8], why: LeftOut| {
        left_out.push(format!("{}: {}", why.name(), String::from_utf8_lossy(path)));
        Ok(())
    });
    let mut all = || {
        if patterns.is_empty() {
            packer.add_directory(opened.as_fd())?;
        }
        for pattern in patterns {
            packer.add_matching(opened.as_fd(), pattern.as_bytes())?;
        }
        Ok(())
    };
    let added = all();
    let result = added.and_then(|()| packer.finish());
    (result, left_out)
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    read_each(archive, Caps::NONE, |member, _| {
        names.push(String::from_utf8(member.path).unwrap());
        Ok(true)
    })
    .unwrap();
    names
}

fn sample(tree: &Path) {
    for directory in ["out/deep/er", "empty", ".hidden"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    for (name, contents) in [
        ("out/a.png", "A"),
        ("out/b.txt", "B"),
        ("out/deep/c.png", "C"),
        ("out/deep/er/d.png", "D"),
        (".hidden/e.png", "E"),
        ("[odd]", "F"),
    ] {
        fs::write(tree.join(name), contents).unwrap();
    }
    symlink("out/a.png", tree.join("link")).unwrap();
    symlink("out", tree.join("door")).unwrap();
    fs::set_permissions(tree.join("out/b.txt"), fs::Permissions::from_mode(0o750)).unwrap();
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let (one, two) = (Place::new(), Place::new());
    sample(&one.tree());
    let long = "n".repeat(200);
    fs::create_dir(one.tree().join(&long)).unwrap();
    fs::write(one.tree().join(&long).join(&long), "long").unwrap();
    symlink(&long, one.tree().join("far")).unwrap();
    let (archive, left_out) = packed(&one.tree(), caps(), false, &[]);
    let done = two.unpack(&archive.unwrap()).unwrap();
    assert_eq!(left_out, Vec::<String>::new());
    assert_eq!(done.left_out_count, 0);
    assert_eq!(contents(&one.tree()), contents(&two.tree()));
    let modified = |place: &Place| {
        let found = fs::metadata(place.tree().join("out/b.txt")).unwrap();
        (found.mode(), found.mtime())
    };
    assert_eq!(modified(&one), modified(&two));
}

fn contents(tree: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![tree.to_owned()];
    while let Some(directory) = waiting.pop() {
        for found in fs::read_dir(directory).unwrap() {
            let path = found.unwrap().path();
            let name = path.strip_prefix(tree).unwrap().to_owned();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let what = if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                waiting.push(path);
                "directory".to_owned()
            } else {
                fs::read_to_string(&path).unwrap()
            };
            all.insert(name, what);
        }
    }
    all
}

#[test]
fn patterns_find_what_a_shell_would() {
    let place = Place::new();
    sample(&place.tree());
    let found = |patterns: &[&str]| {
        let (archive, left_out) = packed(&place.tree(), caps(), true, patterns);
        (names(&archive.unwrap()), left_out)
    };
    let none = Vec::<String>::new;
    assert_eq!(found(&["out/*.png"]).0, ["out/a.png"]);
    assert_eq!(
        found(&["./out//a.png", "out/?.png"]).0,
        ["out/a.png"],
        "once"
    );
    assert_eq!(
        found(&["**/*.png"]).0,
        ["out/a.png", "out/deep/c.png", "out/deep/er/d.png"]
    );
    assert_eq!(found(&["out/**"]).0.len(), 6);
    assert_eq!(found(&["out/deep"]).0.len(), 4);
    assert_eq!(found(&["*/deep/[a-c].png"]).0, ["out/deep/c.png"]);
    assert_eq!(found(&[".h*/*"]).0, [".hidden/e.png"]);
    assert_eq!(found(&["[[]odd]"]).0, ["[odd]"]);
    // As a link, and not through one.
    assert_eq!(found(&["link"]).0, ["link"]);
    assert_eq!(
        found(&["door/*"]),
        (none(), vec!["not found: door/*".to_owned()])
    );
    assert_eq!(
        found(&["nothing"]),
        (none(), vec!["not found: nothing".to_owned()])
    );
    let absolute = place.tree().join("out/a.png");
    let absolute = absolute.to_str().unwrap();
    assert_eq!(found(&[absolute]).0, [&absolute[1..]]);
    for wrong in ["../secret", "out/../../secret", "out/[", "***"] {
        let (archive, _) = packed(&place.tree(), caps(), true, &[wrong]);
        assert!(matches!(archive, Err(Error::Refused { .. })), "{wrong}");
    }
}

#[test]
fn what_does_not_fit_is_an_error_or_left_out() {
    let place = Place::new();
    fs::write(place.tree().join("a"), "small").unwrap();
    fs::write(place.tree().join("b"), vec![0; 1 << 20]).unwrap();
    fs::write(place.tree().join("c"), "small").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.tree().join("pipe"),
        rustix::fs::FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let (archive, left_out) = packed(&place.tree(), caps(), true, &[]);
    let archive = archive.unwrap();
    assert!(archive.len() as u64 <= caps().bytes);
    assert_eq!(names(&archive), ["a", "c"]);
    assert_eq!(left_out, ["too large: b", "no file: pipe"]);
    let (result, _) = packed(&place.tree(), caps(), false, &[]);
    assert!(
        matches!(result, Err(Error::TooManyBytes { .. })),
        "{result:?}"
    );
    let two = Caps {
        bytes: 1 << 30,
        entries: 2,
    };
    let (result, _) = packed(&place.tree(), two, false, &[]);
    assert!(
        matches!(result, Err(Error::TooManyEntries { most: 2 })),
        "{result:?}"
    );
    // The stream is never longer than it may be, whatever the names.
    for bytes in (0..20_000).step_by(700) {
        let small = Caps { bytes, entries: 9 };
        let (archive, _) = packed(&place.tree(), small, true, &["[ac]"]);
        assert!(archive.unwrap().len() as u64 <= bytes.max(1024));
    }
}

#[test]
fn a_file_that_shrinks_keeps_its_announced_length() {
    let all = |file: &[u8], left| {
        let mut all = Vec::new();
        let failure = None;
        let mut file = pack::Exactly {
            file,
            left,
            failure,
        };
        file.read_to_end(&mut all).unwrap();
        all
    };
    assert_eq!(all(b"abc", 5), b"abc\0\0");
    assert_eq!(all(b"abcdef", 4), b"abcd");
}

/// It is not made up with zeroes.
#[test]
fn a_file_that_cannot_be_read_is_told() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(5))
        }
    }
    let mut file = pack::Exactly {
        file: Broken,
        left: 5,
        failure: None,
    };
    assert!(file.read_to_end(&mut Vec::new()).is_err());
    assert_eq!(file.failure.unwrap().raw_os_error(), Some(5));
}

/// A path of a few bytes names a hundred directories.
#[test]
fn directories_that_are_only_named_count_like_others() {
    let deep = raw(EntryType::Regular, b"a/b/c/d/e/f/x", b"", 0, b"");
    let place = tempfile::tempdir().unwrap();
    let root = fs::File::open(place.path()).unwrap();
    let caps = |entries| Caps {
        bytes: u64::MAX,
        entries,
    };
    let unpacked = |entries| unpack(root.as_fd(), deep.as_slice(), caps(entries), Links::Any);
    assert!(
        matches!(unpacked(6), Err(Error::TooManyEntries { most: 6 })),
        "{:?}",
        unpacked(6)
    );
    fs::remove_dir_all(place.path().join("a")).unwrap();
    assert_eq!(unpacked(7).unwrap().entries, 1);
}

/// Writes fail when the other end is gone.
#[test]
fn a_reader_that_has_gone_is_told() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let place = Place::new();
    sample(&place.tree());
    let directory = fs::File::open(place.tree()).unwrap();
    let mut packer = Packer::new(Gone, caps(), true, |_: &[u8], _| Ok(()));
    let result = packer.add_directory(directory.as_fd());
    assert!(matches!(result, Err(Error::Stream(_))), "{result:?}");
}

fn names_of_links() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just(".."),
        Just("."),
        Just("a"),
        Just("b"),
        Just("c"),
        Just(""),
        Just("secret")
    ];
    proptest::collection::vec(part, 1..6).prop_map(|parts| parts.join("/"))
}

proptest! {
    /// Links and files, as wild as they may be: nothing is outside, and no link leads there.
    #[test]
    fn nothing_leads_out(entries in proptest::collection::vec(
        (0..4, names_of_links(), names_of_links()), 1..12)
    ) {
        let place = Place::new();
        let entries: Vec<Vec<u8>> = entries.iter().map(|(kind, path, target)| match kind {
            0 => file(path, "x"),
            1 => link(path, target),
            2 => hard(path, target),
            _ => raw(EntryType::Directory, path.as_bytes(), b"", 0, b""),
        }).collect();
        // One after the other, so that what is refused does not keep the others out.
        for entry in entries {
            let _ = place.unpack(&archive(&[entry]));
        }
        let root = fs::canonicalize(place.tree()).unwrap();
        for (path, _) in contents(&place.tree()) {
            if let Ok(leads_to) = fs::canonicalize(place.tree().join(&path)) {
                prop_assert!(leads_to.starts_with(&root), "{path:?} leads to {leads_to:?}");
            }
        }
    }

    #[test]
    fn any_bytes_are_an_archive_or_none(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        index: prop::sample::Index,
        value: u8,
    ) {
        let place = Place::new();
        let _ = place.unpack(&bytes);
        // One wrong byte, its checksum made right again.
        let mut whole = archive(&[pax(&[("path", "q")]), file("a", "aaa"), link("l", "a")]);
        let place_of = index.index(whole.len());
        whole[place_of] = value;
        for start in (0..whole.len() - 1024).step_by(512) {
            if whole[start + 257..].starts_with(b"ustar") {
                let mut header = Header::from_byte_slice(&whole[start..start + 512]).clone();
                header.set_cksum();
                whole[start..start + 512].copy_from_slice(header.as_bytes());
            }
        }
        let _ = place.unpack(&whole);
        bytes.truncate(512);
    }

    #[test]
    fn paths_are_what_they_say(path in "[a./]{0,12}") {
        if let Ok(inside) = Inside::new(path.as_bytes()) {
            let text = String::from_utf8(inside.bytes().to_vec()).unwrap();
            prop_assert!(!text.starts_with('/') && !text.ends_with('/') && !text.contains("//"));
            prop_assert!(text.split('/').all(|part| part != ".." && part != "."));
            prop_assert_eq!(Inside::new(text.as_bytes()).unwrap(), inside);
        }
        let place = Inside::new(b"d/x").unwrap();
        if stays_inside(&place, path.as_bytes()) {
            let up = path.split('/').filter(|it| *it == "..").count();
            prop_assert!(up <= 1);
        }
    }
}
