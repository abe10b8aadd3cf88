//! The x86_64 architecture.

#[allow(
    dead_code,
    reason = "the address map is complete before all of its users are"
)]
pub(crate) mod layout;
