//! Makes the checksums of a file right, so that what they protect can be tried out.

use std::io::Write;

use super::container::{HEADER_BYTES, Section};
use super::sections::{IdHasher, is_pages};

/// The length of the file, all checksums and the id, as they would be if somebody had written these
/// sections. What the directory says otherwise is left as it is.
pub(crate) fn repair(bytes: &mut [u8]) -> Option<()> {
    let length = bytes.len() as u64;
    let number = |bytes: &[u8], at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
    };
    let count = u32::from_le_bytes(*bytes.get(12..)?.first_chunk()?);
    let mut id = IdHasher::new();
    for entry in (64..HEADER_BYTES)
        .step_by(32)
        .take(usize::try_from(count).ok()?)
    {
        let kind = number(bytes, entry)?;
        let (offset, size) = (number(bytes, entry + 8)?, number(bytes, entry + 16)?);
        let section = Section {
            id: (kind & 0xffff_ffff) as u32,
            version: (kind >> 32 & 0xffff) as u16,
            skippable: kind >> 48 & 1 != 0,
            offset,
            length: size,
            checksum: 0,
        };
        id.section(&section);
        if is_pages(section.id) {
            continue;
        }
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        let content = bytes.get(start..end)?;
        let checksum = crc32c::crc32c(content);
        id.content(content);
        bytes
            .get_mut(entry + 24..)?
            .write_all(&checksum.to_le_bytes())
            .ok()?;
    }
    bytes.get_mut(16..)?.write_all(&length.to_le_bytes()).ok()?;
    bytes.get_mut(24..)?.write_all(&[0; 4]).ok()?;
    bytes
        .get_mut(32..)?
        .write_all(id.finish().as_bytes())
        .ok()?;
    let checksum = crc32c::crc32c(bytes.get(..HEADER_BYTES)?);
    bytes.get_mut(24..)?.write_all(&checksum.to_le_bytes()).ok()
}
