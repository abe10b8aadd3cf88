//! A VM in a process of its own.
//!
//! - [`protocol`]: what goes between a worker and whoever started it, without I/O.
//! - [`wire`]: the socket that it goes over, with descriptors beside it.
//! - [`host`]: who starts workers ahead of time and has VMs in them (feature `host`).
//! - `worker`: the worker's half (feature `worker`, which only the build of the worker itself needs).
//! - [`WORKER`]: the worker as a static program, to be executed from memory (feature `embed`).
//!
//! A worker is a small program that links the monitor and nothing else. It is not the application
//! executed again: it has neither its memory nor its descriptors, environment and habits.
#![deny(unsafe_code)]

#[cfg(all(feature = "host", feature = "embed"))]
pub mod host;
pub mod protocol;
pub mod wire;
#[cfg(any(test, feature = "worker"))]
pub mod worker;

/// The worker: a static program for this crate's target, to be executed with its end of a socket of
/// [`wire`] as standard input.
#[cfg(feature = "embed")]
pub static WORKER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ember-worker"));
