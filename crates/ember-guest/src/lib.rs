//! What lives inside a guest.
