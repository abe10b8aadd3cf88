//! The program that is PID 1 of every guest. All of it is in the library, under `agent`.
//!
//! It has no `main` of Rust's: the standard library's start-up opens `/dev/null` in place of
//! standard streams that are missing, and aborts where there is no `/dev/null`, which is how an
//! initramfs begins.
#![no_main]
#![allow(
    unsafe_code,
    reason = "the name by which the C library starts a program"
)]

// SAFETY: no other symbol of this name is linked, and the signature is one that the C library
// calls: arguments that are not declared are not looked at.
#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    ember_guest::agent::main()
}
