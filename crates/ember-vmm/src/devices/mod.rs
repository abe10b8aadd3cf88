//! The devices of a guest, one folder (or, where it is small, one file) each.

pub(crate) mod bus;
pub mod generation_id;
pub(crate) mod power;
pub mod serial;
pub mod virtio;
