//! Parsing of ELF kernels (System V ABI, "Object Files"; AMD64 supplement). No I/O of its own.

use super::source::Source;

/// Size of the file header.
pub(crate) const HEADER_SIZE: usize = 64;
/// Size of one program header.
const PROGRAM_HEADER_SIZE: usize = 56;
/// More program headers than any kernel has; x86 kernels have five.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// More bytes of notes than any kernel has; x86 kernels have about 500.
const NOTES_MAX: u64 = 64 << 10;

/// How every ELF file begins.
pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the address at which a PVH guest is entered.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// What a loader needs to know of an ELF kernel. All ranges are checked: the file holds every
/// segment's bytes and no address wraps around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elf {
    /// Physical address of the 64-bit entry point, `startup_64`.
    pub(crate) entry: u64,
    /// Physical address of the PVH entry point, if the kernel has one.
    pub(crate) pvh_entry: Option<u32>,
    /// What is to be in memory. Never empty.
    pub(crate) segments: Vec<Segment>,
}

/// A part of the file, and where it is to be in physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where its bytes begin in the file.
    pub(crate) file_offset: u64,
    /// How many bytes of the file it has.
    pub(crate) file_size: u64,
    /// Its physical address.
    pub(crate) address: u64,
    /// How much memory it takes: at least `file_size`, the rest is zero.
    pub(crate) memory_size: u64,
}

impl Segment {
    /// The first address behind it.
    pub(crate) fn end(&self) -> u64 {
        self.address + self.memory_size
    }
}

/// Why an ELF file is not a kernel that can be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// It ends within something that it says it has.
    #[error("the ELF file is cut off: {0} lies beyond its end")]
    Truncated(&'static str),
    /// Not 64 bits, little endian.
    #[error("the ELF file is not 64-bit little-endian; only x86-64 kernels can be booted")]
    Class,
    /// For another processor.
    #[error(
        "the ELF file is for another processor (machine {0}); only x86-64 kernels can be booted"
    )]
    Machine(u16),
    /// An object file or a library.
    #[error("the ELF file is not an executable (type {0}); a kernel is")]
    Type(u16),
    /// Its program header table is not as the ABI has it.
    #[error("the ELF file has a bad program header table ({count} entries of {size} bytes)")]
    ProgramHeaders {
        /// Number of entries.
        count: u16,
        /// Size of one.
        size: u16,
    },
    /// A segment whose numbers contradict each other.
    #[error("segment {0} of the ELF file is malformed")]
    Segment(usize),
    /// Nothing to load.
    #[error("the ELF file has nothing to load")]
    Empty,
    /// Execution would not begin within what is loaded.
    #[error("the ELF file's entry point {0:#x} is outside of what it loads")]
    Entry(u64),
    /// Reading failed.
    #[error("the ELF file cannot be read")]
    Read(#[source] std::io::Error),
}

impl Elf {
    /// Parses the ELF file in `source`.
    pub(crate) fn parse<S: Source + ?Sized>(source: &S) -> Result<Self, ElfError> {
        let mut header = [0; HEADER_SIZE];
        read(source, 0, &mut header, "its header")?;
        let (entry, table) = parse_header(&header)?;

        let mut bytes = vec![0; usize::from(table.count) * PROGRAM_HEADER_SIZE];
        read(source, table.offset, &mut bytes, "its program header table")?;

        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for (index, entry) in bytes.chunks_exact(PROGRAM_HEADER_SIZE).enumerate() {
            let header = ProgramHeader::parse(entry);
            match header.kind {
                SEGMENT_LOAD if header.segment.memory_size > 0 => {
                    check_segment(&header.segment, index, source.len())?;
                    segments.push(header.segment);
                }
                // A kernel has one; what else is in a longer one is nothing that is needed here.
                SEGMENT_NOTE if pvh_entry.is_none() => {
                    let size = header.segment.file_size.min(NOTES_MAX);
                    let mut notes = vec![0; usize::try_from(size).unwrap_or_default()];
                    read(source, header.segment.file_offset, &mut notes, "its notes")?;
                    pvh_entry = find_pvh_entry(&notes);
                }
                _ => {}
            }
        }

        if segments.is_empty() {
            return Err(ElfError::Empty);
        }
        for entry in pvh_entry.map(u64::from).into_iter().chain([entry]) {
            if !segments
                .iter()
                .any(|s| (s.address..s.end()).contains(&entry))
            {
                return Err(ElfError::Entry(entry));
            }
        }
        Ok(Self {
            entry,
            pvh_entry,
            segments,
        })
    }
}

struct ProgramHeaderTable {
    offset: u64,
    count: u16,
}

fn parse_header(header: &[u8; HEADER_SIZE]) -> Result<(u64, ProgramHeaderTable), ElfError> {
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(ElfError::Class);
    }
    let machine = u16_at(header, 18);
    if machine != MACHINE_X86_64 {
        return Err(ElfError::Machine(machine));
    }
    let kind = u16_at(header, 16);
    if kind != TYPE_EXECUTABLE {
        return Err(ElfError::Type(kind));
    }
    let (size, count) = (u16_at(header, 54), u16_at(header, 56));
    if usize::from(size) != PROGRAM_HEADER_SIZE || count > PROGRAM_HEADERS_MAX {
        return Err(ElfError::ProgramHeaders { count, size });
    }
    Ok((
        u64_at(header, 24),
        ProgramHeaderTable {
            offset: u64_at(header, 32),
            count,
        },
    ))
}

struct ProgramHeader {
    kind: u32,
    segment: Segment,
}

impl ProgramHeader {
    /// `bytes` has [`PROGRAM_HEADER_SIZE`] bytes.
    fn parse(bytes: &[u8]) -> Self {
        Self {
            kind: u32_at(bytes, 0),
            segment: Segment {
                file_offset: u64_at(bytes, 8),
                address: u64_at(bytes, 24),
                file_size: u64_at(bytes, 32),
                memory_size: u64_at(bytes, 40),
            },
        }
    }
}

fn check_segment(segment: &Segment, index: usize, file_len: u64) -> Result<(), ElfError> {
    let malformed = ElfError::Segment(index);
    if segment.file_size > segment.memory_size {
        return Err(malformed);
    }
    if segment.address.checked_add(segment.memory_size).is_none() {
        return Err(malformed);
    }
    match segment.file_offset.checked_add(segment.file_size) {
        None => Err(malformed),
        Some(end) if end > file_len => Err(ElfError::Truncated("a segment")),
        Some(_) => Ok(()),
    }
}

/// Looks for the PVH entry point among notes. Notes that make no sense end the search: a kernel can
/// be booted without.
fn find_pvh_entry(mut notes: &[u8]) -> Option<u32> {
    const NOTE_HEADER_SIZE: usize = 12;
    let padded = |size: u32| usize::try_from(size).ok()?.checked_next_multiple_of(4);

    loop {
        let (header, rest) = notes.split_at_checked(NOTE_HEADER_SIZE)?;
        let (name_size, description_size) = (u32_at(header, 0), u32_at(header, 4));
        let (name, rest) = rest.split_at_checked(padded(name_size)?)?;
        let (description, rest) = rest.split_at_checked(padded(description_size)?)?;
        // The description is a word of the kernel's size; the address is below 4 GiB in either.
        if name == b"Xen\0" && u32_at(header, 8) == NOTE_PHYS32_ENTRY && description.len() >= 4 {
            return Some(u32_at(description, 0));
        }
        notes = rest;
    }
}

fn read<S: Source + ?Sized>(
    source: &S,
    offset: u64,
    buffer: &mut [u8],
    what: &'static str,
) -> Result<(), ElfError> {
    let end = offset.checked_add(buffer.len() as u64);
    if end.is_none_or(|end| end > source.len()) {
        return Err(ElfError::Truncated(what));
    }
    source.read_at(offset, buffer).map_err(ElfError::Read)
}

/// The number at `offset`, which the caller knows to lie within `bytes`.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

/// The number at `offset`, which the caller knows to lie within `bytes`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

/// The number at `offset`, which the caller knows to lie within `bytes`.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
