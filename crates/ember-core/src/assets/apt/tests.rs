use super::*;

#[test]
fn reads_what_print_uris_says() {
    let line = "'http://deb.debian.org/debian/pool/main/p/procps/procps_4.0.2-3_amd64.deb' \
                procps_2%3a4.0.2-3_amd64.deb 708712 MD5Sum:0123";
    assert_eq!(
        parse_uri(line),
        Some((
            "procps".to_owned(),
            "2:4.0.2-3".to_owned(),
            "procps_2%3a4.0.2-3_amd64.deb".to_owned()
        ))
    );
    for wrong in [
        "",
        "'x'",
        "'x' name.deb",
        "'x' a/../b_1_all.deb",
        "'x' .a_1_all.deb",
    ] {
        assert_eq!(parse_uri(wrong), None, "{wrong}");
    }
}

#[test]
fn finds_the_kernel_that_a_meta_package_depends_on() {
    let stanza = "Package: linux-image-cloud-amd64\nPre-Depends: linux-image-wrong\n\
                  Depends: base, linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)\n";
    assert_eq!(
        parse_dependency(stanza, "linux-image-").as_deref(),
        Some("linux-image-6.12.117+deb12-cloud-amd64")
    );
    assert_eq!(parse_dependency("Package: x\n", "linux-image-"), None);
}

#[test]
fn a_failure_shows_what_was_tried_and_the_end_of_what_was_said() {
    let mut command = Command::new("sh");
    command.args(["-c", "seq 20 >&2; exit 3"]);
    let error = run("sh", &mut command, "tried to count").unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("tried to count, but sh failed"), "{text}");
    assert!(text.ends_with("\n19\n20"), "{text}");
    assert!(!text.contains("\n12\n"), "{text}");
}

#[test]
fn unpacking_what_is_no_package_fails_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let package = directory.path().join("fake.deb");
    fs::write(&package, "nothing").unwrap();
    let error = unpack(&package, directory.path()).unwrap_err();
    assert!(error.to_string().contains("fake.deb"), "{error}");
}
