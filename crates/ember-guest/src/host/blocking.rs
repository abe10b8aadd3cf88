//! A process's streams for code that waits: on a thread of its own, never on one of the runtime's.

use std::io::{self, Read, Write};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Handle;

/// Reads from an async stream and waits for it.
#[derive(Debug)]
pub struct BlockingReader<R> {
    runtime: Handle,
    inner: R,
}

impl<R: AsyncRead + Unpin> BlockingReader<R> {
    /// Has to be called on the runtime that drives the stream; is to be used elsewhere.
    pub fn new(inner: R) -> Self {
        Self {
            runtime: Handle::current(),
            inner,
        }
    }
}

impl<R: AsyncRead + Unpin> Read for BlockingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.runtime.block_on(self.inner.read(buffer))
    }
}

/// Writes to an async stream and waits for it.
#[derive(Debug)]
pub struct BlockingWriter<W> {
    runtime: Handle,
    inner: W,
}

impl<W: AsyncWrite + Unpin> BlockingWriter<W> {
    /// Has to be called on the runtime that drives the stream; is to be used elsewhere.
    pub fn new(inner: W) -> Self {
        Self {
            runtime: Handle::current(),
            inner,
        }
    }
}

impl<W: AsyncWrite + Unpin> Write for BlockingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.inner.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.inner.flush())
    }
}
