//! The corpus of programs: the languages whose packs are large. `stress_compilers` has those whose
//! compilers take long.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use common::programs::run;

#[test]
fn typescript() {
    run("typescript", "typescript");
}

#[test]
fn csharp() {
    run("csharp", "csharp");
}

#[test]
fn ruby() {
    run("ruby", "ruby");
}
