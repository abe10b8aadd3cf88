//! Layers and archives as they are stored: plain, or compressed by gzip or Zstandard.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// What a Zstandard frame may have in memory: what `zstd --ultra` makes, without `--long`.
const ZSTD_WINDOW_MAX: u64 = 128 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The first byte of a frame that has no content may be any of sixteen (RFC 8878, section 3.1.2).
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// The content of `input`, which is told by its first bytes to be compressed or not. How large it
/// becomes is for the reader to bound.
pub(super) fn reader<'a>(mut input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let begin = input.fill_buf()?;
    if begin.starts_with(&GZIP) {
        // Of several members one after the other, all.
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input)));
    }
    let skippable = begin.get(1..4) == Some(&ZSTD_SKIPPABLE) && begin[0] & 0xf0 == 0x50;
    if begin.starts_with(&ZSTD) || skippable {
        return Ok(Box::new(Frames {
            input,
            decoder: None,
        }));
    }
    Ok(Box::new(input))
}

/// Zstandard frames, one after the other: compressors that work in parallel, and those whose
/// archives can be read in parts (`zstd:chunked`), make many.
struct Frames<R> {
    input: R,
    decoder: Option<Box<FrameDecoder>>,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(decoder) = &mut self.decoder else {
                if self.input.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.begin()?;
                continue;
            };
            if decoder.can_collect() > 0 {
                let count = decoder.read(buffer)?;
                if count > 0 {
                    return Ok(count);
                }
            }
            if decoder.is_finished() {
                if decoder.can_collect() == 0 {
                    self.decoder = None;
                }
                continue;
            }
            decoder
                .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(damaged)?;
        }
    }
}

impl<R: BufRead> Frames<R> {
    fn begin(&mut self) -> io::Result<()> {
        let mut decoder = Box::new(FrameDecoder::new());
        decoder.set_max_window_size(ZSTD_WINDOW_MAX);
        match decoder.init(&mut self.input) {
            Ok(()) => self.decoder = Some(decoder),
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let mut skipped = (&mut self.input).take(u64::from(length));
                if io::copy(&mut skipped, &mut io::sink())? < u64::from(length) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(damaged(error)),
        }
        Ok(())
    }
}

fn damaged(error: FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        reader(bytes)?.read_to_end(&mut all)?;
        Ok(all)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level)
    }

    #[test]
    fn what_is_compressed_is_told_by_its_first_bytes_and_read_to_its_end() {
        let one: Vec<u8> = (0..300_000_u64).map(|n| (n * n % 251) as u8).collect();
        let both = [one.as_slice(), b"more"].concat();
        assert_eq!(read(&both).unwrap(), both);
        assert_eq!(read(&[gzip(&one), gzip(b"more")].concat()).unwrap(), both);
        // A frame that is to be skipped stands before, between and behind others.
        let skipped = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'x', b'y', b'z'];
        let parts = [
            &skipped,
            &zstd(&one)[..],
            &skipped,
            &zstd(b"more"),
            &skipped,
        ];
        assert_eq!(read(&parts.concat()).unwrap(), both);
        assert_eq!(read(b"").unwrap(), b"");
    }

    #[test]
    fn what_is_damaged_or_cut_off_is_an_error() {
        let bytes = vec![7; 100_000];
        for packed in [gzip(&bytes), zstd(&bytes)] {
            for cut in [5, packed.len() / 2, packed.len() - 1] {
                assert!(read(&packed[..cut]).is_err(), "{cut}");
            }
        }
        assert!(read(&[&zstd(b"x")[..], b"behind"].concat()).is_err());
        assert!(read(&[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
