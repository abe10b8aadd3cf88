//! What lives inside a guest, and how a host speaks with it.
//!
//! - [`protocol`]: frames and messages, without I/O.
//! - [`host`]: the host's half of it, for tokio (feature `host`).
//! - `agent`: the guest's half, PID 1 of every guest (feature `agent`, which only the build of the
//!   agent itself needs).
//! - [`AGENT`]: the agent as a static program, to put into an initramfs (feature `embed`).
//! - [`archive`]: trees of files as tar streams, for both (feature `archive`).
//! - [`packs`]: the recipes of the images that come with it.
//! - [`volumes`]: where a guest's volumes are, as its kernel's command line says it.
#![deny(unsafe_code)]

#[cfg(any(test, feature = "agent"))]
pub mod agent;
#[cfg(any(test, feature = "archive"))]
pub mod archive;
#[cfg(feature = "host")]
pub mod host;
pub mod packs;
pub mod protocol;
pub mod volumes;

/// The agent: a static program for this crate's target, to be started as a guest's `/init`.
#[cfg(feature = "embed")]
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ember-agent"));
