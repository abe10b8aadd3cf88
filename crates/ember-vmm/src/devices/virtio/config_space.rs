//! Device configuration space: a few bytes that the driver reads at any offset and length.

/// Copies what `space` has at `offset` into `data`, whose bytes beyond the end of `space` stay as
/// they are.
pub(crate) fn read(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..));
    if let Some(rest) = rest {
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }
}
