//! A virtual machine at rest: its state as plain data, its memory as layers, the file that holds
//! both, and the store of such files.
//!
//! Nothing here knows of KVM calls, of an async runtime or of what runs inside a guest.
#![deny(unsafe_code)]

// Tests use what those outside use.
#[cfg(test)]
extern crate self as ember_snapshot;

mod digest;
pub mod disk;
pub mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod memory;
pub mod pager;
mod pages;
mod source;
pub mod state;
pub mod store;
pub mod vcpu;
mod working_set;

pub use digest::InvalidDigest;
pub use pager::HUGE_PAGE_BYTES;
pub use pages::{InvalidPages, MAX_MEMORY_BYTES, PAGE_SIZE, PageRun, PageSet};
pub use source::PageSource;
pub use working_set::WorkingSet;
