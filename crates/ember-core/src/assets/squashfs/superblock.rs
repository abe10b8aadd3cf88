//! Whether a file is a squashfs, as far as its beginning says so. Without I/O: it comes from anybody.

use super::{MAGIC, SUPERBLOCK_SIZE};

/// What disks are made of.
const SECTOR: u64 = 512;
/// The version of the format, and where it and the number of used bytes stand in the superblock
/// (the kernel's `fs/squashfs/squashfs_fs.h`, `struct squashfs_super_block`).
const VERSION: (u16, u16) = (4, 0);
const MAJOR_AT: usize = 28;
const MINOR_AT: usize = 30;
const USED_AT: usize = 40;

/// Why a file is no squashfs that a guest could have as a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotSquashfs {
    #[error("it is no squashfs file")]
    Other,
    #[error("it is a squashfs file of version {0}.{1}, and guests read version 4.0")]
    Version(u16, u16),
    #[error("it ends after {length} bytes, and the squashfs in it has {used}")]
    Short { length: u64, used: u64 },
    #[error(
        "its size of {0} bytes is no multiple of {SECTOR}: `mksquashfs` pads it if it is not told \
         `-nopad`"
    )]
    NotPadded(u64),
}

/// Looks at how a file of `length` bytes begins.
pub(crate) fn recognise(begin: &[u8], length: u64) -> Result<(), NotSquashfs> {
    let magic = u32::from_le_bytes(bytes(begin, 0));
    if begin.len() < SUPERBLOCK_SIZE as usize || magic != MAGIC {
        return Err(NotSquashfs::Other);
    }
    let half = |at| u16::from_le_bytes(bytes(begin, at));
    let version = (half(MAJOR_AT), half(MINOR_AT));
    if version != VERSION {
        return Err(NotSquashfs::Version(version.0, version.1));
    }
    let used = u64::from_le_bytes(bytes(begin, USED_AT));
    if used > length {
        return Err(NotSquashfs::Short { length, used });
    }
    match length % SECTOR {
        0 => Ok(()),
        _ => Err(NotSquashfs::NotPadded(length)),
    }
}

/// The bytes there, or zeroes where there are none.
fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let found = from.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn superblock() -> Vec<u8> {
        let mut begin = vec![0; 96];
        begin[..4].copy_from_slice(b"hsqs");
        begin[28] = 4;
        begin[40..44].copy_from_slice(&5000_u32.to_le_bytes());
        begin
    }

    #[test]
    fn a_squashfs_is_all_there() {
        let begin = superblock();
        assert_eq!(recognise(&begin, 8192), Ok(()));
        assert_eq!(recognise(&begin, 5120), Ok(()));
        assert_eq!(
            recognise(&begin, 4096),
            Err(NotSquashfs::Short {
                length: 4096,
                used: 5000
            })
        );
        assert_eq!(recognise(&begin, 5001), Err(NotSquashfs::NotPadded(5001)));
        assert_eq!(recognise(&begin[..95], 8192), Err(NotSquashfs::Other));
        let mut older = begin.clone();
        older[28] = 3;
        older[30] = 1;
        assert_eq!(recognise(&older, 8192), Err(NotSquashfs::Version(3, 1)));
        let mut other = begin;
        other[0] = b's';
        assert_eq!(recognise(&other, 8192), Err(NotSquashfs::Other));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), length: u64) {
            let _ = recognise(&bytes, length);
            let _ = recognise(&[b"hsqs", bytes.as_slice()].concat(), length);
        }
    }
}
