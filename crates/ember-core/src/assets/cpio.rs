//! Archives in the format that the kernel unpacks as its initramfs: cpio, "newc".
//!
//! The kernel's `Documentation/driver-api/early-userspace/buffer-format.rst` has the grammar.
//! Times are zero and inode numbers count up, so the same contents give the same bytes.

use std::borrow::Cow;

use ember_vmm::kernel::Initramfs;

/// An archive that is being written.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    /// What is complete, which ends with a file's content.
    pieces: Vec<Cow<'static, [u8]>>,
    /// What follows it.
    bytes: Vec<u8>,
    entries: u32,
}

/// A field of the format is eight hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("{name} is too large for an initramfs: {size} bytes, and the format ends at 4 GiB")]
pub(crate) struct TooLarge {
    name: String,
    size: usize,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds a directory. Its parents must have been added before: the kernel creates none.
    pub(crate) fn directory(&mut self, name: &str, mode: u32) -> Result<(), TooLarge> {
        self.entry(name, DIRECTORY | mode, (0, 0), Cow::default())
    }

    /// Adds a file.
    pub(crate) fn file(
        &mut self,
        name: &str,
        mode: u32,
        data: impl Into<Cow<'static, [u8]>>,
    ) -> Result<(), TooLarge> {
        self.entry(name, REGULAR | mode, (0, 0), data.into())
    }

    /// Adds a character device.
    pub(crate) fn character_device(
        &mut self,
        name: &str,
        mode: u32,
        (major, minor): (u32, u32),
    ) -> Result<(), TooLarge> {
        self.entry(
            name,
            CHARACTER_DEVICE | mode,
            (major, minor),
            Cow::default(),
        )
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Result<Initramfs, TooLarge> {
        self.entries = 0;
        self.write("TRAILER!!!", 0, 1, (0, 0), Cow::default())?;
        // Archives are padded to the block of the tapes they were made for; a loader may round.
        self.pad(512);
        self.pieces.push(self.bytes.into());
        Ok(self.pieces.into_iter().collect())
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        data: Cow<'static, [u8]>,
    ) -> Result<(), TooLarge> {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        self.write(name.trim_start_matches('/'), mode, links, device, data)
    }

    fn write(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        (major, minor): (u32, u32),
        data: Cow<'static, [u8]>,
    ) -> Result<(), TooLarge> {
        let too_large = |size| TooLarge {
            name: name.to_owned(),
            size,
        };
        let size = u32::try_from(data.len()).map_err(|_| too_large(data.len()))?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| too_large(name.len()))?;
        self.bytes.extend_from_slice(b"070701");
        for field in [
            self.entries, // inode number
            mode,
            0, // owner
            0, // group
            links,
            0, // modification time
            size,
            0, // device the file was on, major and minor
            0,
            major,
            minor,
            name_size,
            0, // checksum, unused in this format
        ] {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        if !data.is_empty() {
            self.pieces.push(std::mem::take(&mut self.bytes).into());
            self.pieces.push(data);
            self.pad(4);
        }
        Ok(())
    }

    fn pad(&mut self, to: usize) {
        let pieces = self.pieces.iter().map(|piece| piece.len());
        let length = pieces.sum::<usize>() + self.bytes.len();
        let padding = length.next_multiple_of(to) - length;
        self.bytes.resize(self.bytes.len() + padding, 0);
    }
}

#[cfg(test)]
mod tests;
