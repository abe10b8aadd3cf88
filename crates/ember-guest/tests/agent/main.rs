//! The agent as it is embedded, served on a UNIX socket of this machine, against the host's half.
#![cfg(all(feature = "host", feature = "embed"))]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test"
)]

mod commands;
mod common;
mod files;
mod freezing;
mod hooks;
mod refusals;
mod streams;
mod terminal;
mod trees;
mod warm;
mod wire;
