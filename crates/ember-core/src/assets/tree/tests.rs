use std::os::unix::fs::symlink;

use super::*;

#[test]
fn patterns_match_within_a_name() {
    for (pattern, name, expected) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("*", "anything", true),
        ("python3*", "python3.11", true),
        ("python3*", "python2", false),
        ("*.pyc", "a.pyc", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c-b", false),
        // The first and the last part may not share bytes.
        ("ab*ba", "aba", false),
    ] {
        assert_eq!(
            matches(pattern.as_bytes(), name.as_bytes()),
            expected,
            "{pattern} {name}"
        );
    }
}

#[test]
fn reads_a_directory_as_if_it_were_roots() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("bin")).unwrap();
    fs::write(path.join("bin/tool"), "x").unwrap();
    fs::set_permissions(path.join("bin/tool"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("bin/tool", path.join("link")).unwrap();

    let root = Entry::read(path).unwrap();
    let tool = root.get("/bin/tool").unwrap();
    assert_eq!((tool.mode, tool.user, tool.group), (0o4751, 0, 0));
    assert!(
        matches!(&root.get("/link").unwrap().node, Node::Link(target) if target == b"bin/tool")
    );
    assert!(root.get("/link/x").is_none());
}

#[test]
fn a_socket_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = Entry::read(directory.path()).unwrap_err();
    assert!(error.to_string().contains("socket"), "{error}");
}

#[test]
fn inserts_with_the_directories_on_the_way_and_keeps_what_a_directory_holds() {
    let mut root = Entry::directory(0o755);
    let file = |text: &str| Entry::of_root(0o644, Node::Bytes(text.as_bytes().to_vec()));
    root.insert("/home/user/a", file("a")).unwrap();
    let mut home = Entry::directory(0o700);
    home.user = 1000;
    root.insert("/home/user", home).unwrap();

    let user = root.get("/home/user").unwrap();
    assert_eq!((user.mode, user.user), (0o700, 1000));
    assert!(root.get("/home/user/a").is_some());

    let refused = root.insert("/home/user/a/b", file("b")).unwrap_err();
    assert!(matches!(refused, TreeError::NotADirectory(_)), "{refused}");
    for path in ["relative", "/../up", "/", ""] {
        let refused = root.insert(path, file("x")).unwrap_err();
        assert!(matches!(refused, TreeError::Path(_)), "{path}: {refused}");
    }
}

#[test]
fn removes_what_a_pattern_names_and_counts_it() {
    let mut root = Entry::directory(0o755);
    for path in ["/a/one.x/f", "/a/two.x/f", "/a/three.y/f", "/b/one.x/f"] {
        root.insert(path, Entry::of_root(0o644, Node::Bytes(Vec::new())))
            .unwrap();
    }
    assert_eq!(root.remove("/a/*.x").unwrap(), 2);
    assert_eq!(root.remove("/*/*/f").unwrap(), 2);
    assert_eq!(root.remove("/a/nothing").unwrap(), 0);
    assert!(root.get("/a/three.y").is_some());
    assert!(root.get("/a/three.y/f").is_none());
}
