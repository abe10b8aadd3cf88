//! Clones one after another, and many at once: nothing of them is left. `stress_clones` has more.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

#[test]
fn clones_one_after_another_leave_nothing_behind() {
    ember_leak::isolated!(|| common::clones::cycles_leave_nothing_behind(200));
}

#[test]
fn fifty_clones_at_once_leave_nothing_behind() {
    ember_leak::isolated!(|| common::clones::many_at_once_leave_nothing_behind(50));
}
