//! What a kernel unpacks before it has a disk.

use std::borrow::Cow;

/// An initial RAM file system: one or more cpio archives, compressed or not.
///
/// It is in pieces, which follow one another in the guest's memory, so that what a process has anyhow
/// need not be copied to be part of it: booting waits for each copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Initramfs(Vec<Cow<'static, [u8]>>);

impl Initramfs {
    /// The pieces, in their order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }

    /// Whether there is nothing in it, which a kernel is not told of.
    pub fn is_empty(&self) -> bool {
        self.pieces().all(<[u8]>::is_empty)
    }
}

impl From<Vec<u8>> for Initramfs {
    fn from(bytes: Vec<u8>) -> Self {
        Self(vec![bytes.into()])
    }
}

impl FromIterator<Cow<'static, [u8]>> for Initramfs {
    fn from_iter<I: IntoIterator<Item = Cow<'static, [u8]>>>(pieces: I) -> Self {
        Self(pieces.into_iter().collect())
    }
}
