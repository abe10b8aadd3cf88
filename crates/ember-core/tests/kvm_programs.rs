//! The corpus of programs: the languages whose packs are small. `stress_programs` and
//! `stress_compilers` have the others.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use common::programs::run;

#[test]
fn python() {
    run("python", "python");
}

#[test]
fn javascript() {
    run("javascript", "javascript");
}

#[test]
fn bash() {
    run("bash", "bash");
}
