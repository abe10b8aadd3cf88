use super::*;

#[test]
fn a_line_that_did_not_survive_is_named() {
    let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=32\nCONFIG_ON=y\n";
    let fragment = "# comment\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_GONE=n\nCONFIG_N=32\n";
    assert!(lost_lines(fragment, config).is_empty());
    let fragment = "CONFIG_A=n\nCONFIG_B=y\nCONFIG_N=64\nCONFIG_GONE=y\n";
    assert_eq!(
        lost_lines(fragment, config),
        ["CONFIG_A=n", "CONFIG_B=y", "CONFIG_N=64", "CONFIG_GONE=y"]
    );
}

#[test]
fn the_fragment_names_nothing_twice() {
    let mut seen = std::collections::BTreeSet::new();
    for line in FRAGMENT.lines().filter(|line| line.starts_with("CONFIG_")) {
        let (name, _) = line.split_once('=').unwrap();
        assert!(seen.insert(name), "{name}");
    }
}
