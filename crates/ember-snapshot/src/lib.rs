//! A virtual machine at rest: its state as plain data, its memory as layers.
//!
//! Nothing here knows of KVM calls, of an async runtime or of what runs inside a guest.
#![deny(unsafe_code)]

pub mod memory;
mod pages;
mod source;
pub mod state;
pub mod vcpu;

pub use pages::{InvalidPages, MAX_MEMORY_BYTES, PAGE_SIZE, PageRun, PageSet};
pub use source::PageSource;
