//! `ember image` as a program among programs. No guest is needed for it.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn ember(cache: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ember"));
    command.args(arguments).env("EMBER_CACHE", cache);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn images_are_built_listed_and_pruned() {
    let place = tempfile::tempdir().unwrap();
    let (cache, root) = (place.path().join("cache"), place.path().join("root"));
    fs::create_dir(&root).unwrap();
    let root = root.to_str().unwrap();
    let mut files = Vec::new();
    for content in ["one", "two"] {
        fs::write(format!("{root}/file"), content).unwrap();
        let output = ember(&cache, &["image", "build", root]);
        assert!(output.status.success(), "{output:?}");
        files.push(text(&output.stdout).trim_end().to_owned());
    }
    assert_ne!(files[0], files[1]);

    let listed = ember(&cache, &["image", "ls", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(listed[0]["names"], serde_json::json!([]));
    assert_eq!(listed[1]["names"], serde_json::json!([root]));
    assert_eq!(listed[1]["kind"], "directory");
    assert!(text(&ember(&cache, &["image", "ls"]).stdout).contains(root));

    let pruned = ember(&cache, &["image", "prune", "--json"]);
    let pruned: serde_json::Value = serde_json::from_slice(&pruned.stdout).unwrap();
    assert_eq!(pruned["removed"][0]["file"], files[0].as_str());
    assert!(!Path::new(&files[0]).exists() && Path::new(&files[1]).exists());
    assert!(ember(&cache, &["image", "prune", "--all"]).status.success());
    assert!(!Path::new(&files[1]).exists());
}

#[test]
fn what_cannot_be_pulled_or_built_is_said() {
    let place = tempfile::tempdir().unwrap();
    // Nobody listens on the first port.
    for (arguments, why) in [
        (&["image", "pull", "Wrong/name"][..], "no name of an image"),
        (
            &["image", "pull", "--plain-http", "127.0.0.1:1/a"],
            "cannot reach",
        ),
        (&["image", "build", "/nowhere"], "no name of a package"),
    ] {
        let output = ember(place.path(), arguments);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(text(&output.stderr).contains(why), "{output:?}");
    }
}
