use std::ffi::OsStr;

use proptest::prelude::*;

use super::*;

#[test]
fn a_place_is_absolute_and_nobody_elses() {
    let of = |path: &str| place(Path::new(path));
    assert_eq!(of("/data"), Ok("/data".into()));
    assert_eq!(of("//opt/./models/"), Ok("/opt/models".into()));
    assert_eq!(of("/run/models"), Ok("/run/models".into()));
    assert_eq!(of("/devices"), Ok("/devices".into()));
    assert_eq!(of("/etc/models"), Ok("/etc/models".into()));
    for relative in ["", ".", "data", "./data"] {
        assert_eq!(of(relative), Err(PlaceError::Relative), "{relative}");
    }
    for root in ["/", "//", "/."] {
        assert_eq!(of(root), Err(PlaceError::Root), "{root}");
    }
    for parent in ["/data/..", "/data/../proc", "../data"] {
        assert_eq!(of(parent), Err(PlaceError::Parent), "{parent}");
    }
    for (path, whose) in [
        ("/proc", "/proc"),
        ("/proc/data", "/proc"),
        ("/sys/fs/", "/sys"),
        ("//dev//shm", "/dev"),
        ("/run", "/run"),
        ("/run/ember/x", "/run/ember"),
        ("/etc/", "/etc"),
    ] {
        assert_eq!(of(path), Err(PlaceError::Reserved(whose)), "{path}");
    }
    assert_eq!(of("/a\0b"), Err(PlaceError::NoPath));
    let longest = format!("/{}", "x".repeat(MAX_PATH - 1));
    assert_eq!(of(&longest), Ok(longest.clone().into()));
    assert_eq!(of(&format!("{longest}x")), Err(PlaceError::NoPath));
}

#[test]
fn volumes_collide_within_each_other() {
    let of = |one: &str, other: &str| collide(Path::new(one), Path::new(other));
    assert!(of("/a", "/a") && of("/a/b", "/a") && of("/a", "/a/b/c"));
    assert!(!of("/a", "/ab") && !of("/a/b", "/a/c"));
}

#[test]
fn a_word_is_one_word_and_is_read_back() {
    assert_eq!(
        word(0, Path::new("/opt/data-1")),
        "ember.volume=/dev/vdb:/opt/data-1"
    );
    assert_eq!(
        word(MAX_VOLUMES - 1, Path::new("/a \"é%")),
        "ember.volume=/dev/vdi:/a%20%22%c3%a9%25"
    );
    for wrong in [
        "",
        "/dev/vdb",
        "/dev/vdb:",
        "vdb:/a",
        "/dev/vdb:a",
        "/dev/vdb:/%",
        "/dev/vdb:/%2",
        "/dev/vdb:/%+2",
        "/dev/vdb:/%2é",
    ] {
        assert_eq!(parse(wrong), None, "{wrong}");
    }
}

proptest! {
    #[test]
    fn whatever_a_path_has_in_it_comes_through(name in prop::collection::vec(1_u8.., 1..40)) {
        let path = Path::new("/").join(OsStr::from_bytes(&name));
        let word = word(1, &path);
        prop_assert!(word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'));
        let value = word.strip_prefix("ember.volume=").unwrap();
        prop_assert_eq!(parse(value), Some(("/dev/vdc".into(), path)));
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,40}") {
        let _ = parse(&text);
        let _ = place(Path::new(&text));
    }
}
