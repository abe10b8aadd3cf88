//! 20 sandboxes, one after another: nothing of them is left.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

#[test]
fn twenty_boots_leave_nothing_behind() {
    ember_leak::isolated!(|| common::cycles::leave_nothing_behind(20));
}
