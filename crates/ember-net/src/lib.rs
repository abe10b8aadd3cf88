//! The host's side of a guest's network.
