use super::*;

fn allowed() -> BTreeSet<String> {
    ["MIT", "Apache-2.0", "BSD-3-Clause", "Unicode-3.0"]
        .map(str::to_owned)
        .into()
}

#[test]
fn expressions_are_judged_by_their_operators() {
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "GPL-2.0 AND MIT OR Apache-2.0",
        "Apache-2.0 AND (GPL-3.0 OR BSD-3-Clause)",
    ] {
        assert!(satisfied(good, &allowed()), "{good}");
    }
    for bad in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR Apache-2.0) AND GPL-3.0",
        "",
        "MIT OR",
        "(MIT",
        "MIT)",
        "MIT GPL-3.0",
    ] {
        assert!(!satisfied(bad, &allowed()), "{bad}");
    }
}

#[test]
fn the_projects_own_list_is_read() {
    let text = fs::read_to_string(dirs::workspace().join("deny.toml")).unwrap();
    let allowed = allowed_licences(&text);
    assert!(allowed.contains("MIT") && allowed.contains("Apache-2.0"));
    assert!(
        !allowed.iter().any(|name| name.contains("GPL")),
        "{allowed:?}"
    );
}

#[test]
fn other_sources_and_missing_licences_are_complained_about() {
    let package = |source: Value, license: Value| serde_json::json!({"name": "n", "version": "1.0.0", "source": source, "license": license});
    let registry = Value::from(REGISTRY);
    assert_eq!(
        complaint(&package(registry.clone(), "MIT".into()), &allowed()),
        None
    );
    assert_eq!(
        complaint(&package(Value::Null, "MIT".into()), &allowed()),
        None
    );
    let git = package("git+https://example.org/n".into(), "MIT".into());
    assert!(complaint(&git, &allowed()).unwrap().contains("git+https"));
    let bare = package(registry.clone(), Value::Null);
    assert!(complaint(&bare, &allowed()).unwrap().contains("no licence"));
    let copyleft = package(registry, "GPL-2.0-only".into());
    assert!(complaint(&copyleft, &allowed()).unwrap().contains("GPL"));
}
