//! Sandboxes over HTTP: a thin server over pools of clones, which speaks the protocols of emberd and
//! zeroboot.
//!
//! | module | what |
//! | --- | --- |
//! | `options` | what can be said on the command line |
//! | `server` | connections, and the orderly end |
//! | `router` | which path is whose, and what every request goes through |
//! | `api` | the endpoints: emberd's, zeroboot's, and those for operators |
//! | `packs` | a pool for each language pack |
//! | `sandboxes` | the sandboxes that clients hold by an id, and their eviction |
//! | `execution` | running code, and what came of it |
//! | `keys`, `body`, `error`, `metrics` | who may, what they send, what they are told, what is counted |
#![forbid(unsafe_code)]

mod api;
mod app;
mod body;
mod error;
mod execution;
mod keys;
mod metrics;
mod options;
mod packs;
mod router;
mod sandboxes;
mod server;

pub use options::Options;
pub use server::Server;

#[cfg(test)]
mod tests;
