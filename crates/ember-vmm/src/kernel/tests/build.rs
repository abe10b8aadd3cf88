//! Builds small kernels: real files in every respect that matters here.

use std::io::Write;

use super::super::unpack::Compression;

/// Where the test kernel's code is loaded.
pub(super) const ADDRESS: u64 = 0x100_0000;
/// What its code segment holds.
pub(super) const CODE: [u8; 64] = [0xF4; 64];
/// How much memory its code segment takes.
pub(super) const MEMORY_SIZE: u64 = 0x3000;
/// Its two entry points.
pub(super) const ENTRY: u64 = ADDRESS + 0x10;
pub(super) const PVH_ENTRY: u32 = ADDRESS as u32 + 0x20;

/// An ELF kernel with one segment and, if asked for, notes.
pub(super) fn elf(pvh: bool) -> Vec<u8> {
    let mut notes = Vec::new();
    note(&mut notes, b"Linux\0", 0x101, b"func");
    note(&mut notes, b"Xen\0", 5, b"xen-3.0\0");
    if pvh {
        note(
            &mut notes,
            b"Xen\0",
            18,
            &u64::from(PVH_ENTRY).to_le_bytes(),
        );
    }
    note(&mut notes, b"GNU\0", 3, &[0xAB; 20]);

    let notes_offset = 64 + 2 * 56;
    let code_offset = notes_offset + notes.len() as u64;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    file.extend(2u16.to_le_bytes()); // executable
    file.extend(62u16.to_le_bytes()); // x86-64
    file.extend(1u32.to_le_bytes());
    file.extend(ENTRY.to_le_bytes());
    file.extend(64u64.to_le_bytes()); // program headers
    file.extend([0; 8 + 4]);
    file.extend([64u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat());
    program_header(
        &mut file,
        4,
        [notes_offset, 0, notes.len() as u64, notes.len() as u64],
    );
    program_header(
        &mut file,
        1,
        [code_offset, ADDRESS, CODE.len() as u64, MEMORY_SIZE],
    );
    file.extend(&notes);
    file.extend(CODE);
    file
}

/// Offset of the program header of the code segment.
pub(super) const LOAD_HEADER: usize = 64 + 56;

fn program_header(file: &mut Vec<u8>, kind: u32, values: [u64; 4]) {
    let [offset, address, file_size, memory_size] = values;
    file.extend(kind.to_le_bytes());
    file.extend(7u32.to_le_bytes());
    for value in [
        offset,
        0xFFFF_FFFF_8100_0000,
        address,
        file_size,
        memory_size,
        0x1000,
    ] {
        file.extend(value.to_le_bytes());
    }
}

pub(super) fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, description: &[u8]) {
    notes.extend((name.len() as u32).to_le_bytes());
    notes.extend((description.len() as u32).to_le_bytes());
    notes.extend(kind.to_le_bytes());
    for part in [name, description] {
        notes.extend(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

/// Packs `kernel` as the kernel's build does.
pub(super) fn pack(kernel: &[u8], compression: Compression) -> Vec<u8> {
    let mut packed = match compression {
        Compression::None => kernel.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(kernel).unwrap();
            return encoder.finish().unwrap();
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(kernel, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Compression::Xz => {
            let mut filters = liblzma::stream::Filters::new();
            filters
                .x86()
                .lzma2(&liblzma::stream::LzmaOptions::new_preset(6).unwrap());
            let check = liblzma::stream::Check::Crc32;
            lzma(
                kernel,
                liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap(),
            )
        }
        Compression::Lzma => {
            let options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
            lzma(
                kernel,
                liblzma::stream::Stream::new_lzma_encoder(&options).unwrap(),
            )
        }
        Compression::Lz4 => {
            let mut packed = vec![0x02, 0x21, 0x4C, 0x18];
            for block in kernel.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
        // Nothing here packs these: a magic number and anything.
        Compression::Lzo => b"\x89LZO\0\r\n\x1a\nwhatever".to_vec(),
        Compression::Bzip2 => b"BZh9whatever".to_vec(),
    };
    packed.extend((kernel.len() as u32).to_le_bytes());
    packed
}

fn lzma(kernel: &[u8], stream: liblzma::stream::Stream) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(kernel).unwrap();
    encoder.finish().unwrap()
}

/// What a test may want to be different in a bzImage.
pub(super) struct Options {
    pub(super) version: u16,
    pub(super) xloadflags: u16,
    pub(super) init_size: u32,
    pub(super) setup_sectors: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: 0x20F,
            xloadflags: 1,
            init_size: 1 << 20,
            setup_sectors: 3,
        }
    }
}

/// How far behind the beginning of the code the payload is.
pub(super) const PAYLOAD_OFFSET: usize = 0x400;

/// A bzImage with `payload`.
pub(super) fn bzimage(payload: &[u8], options: &Options) -> Vec<u8> {
    let sectors = match options.setup_sectors {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let code_start = (sectors + 1) * 512;
    let mut file = vec![0; code_start];
    let mut code = vec![0x90; PAYLOAD_OFFSET];
    code.extend(payload);
    code.resize(code.len().next_multiple_of(16), 0);

    let mut set = |offset: usize, bytes: &[u8]| {
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    set(0x1F1, &[options.setup_sectors]);
    set(0x1F4, &((code.len() / 16) as u32).to_le_bytes());
    set(0x1FE, &0xAA55u16.to_le_bytes());
    set(0x200, &[0xEB, 0x6A]);
    set(0x202, b"HdrS");
    set(0x206, &options.version.to_le_bytes());
    set(0x211, &[1]);
    set(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    set(0x236, &options.xloadflags.to_le_bytes());
    set(0x238, &2047u32.to_le_bytes());
    set(0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
    set(0x24C, &(payload.len() as u32).to_le_bytes());
    set(0x258, &ADDRESS.to_le_bytes());
    set(0x260, &options.init_size.to_le_bytes());
    file.extend(code);
    file
}
