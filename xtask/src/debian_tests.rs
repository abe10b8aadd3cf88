use super::*;

#[test]
fn versions_are_read_from_what_programs_print() {
    let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c)";
    assert_eq!(major_version(text), Some(10));
    assert_eq!(major_version("QEMU emulator version 7.2.17"), Some(7));
    assert_eq!(major_version("no such thing"), None);
}

#[test]
fn the_candidate_is_found_or_absent() {
    let policy = "p:\n  Installed: (none)\n  Candidate: 6.12.117-1~deb12u1\n  Version table:\n";
    assert_eq!(
        parse_candidate(policy).as_deref(),
        Some("6.12.117-1~deb12u1")
    );
    assert_eq!(parse_candidate("p:\n  Candidate: (none)\n"), None);
    assert_eq!(parse_candidate(""), None);
}

#[test]
fn a_meta_package_names_what_it_stands_for() {
    let text = "linux-image-6.12-amd64\n  Depends: linux-image-6.12.117+deb12-amd64\n";
    let found = parse_depends(text, "linux-image-");
    assert_eq!(found.as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
    let source = "linux-source-6.12\n  Depends: binutils\n  Depends: xz-utils\n";
    assert_eq!(parse_depends(source, "linux-source-"), None);
}

#[test]
fn quoting_reads_back() {
    assert_eq!(quote("apt-get"), "apt-get");
    assert_eq!(quote("a b"), "'a b'");
    assert_eq!(quote("it's"), r"'it'\''s'");
    assert_eq!(quote(""), "''");
}

#[test]
fn what_is_installed_comes_from_backports_where_it_must() {
    let [qemu, busybox] = &LAB_TOOLS;
    let text = |missing: &[&Tool], release, known| {
        let commands = installation(missing, release, known);
        let lines: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
        lines.join("\n")
    };
    let both = text(&[qemu, busybox], Some("bookworm"), false);
    assert_eq!(both.lines().count(), 3, "{both}");
    assert!(
        both.contains("ember-backports.list\napt-get update"),
        "{both}"
    );
    assert!(
        both.ends_with("-t bookworm-backports qemu-system-x86/bookworm-backports busybox-static"),
        "{both}"
    );
    for (missing, release, known) in [
        (&[qemu, busybox][..], Some("bookworm"), true),
        (&[busybox], Some("bookworm"), false),
        (&[qemu], None, true),
    ] {
        let commands = text(missing, release, known);
        assert_eq!(commands.lines().count(), 2, "{commands}");
        let backports = missing.len() == 2;
        assert_eq!(commands.contains("backports"), backports, "{commands}");
    }
}
