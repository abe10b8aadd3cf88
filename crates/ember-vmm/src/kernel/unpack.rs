//! Unpacking of what a bzImage carries. No I/O; what comes out is bounded whatever goes in.
//!
//! Linux packs its kernel (`arch/x86/boot/compressed/Makefile`, `scripts/Makefile.lib`) as one
//! stream, behind which, except for gzip, stands the unpacked size in four bytes.

use std::fmt;
use std::io::{self, Read};

use liblzma::stream::Stream;

/// The largest window a zstd frame may ask for: what `zstd -22` makes, as the kernel's build does.
const ZSTD_WINDOW_MAX: u64 = 128 << 20;
/// How much memory unpacking xz and LZMA may take. Their dictionaries are at most 128 MiB.
const LZMA_MEMORY_MAX: u64 = 192 << 20;
/// Size of the unpacked size at the end.
const SIZE_SUFFIX: usize = 4;

/// How a kernel is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the formats' own")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Lzma,
    Lz4,
    Lzo,
    Bzip2,
}

impl Compression {
    /// Recognises a format by how it begins (boot.rst, `payload_offset`).
    pub(crate) fn detect(payload: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 9] = [
            (&super::elf::MAGIC, Compression::None),
            (&[0x1F, 0x8B], Compression::Gzip),
            (&[0x28, 0xB5, 0x2F, 0xFD], Compression::Zstd),
            (&[0xFD, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&[0x5D, 0, 0], Compression::Lzma),
            (&LZ4_MAGIC, Compression::Lz4),
            (&[0x89, b'L', b'Z', b'O'], Compression::Lzo),
            (b"BZh", Compression::Bzip2),
            (&[0x1F, 0x9E], Compression::Gzip),
        ];
        let found = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic));
        found.map(|(_, compression)| *compression)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lzma => "LZMA",
            Self::Lz4 => "LZ4",
            Self::Lzo => "LZO",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// Why a payload was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// Nothing here can unpack it. The kernel's own unpacker may.
    #[error("the kernel is packed in a way that is not known here")]
    Unsupported,
    /// More comes out than is allowed.
    #[error("the kernel unpacks to more than {0} bytes")]
    TooLarge(usize),
    /// It is damaged.
    #[error("the packed kernel ({0}) is damaged")]
    Damaged(Compression, #[source] io::Error),
}

/// Unpacks `payload` to at most `limit` bytes.
pub(crate) fn unpack(payload: &[u8], limit: usize) -> Result<Vec<u8>, UnpackError> {
    let compression = Compression::detect(payload).ok_or(UnpackError::Unsupported)?;
    let damaged = |error| UnpackError::Damaged(compression, error);
    let reader: &mut dyn Read = match compression {
        Compression::None => &mut &*payload,
        Compression::Gzip => &mut flate2::read::GzDecoder::new(payload),
        Compression::Zstd => &mut ruzstd::decoding::StreamingDecoder::new_with_max_window_size(
            payload,
            ZSTD_WINDOW_MAX,
        )
        .map_err(|e| damaged(io::Error::other(e)))?,
        Compression::Xz => {
            let decoder = Stream::new_stream_decoder(LZMA_MEMORY_MAX, 0);
            &mut liblzma_reader(payload, decoder).map_err(damaged)?
        }
        Compression::Lzma => {
            let decoder = Stream::new_lzma_decoder(LZMA_MEMORY_MAX);
            &mut liblzma_reader(payload, decoder).map_err(damaged)?
        }
        Compression::Lz4 => return unpack_lz4(payload, limit),
        Compression::Lzo | Compression::Bzip2 => return Err(UnpackError::Unsupported),
    };
    let mut unpacked = Vec::with_capacity(expected_size(payload, limit));
    // One byte more than allowed, to see that there is one.
    reader
        .take(limit as u64 + 1)
        .read_to_end(&mut unpacked)
        .map_err(damaged)?;
    if unpacked.len() > limit {
        return Err(UnpackError::TooLarge(limit));
    }
    Ok(unpacked)
}

/// What the payload says of its unpacked size: a hint, which saves copying the growing result.
fn expected_size(payload: &[u8], limit: usize) -> usize {
    // One spare byte lets the reader see the end without asking for more room.
    size_suffix(payload).map_or(0, |size| (size as usize).saturating_add(1).min(limit))
}

fn size_suffix(payload: &[u8]) -> Option<u32> {
    payload
        .last_chunk::<SIZE_SUFFIX>()
        .map(|size| u32::from_le_bytes(*size))
}

fn liblzma_reader(
    payload: &[u8],
    decoder: Result<Stream, liblzma::stream::Error>,
) -> io::Result<impl Read> {
    Ok(liblzma::bufread::XzDecoder::new_stream(payload, decoder?))
}

/// The "legacy" frame of the LZ4 tool: this, then blocks, each with its packed size in front.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4C, 0x18];
/// What one of its blocks unpacks to at most.
const LZ4_BLOCK_MAX: usize = 8 << 20;

fn unpack_lz4(payload: &[u8], limit: usize) -> Result<Vec<u8>, UnpackError> {
    let damaged = |why: &'static str| UnpackError::Damaged(Compression::Lz4, io::Error::other(why));
    let mut rest = payload.get(LZ4_MAGIC.len()..).unwrap_or_default();
    let mut unpacked = Vec::with_capacity(expected_size(payload, limit));
    // The size behind the last block is what ends the stream.
    while rest.len() > SIZE_SUFFIX {
        let (size, blocks) = rest
            .split_first_chunk()
            .ok_or_else(|| damaged("a block has no size"))?;
        let size = u32::from_le_bytes(*size) as usize;
        let (block, following) = blocks
            .split_at_checked(size)
            .ok_or_else(|| damaged("a block is cut off"))?;
        let done = unpacked.len();
        let room = LZ4_BLOCK_MAX.min(limit - done);
        unpacked.resize(done + room, 0);
        let written =
            lz4_flex::block::decompress_into(block, &mut unpacked[done..]).map_err(|error| {
                match error {
                    lz4_flex::block::DecompressError::OutputTooSmall { .. }
                        if room < LZ4_BLOCK_MAX =>
                    {
                        UnpackError::TooLarge(limit)
                    }
                    error => UnpackError::Damaged(Compression::Lz4, io::Error::other(error)),
                }
            })?;
        if written == 0 {
            return Err(damaged("a block is empty"));
        }
        unpacked.truncate(done + written);
        rest = following;
    }
    let size = size_suffix(rest).ok_or_else(|| damaged("its size is missing"))?;
    if unpacked.len() != size as usize {
        return Err(damaged("its size is not what was packed"));
    }
    Ok(unpacked)
}
