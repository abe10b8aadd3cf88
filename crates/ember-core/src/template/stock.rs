//! Shells kept ready, and refilled in the background.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Inner;
use super::shell::Shell;

/// How long to wait before trying again when the host has no room for a shell.
const RETRY: Duration = Duration::from_millis(100);

/// How long a shell that was taken is not replaced: who took it is waiting for what it is to do, and
/// to make another takes processor time, and the lock of this process's address space. Where shells
/// are taken faster than they are made, the oldest was taken long ago, and nothing is waited for.
const HEAD_START: Duration = Duration::from_millis(10);

/// A template's shells. One thread fills them up, for as long as any are wanted and anyone has the
/// template.
pub(super) struct Stock(Arc<Shared>);

/// What the stock shares with the thread that fills it up.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    target: usize,
    ready: VecDeque<Shell>,
    /// When those were taken that have not been replaced, the oldest first.
    taken: VecDeque<Instant>,
    /// The thread that fills up is there.
    filling: bool,
}

impl Stock {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                target: 0,
                ready: VecDeque::new(),
                taken: VecDeque::new(),
                filling: false,
            }),
            changed: Condvar::new(),
        }))
    }

    /// One that is ready, if there is one.
    pub(super) fn take(&self) -> Option<Shell> {
        let mut state = self.0.lock();
        let shell = state.ready.pop_front()?;
        state.taken.push_back(Instant::now());
        drop(state);
        self.0.changed.notify_all();
        Some(shell)
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.0.lock().ready.len()
    }

    /// Keeps `target` of `template` ready from now on.
    pub(super) fn keep(&self, target: usize, template: &Arc<Inner>) {
        let mut state = self.0.lock();
        state.target = target;
        let keep = state.ready.len().min(target);
        let surplus = state.ready.split_off(keep);
        if target > 0 && !state.filling {
            let shared = Arc::clone(&self.0);
            let template = Arc::clone(template);
            let filler = thread::Builder::new()
                .name("ember-shells".to_owned())
                .spawn(move || fill(&shared, &template));
            // Without a thread to be had, clones are made when they are asked for.
            state.filling = filler.is_ok();
        }
        drop(state);
        self.0.changed.notify_all();
        bury(surplus);
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.target = 0;
        let ready = std::mem::take(&mut state.ready);
        drop(state);
        self.0.changed.notify_all();
        bury(ready);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills the stock up until nobody wants it any more.
fn fill(shared: &Shared, template: &Arc<Inner>) {
    loop {
        let mut state = shared.lock();
        loop {
            if state.target == 0 {
                state.filling = false;
                return;
            }
            if state.ready.len() >= state.target {
                state.taken.clear();
                state = shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some(wait) = state.taken.front().and_then(head_start) else {
                state.taken.pop_front();
                break;
            };
            state = shared
                .changed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(state);
        match Shell::new(Arc::clone(template)).map(Shell::warm) {
            Ok(shell) => {
                let mut state = shared.lock();
                if state.ready.len() < state.target {
                    state.ready.push_back(shell);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a clone cannot be prepared; trying again");
                let state = shared.lock();
                // Ends at once when nobody wants them any more.
                drop(shared.changed.wait_timeout(state, RETRY));
            }
        }
    }
}

/// How much longer what was taken then is not to be replaced.
fn head_start(taken: &Instant) -> Option<Duration> {
    HEAD_START
        .checked_sub(taken.elapsed())
        .filter(|wait| !wait.is_zero())
}

/// Frees shells, which waits for the kernel, on another thread.
fn bury(shells: VecDeque<Shell>) {
    if !shells.is_empty() {
        // Without a thread to be had, the closure is dropped right here, and they with it.
        let reaper = thread::Builder::new().name("ember-reaper".to_owned());
        drop(reaper.spawn(move || drop(shells)));
    }
}
