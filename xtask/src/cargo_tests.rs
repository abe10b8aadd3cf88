use super::*;

#[test]
fn executables_are_found_among_cargos_messages() {
    let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/a#ember-a@0.1.0",
        "manifest_path":"/w/a/Cargo.toml","target":{"kind":["test"],"name":"kvm_boot"},
        "executable":"/w/target/debug/deps/kvm_boot-1"}"#
        .replace('\n', "");
    let built = parse_artifact(&line).unwrap();
    assert_eq!(
        (built.target.as_str(), built.kind.as_str()),
        ("kvm_boot", "test")
    );
    assert_eq!(built.directory, Path::new("/w/a"));
    let library = line.replace("\"/w/target/debug/deps/kvm_boot-1\"", "null");
    assert_eq!(parse_artifact(&library), None);
    assert_eq!(
        parse_artifact(r#"{"reason":"build-finished","success":true}"#),
        None
    );
    assert_eq!(parse_artifact("not json"), None);
}

#[test]
fn settings_of_the_user_stay_and_those_of_this_run_go() {
    assert!(is_of_this_run("CARGO_PKG_NAME"));
    assert!(is_of_this_run("CARGO_MANIFEST_DIR"));
    assert!(!is_of_this_run("CARGO_HOME"));
    assert!(!is_of_this_run("CARGO_TARGET_DIR"));
    assert!(!is_of_this_run("CARGO"));
}
