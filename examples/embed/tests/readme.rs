//! The README shows this program, and not one that used to work.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

#[test]
fn the_readme_has_the_program_that_is_compiled_here() {
    let readme = include_str!("../../../README.md");
    let program = include_str!("../src/main.rs");
    let (_, shown) = program.split_once("\n\n").unwrap();
    assert!(
        readme.contains(&format!("```rust\n{shown}```")),
        "copy examples/embed/src/main.rs, from its first `use` on, into the README"
    );
}
