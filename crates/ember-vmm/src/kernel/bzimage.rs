//! Parsing of bzImages, the files that distributions call `vmlinuz` (Linux
//! `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header"). No I/O.

use std::ops::Range;

use super::elf::{u16_at, u32_at, u64_at};

/// Offset of the setup header, in the file and in the zero page.
pub(crate) const SETUP_HEADER_OFFSET: usize = 0x1F1;
/// Where the setup header ends at the latest: behind it the zero page has other things.
const SETUP_HEADER_END_MAX: usize = 0x290;
/// The field that follows the last one of protocol 2.12.
const SETUP_HEADER_END_MIN: usize = 0x268;

const SECTOR: usize = 512;
const BOOT_FLAG: u16 = 0xAA55;
const HEADER_MAGIC: [u8; 4] = *b"HdrS";
/// The first version with a payload that can be found.
const VERSION_PAYLOAD: u16 = 0x208;
/// The first version with `init_size` and `pref_address`.
const VERSION_INIT_SIZE: u16 = 0x20A;
/// The first version with the 64-bit entry point.
const VERSION_64_BIT: u16 = 0x20C;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;

/// Whether a file that begins with these bytes is a Linux boot image.
pub(crate) fn is_bzimage(start: &[u8]) -> bool {
    start.get(0x1FE..0x200) == Some(&BOOT_FLAG.to_le_bytes())
        && start.get(0x202..0x206) == Some(&HEADER_MAGIC)
}

/// What a bzImage says of itself. All ranges lie within the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BzImage {
    /// The setup header.
    pub(crate) setup: SetupHeader,
    /// Where the compressed kernel is in the file.
    pub(crate) payload: Range<usize>,
    /// Where the protected-mode code is in the file: the unpacker with the payload in it.
    pub(crate) code: Range<usize>,
}

/// The setup header, as the kernel wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetupHeader {
    /// Its bytes, which belong at [`SETUP_HEADER_OFFSET`] of the zero page.
    pub(crate) bytes: Vec<u8>,
    /// Version of the boot protocol.
    pub(crate) version: u16,
    /// Where the kernel wants to be.
    pub(crate) preferred_address: u64,
    /// How much memory it takes from there on until it has read its memory map; 0 if unknown.
    pub(crate) init_size: u32,
    /// The last address at which a byte of the initramfs may be.
    pub(crate) initrd_address_max: u32,
    /// The longest command line, without the zero byte.
    pub(crate) command_line_max: u32,
    /// Whether it can be entered in 64-bit mode.
    pub(crate) has_64_bit_entry: bool,
}

/// Why a bzImage cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BzImageError {
    /// It ends within something that it says it has.
    #[error("the bzImage is cut off: {0} lies beyond its end")]
    Truncated(&'static str),
    /// From before Linux 2.6.26.
    #[error("the bzImage is too old (boot protocol {0:#06x}); Linux 2.6.26 or newer is needed")]
    Version(u16),
    /// An image for low memory.
    #[error("the file is a zImage, which is loaded below 1 MiB; build the kernel as a bzImage")]
    LoadedLow,
    /// The end of the setup header is nowhere sensible.
    #[error("the bzImage's setup header is malformed")]
    SetupHeader,
}

impl BzImage {
    /// Parses the file `bytes`, for which [`is_bzimage`] holds.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BzImageError> {
        let setup = SetupHeader::parse(bytes)?;

        let sectors = match bytes[SETUP_HEADER_OFFSET] {
            0 => 4, // as boot.rst has it, for the oldest of images
            sectors => usize::from(sectors),
        };
        let code_start = (sectors + 1) * SECTOR;
        // In paragraphs. What follows, such as a signature, is not loaded.
        let code_size = u64::from(u32_at(bytes, 0x1F4)) * 16;
        let code = part(bytes, code_start, code_size, "its code")?;
        let payload_offset = u64::from(u32_at(bytes, 0x248));
        let payload_size = u64::from(u32_at(bytes, 0x24C));
        // Checked against the file, not against the code, whose size older build tools got wrong.
        let payload = usize::try_from(payload_offset)
            .ok()
            .and_then(|offset| code_start.checked_add(offset))
            .ok_or(BzImageError::Truncated("its payload"))
            .and_then(|start| part(bytes, start, payload_size, "its payload"))?;
        Ok(Self {
            setup,
            payload,
            code,
        })
    }
}

fn part(
    bytes: &[u8],
    start: usize,
    size: u64,
    what: &'static str,
) -> Result<Range<usize>, BzImageError> {
    usize::try_from(size)
        .ok()
        .and_then(|size| start.checked_add(size))
        .filter(|end| *end <= bytes.len())
        .map(|end| start..end)
        .ok_or(BzImageError::Truncated(what))
}

impl SetupHeader {
    fn parse(bytes: &[u8]) -> Result<Self, BzImageError> {
        // Every field that is read below lies in front of this.
        if bytes.len() < SETUP_HEADER_END_MAX {
            return Err(BzImageError::Truncated("its setup header"));
        }
        let version = u16_at(bytes, 0x206);
        if version < VERSION_PAYLOAD {
            return Err(BzImageError::Version(version));
        }
        if bytes[0x211] & LOADED_HIGH == 0 {
            return Err(BzImageError::LoadedLow);
        }
        // The jump over the header says where it ends.
        let end = 0x202 + usize::from(bytes[0x201]);
        if end > SETUP_HEADER_END_MAX
            || (version >= VERSION_64_BIT && end < SETUP_HEADER_END_MIN)
            || end < 0x250
        {
            return Err(BzImageError::SetupHeader);
        }
        let has_init_size = version >= VERSION_INIT_SIZE;
        Ok(Self {
            bytes: bytes[SETUP_HEADER_OFFSET..end].to_vec(),
            version,
            preferred_address: if has_init_size {
                u64_at(bytes, 0x258)
            } else {
                0
            },
            init_size: if has_init_size {
                u32_at(bytes, 0x260)
            } else {
                0
            },
            initrd_address_max: u32_at(bytes, 0x22C),
            command_line_max: u32_at(bytes, 0x238),
            has_64_bit_entry: version >= VERSION_64_BIT
                && u16_at(bytes, 0x236) & XLF_KERNEL_64 != 0,
        })
    }
}
