//! The pages that clones need first.

use crate::pages::{InvalidPages, PageSet};

/// The pages that clones of a template touch before their first reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// Pages that they write to: each clone has its own of these.
    pub written: PageSet,
    /// Pages that they only read: all clones share these.
    pub read: PageSet,
}

impl WorkingSet {
    /// Writes it as bytes: the length in bytes of the first set as a 64-bit little-endian number,
    /// then the sets.
    pub fn encode(&self) -> Vec<u8> {
        let written = self.written.encode();
        let mut bytes = (written.len() as u64).to_le_bytes().to_vec();
        bytes.extend(written);
        bytes.extend(self.read.encode());
        bytes
    }

    /// Reads one from what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidPages> {
        let truncated = InvalidPages::Truncated(bytes.len());
        let (length, sets) = bytes.split_first_chunk::<8>().ok_or(truncated)?;
        let (written, read) = usize::try_from(u64::from_le_bytes(*length))
            .ok()
            .and_then(|length| sets.split_at_checked(length))
            .ok_or(truncated)?;
        Ok(Self {
            written: PageSet::decode(written)?,
            read: PageSet::decode(read)?,
        })
    }

    /// The page after the last one, 0 if there is none.
    pub fn end(&self) -> u64 {
        self.written.end().max(self.read.end())
    }
}
