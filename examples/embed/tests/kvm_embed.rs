//! The README's program works.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

use std::process::Command;

#[test]
fn the_program_runs_to_its_end() {
    let output = Command::new(env!("CARGO_BIN_EXE_ember-embed"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.starts_with(b"Linux "), "{output:?}");
}
