//! Clones one after another, and many at once: nothing of them is left. `stress_clones` has more.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use ember_core::Backing;

/// In huge pages, with which a clone costs the least where there are no processors for VMs.
#[test]
fn clones_one_after_another_leave_nothing_behind() {
    ember_leak::isolated!(|| common::clones::cycles_leave_nothing_behind(
        1_000,
        Backing::HugePages
    ));
}

#[test]
fn snapshots_of_a_busy_guest_lose_nothing() {
    common::load::snapshots_of_a_busy_guest_lose_nothing(4, 3);
}

#[test]
fn sixteen_threads_clone_at_once() {
    ember_leak::isolated!(|| common::clones::threads_clone_at_once(16, 2));
}

#[test]
fn a_hundred_clones_at_once_leave_nothing_behind() {
    ember_leak::isolated!(|| common::clones::many_at_once_leave_nothing_behind(
        common::template("python"),
        100,
        20
    ));
}
