//! Little-endian fields of a payload. Each read checks what is left before it takes anything.

use super::{Kind, Malformed};

/// The payload of one frame, read from the front.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    kind: Kind,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(kind: Kind, payload: &'a [u8]) -> Self {
        Self {
            kind,
            rest: payload,
        }
    }

    pub(super) fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(Malformed::Truncated {
                kind: self.kind,
                field,
            });
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], Malformed> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(Malformed::Truncated {
                kind: self.kind,
                field,
            });
        };
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A length of at most `limit`, then that many bytes.
    pub(super) fn string(
        &mut self,
        limit: usize,
        field: &'static str,
    ) -> Result<&'a [u8], Malformed> {
        let len = self.u32(field)? as usize;
        if len > limit {
            return Err(self.out_of_range(field, len as u64));
        }
        self.bytes(len, field)
    }

    /// As [`Self::string`], of UTF-8.
    pub(super) fn text(&mut self, limit: usize, field: &'static str) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.string(limit, field)?).map_err(|_| Malformed::NotText {
            kind: self.kind,
            field,
        })
    }

    pub(super) fn out_of_range(&self, field: &'static str, value: u64) -> Malformed {
        Malformed::OutOfRange {
            kind: self.kind,
            field,
            value,
        }
    }

    /// The payload has to end here.
    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(Malformed::Trailing {
                kind: self.kind,
                extra,
            }),
        }
    }
}

/// Appends a length and the bytes. Callers have checked the length against the field's limit, all
/// of which are far below 4 GiB.
pub(super) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}
