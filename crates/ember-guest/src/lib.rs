//! What lives inside a guest, and how a host speaks with it.
//!
//! - [`protocol`]: frames and messages, without I/O.
//! - [`host`]: the host's half of it, for tokio (feature `host`).
//! - [`packs`]: the recipes of the images that come with it.
#![deny(unsafe_code)]

#[cfg(feature = "host")]
pub mod host;
pub mod packs;
pub mod protocol;
