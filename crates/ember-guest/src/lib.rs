//! What lives inside a guest.

pub mod packs;
