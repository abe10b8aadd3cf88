//! What a long operation is doing, told to whoever asked to be told.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Something that happened while a kernel, an image or a template was being prepared.
///
/// Only work that takes noticeable time is reported: a run that finds everything in the cache
/// reports nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A step has begun.
    Started {
        /// What is being done, as a short phrase: `download 61 packages`.
        step: &'a str,
    },
    /// The step that was started last has ended.
    Finished {
        /// The same phrase.
        step: &'a str,
        /// How long it took.
        elapsed: Duration,
        /// Whether it did what it set out to do. The operation's error says more.
        succeeded: bool,
    },
    /// Something came up that does not keep the operation from its end, such as a cache that cannot
    /// be written to.
    Noticed {
        /// What, as a sentence.
        message: &'a str,
    },
}

/// Where [`Event`]s go. The default goes nowhere.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Listener>>);

type Listener = dyn Fn(&Event<'_>) + Send + Sync;

impl Progress {
    /// Reports to `listener`, on the thread that does the work.
    pub fn new(listener: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    /// Runs `work` as the step `step`.
    pub(crate) fn step<T, E>(
        &self,
        step: &str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let running = self.begin(step);
        work().inspect(|_| running.end())
    }

    /// Awaits `work` as the step `step`. To drop the future is to fail.
    pub(crate) async fn during<T, E>(
        &self,
        step: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let running = self.begin(step);
        work.await.inspect(|_| running.end())
    }

    /// Says, and has written to the log, what does not keep the operation from its end.
    pub(crate) fn notice(&self, message: &str) {
        tracing::warn!("{message}");
        if let Some(listener) = &self.0 {
            listener(&Event::Noticed { message });
        }
    }

    /// Begins a step, which has failed if what is returned is dropped without its end.
    fn begin<'a>(&'a self, step: &'a str) -> Running<'a> {
        let listener = self.0.as_deref();
        if let Some(listener) = listener {
            listener(&Event::Started { step });
        }
        Running {
            listener,
            step,
            begun: Instant::now(),
            succeeded: Cell::new(false),
        }
    }
}

/// A step that has begun.
struct Running<'a> {
    listener: Option<&'a Listener>,
    step: &'a str,
    begun: Instant,
    succeeded: Cell<bool>,
}

impl Running<'_> {
    fn end(&self) {
        self.succeeded.set(true);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(listener) = self.listener {
            listener(&Event::Finished {
                step: self.step,
                elapsed: self.begun.elapsed(),
                succeeded: self.succeeded.get(),
            });
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Progress(listener)"
        } else {
            "Progress(none)"
        })
    }
}
