//! 10,000 clones one after another, and 1,000 at once: nothing of them is left.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use ember_core::{Backing, Placement};

#[test]
fn ten_thousand_clones_leave_nothing_behind() {
    ember_leak::isolated!(|| common::clones::cycles_leave_nothing_behind(10_000, Backing::Mapped));
}

/// A process each: in one, the memory of so many guests is one address space, and what the kernel
/// does to it takes the longer the more there are.
#[test]
fn a_thousand_clones_at_once_leave_nothing_behind() {
    ember_leak::isolated!(|| {
        let template = common::template("python").placement(Placement::Worker);
        common::clones::many_at_once_leave_nothing_behind(template, 1_000, 1_000);
    });
}

#[test]
fn five_hundred_snapshots_of_a_busy_guest_lose_nothing() {
    common::load::snapshots_of_a_busy_guest_lose_nothing(4, 500);
}

#[test]
fn sixteen_threads_clone_at_once() {
    ember_leak::isolated!(|| common::clones::threads_clone_at_once(16, 50));
}
