//! A stream of a guest that has to go on.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

/// So much has to come, or go, before the patience begins anew: a guest that sends a byte now and then
/// does not get on.
const PROGRESS: usize = 64 << 10;

/// A stream that fails when the guest keeps somebody waiting for too long, or when nobody wants what
/// comes of it any more. Time in which nobody waits for it does not count.
#[derive(Debug)]
pub(super) struct Patient<S> {
    pub(super) inner: S,
    /// Ends when the request does, whoever has the stream by then.
    request: Option<oneshot::Receiver<()>>,
    patience: Duration,
    /// How long somebody has waited since the last progress, and how much has moved since.
    waited: Duration,
    moved: usize,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// Keeps a [`Patient`] stream from failing; dropped, it fails at once.
pub(super) type Wanted = oneshot::Sender<()>;

impl<S> Patient<S> {
    pub(super) fn new(inner: S, patience: Duration) -> (Self, Wanted) {
        let (wanted, request) = oneshot::channel();
        let stream = Self {
            inner,
            request: Some(request),
            patience,
            waited: Duration::ZERO,
            moved: 0,
            waiting: None,
        };
        (stream, wanted)
    }

    /// Fails if nobody wants it.
    fn is_wanted(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let over = self
            .request
            .as_mut()
            .is_none_or(|request| Pin::new(request).poll(context).is_ready());
        if over {
            self.request = None;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        moved: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = &polled {
            if let Some((since, _)) = self.waiting.take() {
                self.waited += since.elapsed();
            }
            self.moved += result.as_ref().map_or(0, moved);
            if self.moved >= PROGRESS {
                (self.waited, self.moved) = (Duration::ZERO, 0);
            }
            return polled;
        }
        let left = self.patience.saturating_sub(self.waited);
        let (_, waiting) = self
            .waiting
            .get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
        std::task::ready!(waiting.as_mut().poll(context));
        self.waiting = None;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_wanted(context)?;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let moved = buffer.filled().len() - before;
        self.judge(context, polled, |()| moved)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_wanted(context)?;
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.judge(context, polled, |&count| count)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told_and_who_does_not_wait_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(4);
        let (mut ours, _wanted) = Patient::new(ours, Duration::from_secs(10));
        let mut buffer = [0; 4];
        for _ in 0..3 {
            let read = ours.read(&mut buffer);
            let write = async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                theirs.write_all(b"x").await.unwrap();
            };
            assert_eq!(tokio::join!(read, write).0.unwrap(), 1);
            // In which nobody waits.
            tokio::time::sleep(Duration::from_secs(100)).await;
        }
        let error = ours.read(&mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        ours.write_all(b"1234").await.unwrap();
        let error = ours.write_all(b"5").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_no_progress() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let (mut ours, _wanted) = Patient::new(ours, Duration::from_secs(10));
        let begun = Instant::now();
        tokio::spawn(async move {
            // As much as counts, and then next to nothing.
            for count in [PROGRESS].into_iter().chain(std::iter::repeat_n(1, 100)) {
                tokio::time::sleep(Duration::from_secs(6)).await;
                if theirs.write_all(&vec![0; count]).await.is_err() {
                    break;
                }
            }
        });
        let mut all = Vec::new();
        let error = ours.read_to_end(&mut all).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(all.len(), PROGRESS + 1);
        assert_eq!(begun.elapsed(), Duration::from_secs(16));
    }

    #[tokio::test]
    async fn what_nobody_wants_any_more_fails_at_once() {
        let (ours, _theirs) = tokio::io::duplex(4);
        let (mut ours, wanted) = Patient::new(ours, Duration::from_secs(3600));
        let reading = tokio::spawn(async move {
            let first = ours.read_u8().await.unwrap_err();
            (first, ours.write_u8(1).await.unwrap_err())
        });
        tokio::task::yield_now().await;
        drop(wanted);
        let (first, second) = reading.await.unwrap();
        assert_eq!(first.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(second.kind(), io::ErrorKind::ConnectionAborted);
    }
}
