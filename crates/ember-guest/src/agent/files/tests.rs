//! Where paths lead, for a user and for root.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// What this process may do, a process of root's may as well: the rule about links can be seen
/// without being root.
fn finders() -> [(bool, Finder); 2] {
    [false, true].map(|careful| (careful, Finder::new(careful)))
}

fn bytes(path: &std::path::Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

#[test]
fn roots_paths_go_through_no_link_that_others_may_have_put_there() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    // Others can put things there, whoever runs this test.
    std::os::unix::fs::chown(root, Some(1000), None).ok();
    fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/file"), "x").unwrap();
    symlink("d", root.join("door")).unwrap();
    symlink("d/file", root.join("link")).unwrap();
    symlink(root.join("new"), root.join("dangling")).unwrap();
    for (careful, finder) in finders() {
        for path in ["door/file", "link", "dangling", "d/../door/file", "door/"] {
            let path = root.join(path);
            let found = finder.find(bytes(&path));
            assert_eq!(found.is_err(), careful, "{path:?}: {found:?}");
            if let Err(error) = found {
                assert_eq!(error.raw_os_error(), Some(nix::libc::ELOOP));
            }
        }
        // The link itself is what is meant.
        let link = finder.find_link(bytes(&root.join("link"))).unwrap();
        assert_eq!(
            FileType::from_raw_mode(link.stat().unwrap().st_mode),
            FileType::Symlink
        );
        for path in ["d/file", "./d//file", "d/../d/file", "d/."] {
            finder.find(bytes(&root.join(path))).unwrap();
        }
        assert_eq!(
            finder.make_directory(bytes(&root.join("door/m"))).is_err(),
            careful
        );
        finder.make_directory(bytes(&root.join("a/b/c"))).unwrap();
        finder.make_directory(bytes(&root.join("a/b/c/"))).unwrap();
    }
    assert!(root.join("d/m").is_dir());
    assert!(root.join("a/b/c").is_dir());
}

/// Links that only root can have made are followed by root as well: `/bin` is one.
#[test]
fn the_systems_own_links_are_followed() {
    for (_, finder) in finders() {
        let found = finder.find(b"/proc/self/exe/..");
        assert_eq!(found.unwrap_err().raw_os_error(), Some(nix::libc::ENOTDIR));
        if fs::symlink_metadata("/bin").unwrap().is_symlink() {
            let place = finder.find(b"/bin/sh").unwrap();
            assert!(!place.is_doubtful);
        }
    }
}

#[test]
fn what_is_there_and_what_is_not() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    fs::write(root.join("file"), "x").unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let error = |path: &str| {
        let found = Finder::new(false).find(bytes(&root.join(path)));
        found.unwrap_err().raw_os_error().unwrap()
    };
    assert_eq!(error("file/x"), nix::libc::ENOTDIR);
    assert_eq!(error("file/"), nix::libc::ENOTDIR);
    assert_eq!(error("none/x"), nix::libc::ENOENT);
    assert_eq!(error("none/"), nix::libc::ENOENT);
    assert_eq!(error("loop"), nix::libc::ELOOP);
    // To be made.
    Finder::new(false).find(bytes(&root.join("none"))).unwrap();
    Finder::new(false).find(b"").unwrap_err();
    let made = Finder::new(false).make_directory(bytes(&root.join("file/d")));
    assert_eq!(made.unwrap_err().raw_os_error(), Some(nix::libc::ENOTDIR));
    let made = Finder::new(false).make_directory(bytes(&root.join("file")));
    assert_eq!(made.unwrap_err().raw_os_error(), Some(nix::libc::ENOTDIR));
}

/// A second name that somebody gave a file of root's.
#[test]
fn root_writes_to_no_file_with_other_names_where_others_can_make_some() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    fs::write(root.join("one"), "kept").unwrap();
    fs::hard_link(root.join("one"), root.join("two")).unwrap();
    let mut found = Finder::new(false).find(bytes(&root.join("two"))).unwrap();
    found.is_doubtful = true;
    let error = open_to_write(&found, false, 0o600).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EMLINK));
    assert_eq!(fs::read_to_string(root.join("one")).unwrap(), "kept");
    found.is_doubtful = false;
    open_to_write(&found, false, 0o600).unwrap();
    assert_eq!(fs::read_to_string(root.join("one")).unwrap(), "");
}

#[test]
fn only_files_are_read_and_written() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("d");
    fs::create_dir(&directory).unwrap();
    let pipe = place.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let find = |path: &std::path::Path| Finder::new(false).find(bytes(path)).unwrap();
    let error = |result: io::Result<File>| result.unwrap_err().raw_os_error();
    assert_eq!(error(open_file(&find(&pipe))), Some(nix::libc::EINVAL));
    assert_eq!(error(open_file(&find(&directory))), Some(nix::libc::EISDIR));
    let isdir = Some(nix::libc::EISDIR);
    assert_eq!(error(open_to_write(&find(&directory), false, 0)), isdir);
}

/// All in a directory of the test's own: what it asks to be removed would be.
#[test]
fn a_directory_is_not_removed_under_a_name_that_it_does_not_have() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("d");
    fs::create_dir_all(directory.join("e")).unwrap();
    for finder in [Finder::new(false), Finder::new(true)] {
        for path in ["d/.", "d/./", "d/e/..", "d/e/../", "."] {
            let path = place.path().join(path);
            let found = finder.find_link(bytes(&path)).unwrap();
            assert!(found.is_directory_itself(), "{path:?}: {found:?}");
            assert!(remove(&found).is_err(), "{path:?}");
        }
    }
    assert!(directory.join("e").is_dir());
    remove(&Finder::new(false).find_link(bytes(&directory)).unwrap()).unwrap();
    assert!(!directory.exists());
    assert!(place.path().is_dir());
}
