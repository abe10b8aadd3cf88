//! A virtual machine at rest: its state as plain data.
//!
//! Nothing here knows of KVM calls, of an async runtime or of what runs inside a guest.
#![forbid(unsafe_code)]

pub mod state;
pub mod vcpu;
