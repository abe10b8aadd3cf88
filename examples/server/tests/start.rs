//! What the server says that cannot start.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "it is a test"
)]

mod common;

use std::fs;
use std::net::TcpListener;

use common::command;

/// Its exit status, and what it says.
fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = command(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty());
    (output.status.code(), said)
}

#[test]
fn without_a_key_it_does_not_listen_to_the_world() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let (status, said) = refused(&["--listen", address], &[]);
        assert_eq!(status, Some(1), "{said}");
        assert!(
            said.contains("--key-file") && said.contains("EMBER_API_KEY"),
            "{said}"
        );
    }
}

#[test]
fn a_key_that_is_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let file = path.to_str().unwrap();
    let (status, said) = refused(&["--key-file", file], &[]);
    assert_eq!(status, Some(1));
    assert!(
        said.contains(file) && said.contains("No such file"),
        "{said}"
    );
    for key in ["", "short"] {
        fs::write(&path, key).unwrap();
        let (status, said) = refused(&["--key-file", file], &[]);
        assert_eq!(status, Some(1));
        assert!(said.contains(file), "{said}");
    }
    let (status, said) = refused(&[], &[("EMBER_API_KEY", "short")]);
    assert_eq!(status, Some(1));
    assert!(
        said.contains("EMBER_API_KEY") && said.contains("openssl"),
        "{said}"
    );
    assert!(!said.contains("\"short\""), "{said}");
}

#[test]
fn packs_and_files_that_are_not_there_are_named() {
    for (arguments, words) in [
        (["--packs", "python,cobol"], ["\"cobol\"", "python"]),
        (
            ["--warm-up", "/nowhere/x.py"],
            ["/nowhere/x.py", "No such file"],
        ),
        (["--warm-up", "Cargo.toml"], ["Cargo.toml", "extension"]),
        (["--ready", "65"], ["65", "--max"]),
    ] {
        let (status, said) = refused(&arguments, &[]);
        assert_eq!(status, Some(1), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}

#[test]
fn a_port_that_is_in_use_is_named() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let (status, said) = refused(&["--listen", &address], &[]);
    assert_eq!(status, Some(1));
    assert!(
        said.contains(&address) && said.contains("--listen"),
        "{said}"
    );
}
