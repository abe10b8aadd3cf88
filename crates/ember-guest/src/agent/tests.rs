//! What the program makes of its arguments.

use super::*;

fn role_of(first: bool, arguments: &[&str]) -> Result<Role, &'static str> {
    let name = OsStr::new("ember-agent");
    role(first, name, &mut arguments.iter().map(OsString::from))
}

#[test]
fn the_program_for_files_is_known_by_its_name() {
    let mut arguments = ["stat", "x"].iter().map(OsString::from);
    let name = OsStr::from_bytes(FILES_PROGRAM);
    assert_eq!(role(false, name, &mut arguments), Ok(Role::Files));
    assert_eq!(arguments.next(), Some("stat".into()), "the rest is its own");
    assert_eq!(role(true, name, &mut arguments), Ok(Role::Init));
}

#[test]
fn the_first_process_is_init() {
    assert_eq!(role_of(true, &[]), Ok(Role::Init));
    // Words of the kernel's command line that nobody else knew.
    assert_eq!(role_of(true, &["splash", "x=y"]), Ok(Role::Init));
}

#[test]
fn any_other_process_has_to_be_told() {
    assert_eq!(role_of(false, &[]), Err(USAGE));
    assert_eq!(role_of(false, &["--serve-unix"]), Err(USAGE));
    assert_eq!(role_of(false, &["--serve-unix", "/s", "more"]), Err(USAGE));
    assert_eq!(role_of(false, &["--version"]), Ok(Role::Version));
    for first in [false, true] {
        assert_eq!(
            role_of(
                first,
                &["--serve-unix", "/s", "--cgroup", "/c", "--identity", "/i"]
            ),
            Ok(Role::Serve {
                socket: "/s".into(),
                cgroup: Some("/c".into()),
                identity: Some("/i".into()),
            })
        );
    }
}
