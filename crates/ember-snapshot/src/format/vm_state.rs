//! The machine's state as bytes.

use super::FormatError;
use crate::state::VmState;

/// Writes the state as bytes.
///
/// # Errors
/// Only if the encoder has one: a state always can be written.
pub fn encode_state(state: &VmState) -> Result<Vec<u8>, FormatError> {
    postcard::to_allocvec(state).map_err(FormatError::State)
}

/// Reads a state from what [`encode_state`] wrote, all of it.
///
/// What this allocates is in proportion to `bytes`: lengths in them are held against what is there,
/// and nothing in a state takes no bytes. Nothing is checked but that it can be read.
pub fn decode_state(bytes: &[u8]) -> Result<VmState, FormatError> {
    match postcard::take_from_bytes(bytes) {
        Ok((state, [])) => Ok(state),
        Ok(_) => Err(FormatError::Damaged(
            "something follows the machine's state",
        )),
        Err(error) => Err(FormatError::State(error)),
    }
}
