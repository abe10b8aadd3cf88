//! The devices of a guest, one folder each.

pub mod virtio;
