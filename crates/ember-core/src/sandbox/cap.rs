//! Caps on the memory that clones copy: one thread of the process looks at all that have one.
//!
//! A clone has none of its memory until it writes to it, so that a host can promise far more memory
//! than it has. What a hostile guest can take is all that it was promised, unless it is held to less
//! from here.

use std::fmt;
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::Guest;
use crate::error::{Error, ErrorKind};
use crate::size::ByteSize;

/// How often guests are looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// To look takes a tenth of a processor at the most: with very many guests, it is done less often.
const REST: u32 = 9;

/// Who looks at the guests that have a cap. It is there for as long as one of them is: each has a
/// handle.
pub(crate) struct CapWatch {
    shared: Arc<Shared>,
    /// The process that has the thread: a child that was forked off has this value without it.
    process: u32,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    guests: Vec<(Weak<Guest>, ByteSize)>,
    closing: bool,
}

/// A guest was found to have copied more than it may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exceeded {
    copied: ByteSize,
    cap: ByteSize,
}

/// One for the process: the less threads, the less often it is that none can be had.
static SHARED: Mutex<Weak<CapWatch>> = Mutex::new(Weak::new());

impl CapWatch {
    /// The process's.
    pub(crate) fn shared() -> Result<Arc<Self>, Error> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = shared.upgrade()
            && watch.process == process::id()
        {
            return Ok(watch);
        }
        let watch = Arc::new(Self {
            shared: Arc::default(),
            process: process::id(),
        });
        let looked_at = Arc::clone(&watch.shared);
        thread::Builder::new()
            .name("ember-caps".to_owned())
            .spawn(move || looked_at.run())
            .map_err(Error::of_host("cannot watch over a guest's memory"))?;
        *shared = Arc::downgrade(&watch);
        Ok(watch)
    }

    /// Ends `guest` when it is found to have copied more than `cap`.
    pub(crate) fn hold(&self, guest: &Arc<Guest>, cap: ByteSize) {
        let guest = (Arc::downgrade(guest), cap);
        self.shared.lock().guests.push(guest);
    }
}

impl Drop for CapWatch {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut rest = INTERVAL;
        loop {
            let state = self.lock();
            let waited = self
                .changed
                .wait_timeout_while(state, rest, |state| !state.closing);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.closing {
                return;
            }
            state.guests.retain(|(guest, _)| guest.strong_count() > 0);
            let guests = state.guests.clone();
            drop(state);
            let begun = Instant::now();
            for (guest, cap) in guests {
                if let Some(guest) = guest.upgrade() {
                    guest.hold_to(cap);
                }
            }
            rest = INTERVAL.max(begun.elapsed().saturating_mul(REST));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// Ends it if it has copied more than `cap`.
    fn hold_to(&self, cap: ByteSize) {
        if !self.watcher.is_alive() {
            return;
        }
        let Some(vm) = self.vm() else { return };
        let copied = match vm.own_memory() {
            Ok(bytes) => ByteSize::bytes(bytes),
            // It has just ended.
            Err(_) if !self.watcher.is_alive() => return,
            // One that cannot be looked at is not one that keeps to its cap.
            Err(error) => {
                tracing::error!(%error, "ended a guest: its memory has a cap and cannot be seen");
                return self.stop();
            }
        };
        if copied <= cap || !self.watcher.is_alive() {
            return;
        }
        tracing::warn!(%copied, %cap, "ended a guest: it has copied more memory than it may");
        // In this order: whoever sees it end can learn why.
        let _ = self.exceeded.set(Exceeded { copied, cap });
        self.stop();
    }
}

impl Exceeded {
    /// What came of something that was under way.
    pub(crate) fn error(self, attempted: &dyn fmt::Display) -> Error {
        let Self { copied, cap } = self;
        let message = format!(
            "{attempted}: the guest was ended, for it had copied {copied} of its memory and may \
             copy {cap} (`memory_cap`)"
        );
        Error::new(ErrorKind::MemoryExceeded, message)
    }
}

impl fmt::Debug for CapWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapWatch").finish_non_exhaustive()
    }
}
