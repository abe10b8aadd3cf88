//! What the host and the lab's init say to each other over one virtio-serial port: frames of a
//! type byte, a little-endian length and that many bytes.
//!
//! Both ends are the same executable, so there is no version.

use std::io::{self, Read, Write};

use anyhow::{Result, bail};

/// Largest payload of one frame.
pub(crate) const MAX_PAYLOAD: usize = 32 * 1024;
/// Bytes of standard input the host may have under way: signals must not queue behind more.
pub(crate) const STDIN_WINDOW: usize = 128 * 1024;

/// One message, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Host: the next argument of the command.
    Argument(Vec<u8>),
    /// Host: the next `NAME=value` of its environment.
    Environment(Vec<u8>),
    /// Host: its working directory.
    Directory(Vec<u8>),
    /// Host: that was all, start it.
    Start,
    /// Host: bytes of standard input; none at all means its end.
    Stdin(Vec<u8>),
    /// Host: send this signal to the command's process group.
    Signal(u8),
    /// Host: visit every CPU.
    Beat,
    /// Guest: init runs and waits for the command.
    Ready,
    /// Guest: so many bytes of standard input have been taken over.
    StdinTaken(u32),
    /// Guest: bytes of standard output.
    Stdout(Vec<u8>),
    /// Guest: bytes of standard error.
    Stderr(Vec<u8>),
    /// Guest: the command's status as a shell would give it. Always the last frame.
    Exit(u8),
}

impl Frame {
    /// The frame as bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Argument(bytes) => (b'A', bytes),
            Self::Environment(bytes) => (b'V', bytes),
            Self::Directory(bytes) => (b'D', bytes),
            Self::Start => (b'G', &[]),
            Self::Stdin(bytes) => (b'I', bytes),
            Self::Signal(number) => (b'S', &[*number]),
            Self::Beat => (b'B', &[]),
            Self::Ready => (b'R', &[]),
            Self::StdinTaken(count) => (b'T', &count.to_le_bytes()),
            Self::Stdout(bytes) => (b'O', bytes),
            Self::Stderr(bytes) => (b'E', bytes),
            Self::Exit(status) => (b'X', &[*status]),
        };
        let mut out = Vec::with_capacity(payload.len() + 5);
        out.push(kind);
        // Arguments are at most 128 KiB (MAX_ARG_STRLEN), stream payloads MAX_PAYLOAD.
        out.extend_from_slice(
            &u32::try_from(payload.len())
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        out.extend_from_slice(payload);
        out
    }

    fn decode(kind: u8, payload: Vec<u8>) -> Result<Self> {
        let byte = |payload: &[u8]| match payload {
            [value] => Ok(*value),
            _ => bail!("a frame of one byte has {}", payload.len()),
        };
        Ok(match kind {
            b'A' => Self::Argument(payload),
            b'V' => Self::Environment(payload),
            b'D' => Self::Directory(payload),
            b'G' => Self::Start,
            b'I' => Self::Stdin(payload),
            b'S' => Self::Signal(byte(&payload)?),
            b'B' => Self::Beat,
            b'R' => Self::Ready,
            b'T' => match <[u8; 4]>::try_from(payload.as_slice()) {
                Ok(count) => Self::StdinTaken(u32::from_le_bytes(count)),
                Err(_) => bail!("a count has {} bytes instead of 4", payload.len()),
            },
            b'O' => Self::Stdout(payload),
            b'E' => Self::Stderr(payload),
            b'X' => Self::Exit(byte(&payload)?),
            other => bail!("unknown frame type {other:#04x}"),
        })
    }

    /// Writes the frame whole.
    pub(crate) fn send(&self, mut port: impl Write) -> io::Result<()> {
        port.write_all(&self.encode())
    }
}

/// Puts frames together from whatever pieces a port delivers.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Reads once from `port`; `false` when the other side has gone.
    pub(crate) fn fill(&mut self, mut port: impl Read) -> io::Result<bool> {
        let mut piece = vec![0; MAX_PAYLOAD + 5];
        let count = port.read(&mut piece)?;
        self.pending.extend_from_slice(&piece[..count]);
        Ok(count > 0)
    }

    /// The next whole frame, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>> {
        let Some((header, rest)) = self.pending.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let [kind, length @ ..] = *header;
        let length = u32::from_le_bytes(length) as usize;
        if length > 1 << 20 {
            bail!("a frame announces {length} bytes");
        }
        if rest.len() < length {
            return Ok(None);
        }
        let payload = rest[..length].to_vec();
        self.pending.drain(..5 + length);
        Frame::decode(kind, payload).map(Some)
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
