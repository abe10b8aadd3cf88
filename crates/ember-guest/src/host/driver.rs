//! The task that moves bytes between a connection and its handles.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Closed;
use super::link::{Received, Shared, keep_waker};
use crate::protocol::{Decoder, HEADER_LEN, MAX_DATA};

/// Enough for a full `Data` frame in one read.
const READ_SIZE: usize = MAX_DATA + HEADER_LEN;

pub(super) struct Driver<S> {
    stream: S,
    shared: Arc<Shared>,
    decoder: Decoder,
    incoming: Box<[u8]>,
    /// Being written, from `written` on. `State::outgoing` is swapped in when it is done, so that
    /// the lock is not held over a system call.
    outgoing: Vec<u8>,
    written: usize,
}

/// An agent that has so much to read does not read: bulk waits, and commands are a megabyte each.
const MAX_OUTGOING: usize = 32 << 20;
/// What is kept of the write buffer's capacity after a burst.
const KEPT_CAPACITY: usize = 128 * 1024;

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Takes a connection over after the hello; `decoder` may hold what came right behind it.
    pub(super) fn new(stream: S, shared: Arc<Shared>, decoder: Decoder) -> Self {
        let incoming = vec![0; READ_SIZE].into_boxed_slice();
        Self {
            stream,
            shared,
            decoder,
            incoming,
            outgoing: Vec::new(),
            written: 0,
        }
    }

    /// Runs until the connection is over, then tells everybody.
    pub(super) async fn run(mut self) {
        let closed = match self.receive() {
            Ok(()) => std::future::poll_fn(|context| self.poll(context)).await,
            Err(closed) => closed,
        };
        self.shared.with(|state| state.close(closed));
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Closed> {
        // Before anything is looked at, so that what is added later wakes this task.
        self.shared
            .with(|state| keep_waker(&mut state.driver, context));
        match (self.poll_write(context), self.poll_read(context)) {
            (Poll::Ready(closed), _) | (_, Poll::Ready(closed)) => Poll::Ready(closed),
            (Poll::Pending, Poll::Pending) => {
                // What was received may have been answered (windows).
                self.poll_write(context)
            }
        }
    }

    /// Writes until nothing is left or the stream takes no more. Ready only at the end.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Closed> {
        loop {
            if self.written == self.outgoing.len() {
                self.outgoing.clear();
                self.outgoing.shrink_to(KEPT_CAPACITY);
                self.written = 0;
                let outgoing = &mut self.outgoing;
                let abandoned = self.shared.with(|state| {
                    std::mem::swap(outgoing, &mut state.outgoing);
                    state.wake_blocked();
                    state.abandoned
                });
                if self.outgoing.is_empty() {
                    return if abandoned {
                        Poll::Ready(Closed::ByHost)
                    } else {
                        Poll::Pending
                    };
                }
            }
            let rest = &self.outgoing[self.written..];
            match Pin::new(&mut self.stream).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(failed(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => {
                    // The agent may have said why before it closed.
                    return Poll::Ready(match self.poll_read(context) {
                        Poll::Ready(closed @ (Closed::Refused(_) | Closed::Malformed(_))) => closed,
                        _ => failed(error),
                    });
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Closed> {
        loop {
            let mut buffer = ReadBuf::new(&mut self.incoming);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    return Poll::Ready(Closed::ByAgent);
                }
                Poll::Ready(Ok(())) => self.decoder.feed(buffer.filled()),
                Poll::Ready(Err(error)) => return Poll::Ready(failed(error)),
                Poll::Pending => return Poll::Pending,
            }
            if let Err(closed) = self.receive() {
                return Poll::Ready(closed);
            }
        }
    }

    fn receive(&mut self) -> Result<(), Closed> {
        let decoder = &mut self.decoder;
        self.shared.with(|state| {
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => state.receive(frame).map_err(|error| match error {
                        Received::Malformed(malformed) => Closed::Malformed(malformed),
                        Received::Refused(failure) => Closed::Refused(failure),
                    })?,
                    // What it is sent in answer to its own frames has no other bound.
                    Ok(None) if state.outgoing.len() > MAX_OUTGOING => {
                        return Err(failed(io::Error::other(
                            "the agent sends without reading what it is sent",
                        )));
                    }
                    Ok(None) => return Ok(()),
                    Err(malformed) => return Err(Closed::Malformed(malformed)),
                }
            }
        })
    }
}

fn failed(error: io::Error) -> Closed {
    Closed::Io(Arc::new(error))
}
