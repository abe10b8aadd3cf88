//! 10,000 clones one after another, and 1,000 at once: nothing of them is left.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use ember_core::Backing;

#[test]
fn ten_thousand_clones_leave_nothing_behind() {
    ember_leak::isolated!(|| common::clones::cycles_leave_nothing_behind(10_000, Backing::Mapped));
}

#[test]
fn a_thousand_clones_at_once_leave_nothing_behind() {
    ember_leak::isolated!(|| common::clones::many_at_once_leave_nothing_behind(1_000, 1_000));
}

#[test]
fn five_hundred_snapshots_of_a_busy_guest_lose_nothing() {
    common::load::snapshots_of_a_busy_guest_lose_nothing(4, 500);
}

#[test]
fn sixteen_threads_clone_at_once() {
    ember_leak::isolated!(|| common::clones::threads_clone_at_once(16, 50));
}
