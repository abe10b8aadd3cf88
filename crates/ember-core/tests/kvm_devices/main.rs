//! Every device of the monitor, met by a real guest: Linux's drivers on one side, the host's handles
//! on the other. Most tests share one guest, which has one of everything.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod balloon;
mod clones;
mod disk;
mod identity;
mod lab;
mod machine;
mod matrix;
mod network;
mod shapes;
mod vsock;
