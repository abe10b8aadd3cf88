//! Layers as they are made, and as nobody honest would make them.

use std::collections::BTreeMap;
use std::io::Read;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

/// What a layer has: a path and what is there.
#[derive(Debug, Clone)]
enum Made {
    Directory(u32),
    File(&'static str),
    Symlink(&'static str),
    HardLink(&'static str),
    Of(EntryType),
}
use Made::{Directory, File, HardLink, Symlink};

fn layer(entries: &[(&str, Made)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (path, made) in entries {
        let mut header = Header::new_ustar();
        let (kind, mode, text, target) = match made {
            Directory(mode) => (EntryType::Directory, *mode, "", ""),
            File(text) => (EntryType::Regular, 0o4755, *text, ""),
            Symlink(target) => (EntryType::Symlink, 0o777, "", *target),
            HardLink(target) => (EntryType::Link, 0o600, "", *target),
            Made::Of(kind) => (*kind, 0o600, "", ""),
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(50);
        header.set_mtime(1_600_000_000);
        header.set_size(text.len() as u64);
        // As they are, past the checks of who writes archives.
        let names = header.as_ustar_mut().unwrap();
        names.name[..path.len()].copy_from_slice(path.as_bytes());
        names.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        archive.append(&header, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn caps() -> Caps {
    Caps {
        bytes: 1 << 20,
        entries: 1000,
    }
}

fn applied(layers: &[Vec<u8>]) -> Result<(Entry, LeftOut), LayerError> {
    let directory = tempfile::tempdir().unwrap();
    let mut all = Layers::new(directory.path(), caps()).unwrap();
    for layer in layers {
        all.apply(layer.as_slice())?;
    }
    // Nothing has a name on this host, whatever was in it.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    all.finish()
}

/// Paths with what is there: `=text`, `>target`, or a directory's mode.
fn listed(root: &Entry) -> BTreeMap<String, String> {
    fn walk(path: &str, entry: &Entry, all: &mut BTreeMap<String, String>) {
        let text = match &entry.node {
            Node::Directory(children) => {
                for (name, child) in children {
                    walk(
                        &format!("{path}/{}", String::from_utf8_lossy(name)),
                        child,
                        all,
                    );
                }
                format!("{:o}", entry.mode)
            }
            Node::Spooled(file) => {
                let mut text = String::from("=");
                file.reader().read_to_string(&mut text).unwrap();
                text
            }
            Node::Link(target) => format!(">{}", String::from_utf8_lossy(target)),
            other => panic!("{other:?}"),
        };
        all.insert(path.to_owned(), text);
    }
    let mut all = BTreeMap::new();
    walk("", root, &mut all);
    all.remove("");
    all
}

fn tree(layers: &[&[(&str, Made)]]) -> Vec<String> {
    let layers: Vec<_> = layers.iter().map(|entries| layer(entries)).collect();
    let (root, _) = applied(&layers).unwrap();
    listed(&root)
        .into_iter()
        .map(|(path, what)| format!("{path} {what}"))
        .collect()
}

fn refused(entries: &[(&str, Made)]) -> String {
    applied(&[layer(entries)]).unwrap_err().to_string()
}

#[test]
fn what_a_layer_has_replaces_what_is_below_and_directories_are_merged() {
    let below: &[_] = &[
        ("d/", Directory(0o700)),
        ("d/kept", File("kept")),
        ("d/changed", File("old")),
        ("file", File("file")),
        ("other/x", File("x")),
    ];
    let above: &[_] = &[
        ("./d", Directory(0o1777)),
        ("./d/changed", File("new")),
        ("file/", Directory(0o755)),
        ("file/inside", File("in")),
        ("other", Symlink("d")),
    ];
    let expected = [
        "/d 1777",
        "/d/changed =new",
        "/d/kept =kept",
        "/file 755",
        "/file/inside =in",
        "/other >d",
    ];
    assert_eq!(tree(&[below, above]), expected);
}

#[test]
fn owners_rights_and_times_are_kept_and_so_are_those_of_the_root() {
    let (root, _) = applied(&[layer(&[("./", Directory(0o711)), ("a", File("x"))])]).unwrap();
    assert_eq!((root.mode, root.user, root.group), (0o711, 1000, 50));
    let file = root.get("/a").unwrap();
    assert_eq!(
        (file.mode, file.user, file.group, file.modified),
        (0o4755, 1000, 50, 1_600_000_000)
    );
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let below: &[_] = &[
        ("d/a", File("a")),
        ("d/b", File("b")),
        ("d/sub/c", File("c")),
        ("e/a", File("a")),
        ("gone", File("g")),
    ];
    let above: &[_] = &[
        ("e/own", File("own")),
        ("e/.wh..wh..opq", File("")),
        ("d/.wh.a", File("")),
        ("d/sub/own", File("own")),
        // Behind what it must not hide, of a directory that both have.
        ("d/.wh.sub", File("")),
        (".wh.gone", File("")),
        ("gone", File("again")),
        (".wh.never-there", File("")),
        ("nowhere/.wh.x", File("")),
        (".wh..wh.plnk", Directory(0o700)),
    ];
    let expected = [
        "/d 755",
        "/d/b =b",
        "/d/sub 755",
        "/d/sub/own =own",
        "/e 755",
        "/e/own =own",
        "/gone =again",
    ];
    assert_eq!(tree(&[below, above]), expected);
    // The next layer can hide it.
    assert_eq!(
        tree(&[below, above, &[(".wh.d", File("")), (".wh.e", File(""))]]),
        ["/gone =again"]
    );
}

#[test]
fn links_on_the_way_are_followed_within_the_image() {
    let below: &[_] = &[
        ("usr/lib/", Directory(0o755)),
        ("lib", Symlink("usr/lib")),
        ("abs", Symlink("/usr/lib/../lib")),
        ("up/far/", Directory(0o755)),
        ("up/far/link", Symlink("../../usr")),
    ];
    let above: &[_] = &[
        ("lib/one", File("1")),
        ("abs/two", File("2")),
        ("up/far/link/three", File("3")),
        ("lib/.wh.nothing", File("")),
    ];
    let all = tree(&[below, above]);
    for there in [
        "/usr/lib/one =1",
        "/usr/lib/two =2",
        "/usr/three =3",
        "/lib >usr/lib",
    ] {
        assert!(all.iter().any(|it| it == there), "{there}: {all:?}");
    }
    // A link's own name replaces it.
    let all = tree(&[below, &[("lib/", Directory(0o700))]]);
    assert!(all.contains(&"/lib 700".to_owned()));
}

#[test]
fn hard_links_are_names_of_one_file() {
    let (root, _) = applied(&[
        layer(&[
            ("a", File("text")),
            ("d/b", HardLink("a")),
            ("s", Symlink("a")),
            ("t", HardLink("s")),
        ]),
        layer(&[("c", HardLink("./d/b")), (".wh.a", File(""))]),
    ])
    .unwrap();
    let file = |path: &str| match &root.get(path).unwrap().node {
        Node::Spooled(file) => Arc::clone(file),
        other => panic!("{other:?}"),
    };
    assert!(Arc::ptr_eq(&file("/d/b"), &file("/c")));
    // Their rights are the file's, whatever the link says.
    assert_eq!(root.get("/c").unwrap().mode, 0o4755);
    assert!(root.get("/a").is_none());
    assert!(matches!(&root.get("/t").unwrap().node, Node::Link(target) if target == b"a"));
}

#[test]
fn devices_are_left_out_and_told() {
    let entries = &[
        ("dev/null", Made::Of(EntryType::Char)),
        ("dev/x", Made::Of(EntryType::Fifo)),
    ];
    let (root, left_out) = applied(&[layer(&[("dev/null", File("no"))]), layer(entries)]).unwrap();
    assert_eq!(left_out.special, 2);
    assert_eq!(listed(&root).len(), 1);
}

#[test]
fn what_leads_out_is_refused() {
    for (entries, why) in [
        (&[("/etc/passwd", File("x"))][..], "absolute path"),
        (&[("a/../../x", File("x"))], "`..`"),
        (&[("x", HardLink("../../etc/passwd"))], "hard link"),
        (&[("x", HardLink("/etc/passwd"))], "hard link"),
        (&[("x", HardLink("nothing"))], "hard link"),
        (
            &[("d/", Directory(0o755)), ("x", HardLink("d"))],
            "hard link",
        ),
        (
            &[("x", Symlink("../../etc")), ("x/passwd", File("x"))],
            "leads out",
        ),
        (
            &[("x", Symlink("/../..")), ("x/.wh.etc", File(""))],
            "leads out",
        ),
        (
            &[("a", Symlink("b")), ("b", Symlink("a")), ("a/x", File("x"))],
            "too many links",
        ),
        (&[("f", File("x")), ("f/x", File("x"))], "no directory"),
        (&[("f", File("x")), ("f/.wh.x", File(""))], "no directory"),
        (&[("d/.wh...", File(""))], "hides nothing"),
        (&[("d/.wh.", File(""))], "hides nothing"),
        (&[("x", Made::Of(EntryType::GNUSparse))], "sparse"),
    ] {
        let said = refused(entries);
        assert!(said.contains(why), "{entries:?}: {said}");
    }
    // A link that leads nowhere is text, as long as nothing is put through it.
    tree(&[&[("x", Symlink("../../../etc/passwd"))]]);
}

#[test]
fn what_is_too_much_is_refused_over_all_layers() {
    let files = |from: usize| {
        let mut archive = Builder::new(Vec::new());
        for number in from..from + 600 {
            let mut header = Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            archive
                .append_data(&mut header, format!("f{number}"), &b""[..])
                .unwrap();
        }
        archive.into_inner().unwrap()
    };
    applied(&[files(0)]).unwrap();
    let said = applied(&[files(0), files(600)]).unwrap_err().to_string();
    assert!(said.contains("more than 1000 files"), "{said}");

    // What is stated counts, before any of it comes.
    let mut header = Header::new_gnu();
    header.set_path("bomb").unwrap();
    header.set_size(8 << 40);
    header.set_cksum();
    let said = applied(&[header.as_bytes().to_vec()])
        .unwrap_err()
        .to_string();
    assert!(said.contains("1048576 bytes"), "{said}");

    // As deep by links as no path is.
    let deep = "d/".repeat(100);
    let mut archive = Builder::new(Vec::new());
    let mut put = |path: &str, target: Option<&str>| {
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        match target {
            Some(target) => {
                header.set_entry_type(EntryType::Symlink);
                archive.append_link(&mut header, path, target).unwrap();
            }
            None => {
                header.set_entry_type(EntryType::Directory);
                archive.append_data(&mut header, path, &b""[..]).unwrap();
            }
        }
    };
    put(&deep, None);
    put("short", Some(&deep));
    put(&format!("short/{deep}"), None);
    let said = applied(&[archive.into_inner().unwrap()])
        .unwrap_err()
        .to_string();
    assert!(said.contains("too deep"), "{said}");
}

#[test]
fn hiding_the_same_again_and_again_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let caps = Caps {
        bytes: 1 << 22,
        entries: 100,
    };
    let mut layers = Layers::new(directory.path(), caps).unwrap();
    let many: Vec<String> = (0..90).map(|n| format!("d/{n}/x")).collect();
    let many: Vec<(&str, Made)> = many.iter().map(|path| (path.as_str(), File(""))).collect();
    layers.apply(layer(&many).as_slice()).unwrap();
    layers.left.entries = 1_000_000;
    // All is of this layer too: nothing goes, and all is looked at, each time.
    let again: Vec<(&str, Made)> = many
        .iter()
        .cloned()
        .chain((0..200).map(|_| ("d/.wh..wh..opq", File(""))))
        .collect();
    let said = layers
        .apply(layer(&again).as_slice())
        .unwrap_err()
        .to_string();
    assert!(said.contains("again and again"), "{said}");
}

proptest! {
    /// Whatever comes is a tree or an error.
    #[test]
    fn nothing_that_comes_is_more_than_an_error(
        entries in proptest::collection::vec((0..9_usize, 0..6_usize, 0..9_usize), 0..40),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        const PATHS: [&str; 9] = ["a", "a/b", "a/b/c", "b", "a/.wh.b", "a/.wh..wh..opq", "b/a", "./", "a/../b"];
        let entries: Vec<(&str, Made)> = entries
            .into_iter()
            .map(|(path, kind, target)| {
                let made = match kind {
                    0 => Directory(0o755),
                    1 => File("text"),
                    2 => Symlink(PATHS[target]),
                    3 => HardLink(PATHS[target]),
                    4 => Symlink("../b/./a"),
                    _ => Made::Of(EntryType::Char),
                };
                (PATHS[path], made)
            })
            .collect();
        let (first, second) = entries.split_at(entries.len() / 2);
        let mut second = layer(second);
        let _ = applied(&[layer(first), second.clone()]);
        let place = at.index(second.len());
        second[place] = byte;
        let _ = applied(&[layer(first), second]);
    }
}

#[test]
fn a_layer_may_end_where_its_last_file_does_and_not_before() {
    let whole = layer(&[("a", File("aaa")), ("b", File("bbb"))]);
    // A block for each header, and one for the first file.
    let end = 3 * 512 + 3;
    let apply = |bytes: &[u8]| {
        let directory = tempfile::tempdir().unwrap();
        let mut layers = Layers::new(directory.path(), caps()).unwrap();
        layers.apply(bytes).map(|()| layers.finish().unwrap().0)
    };
    for cut in [end, end + 100, end + 508, end + 509, end + 600] {
        let root = apply(&whole[..cut]).unwrap();
        let Node::Spooled(b) = &root.get("/b").unwrap().node else {
            panic!("no file");
        };
        let mut text = String::new();
        b.reader().read_to_string(&mut text).unwrap();
        assert_eq!(text, "bbb");
    }
    for cut in [end - 1, end - 3, end - 4, 2 * 512 + 1, 512 + 2, 511] {
        assert!(apply(&whole[..cut]).is_err(), "{cut}");
    }
}
