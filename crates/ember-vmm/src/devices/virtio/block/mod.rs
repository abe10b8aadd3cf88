//! The virtio block device (specification section 5.2): a disk backed by a file.

mod device;
mod request;
#[cfg(test)]
mod tests;

use std::fs::File;

pub(crate) use device::BlockDevice;

/// A disk of a VM.
#[derive(Debug)]
pub struct BlockConfig {
    /// What is on the disk: a regular file or a block device. Its size, which must be a multiple of
    /// 512 bytes and must not change, is the disk's. All access is positioned, so a descriptor of a
    /// read-only image may be shared by any number of VMs.
    pub file: File,
    /// Whether the guest may only read. If not, `file` must be open for reading and writing, and
    /// not for appending.
    pub read_only: bool,
    /// The serial number, which the guest shows as `/sys/block/vda/serial`; at most 20 bytes.
    pub serial: String,
}

impl BlockConfig {
    /// A disk that the guest can only read.
    pub fn read_only(file: File) -> Self {
        Self {
            file,
            read_only: true,
            serial: String::new(),
        }
    }

    /// A disk that the guest can read and write.
    pub fn read_write(file: File) -> Self {
        Self {
            file,
            read_only: false,
            serial: String::new(),
        }
    }
}
