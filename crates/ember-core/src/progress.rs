//! What a long operation is doing, told to whoever asked to be told.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Something that happened while a kernel or an image was being prepared.
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
        let Some(listener) = &self.0 else {
            return work();
        };
        listener(&Event::Started { step });
        let begun = Instant::now();
        let outcome = work();
        listener(&Event::Finished {
            step,
            elapsed: begun.elapsed(),
            succeeded: outcome.is_ok(),
        });
        outcome
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
