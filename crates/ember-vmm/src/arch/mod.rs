//! What differs between processor architectures, one folder each, behind one small seam: every
//! folder offers the same names, and the rest of the crate uses them through this module.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(target_arch = "x86_64")]
pub use x86_64::Processor;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("Ember runs on x86_64 only so far");
