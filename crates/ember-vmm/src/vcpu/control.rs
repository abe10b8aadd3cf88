//! What all of a VM's vCPU threads are to do, and how they say that they do it.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kick::KickTarget;
use crate::exit::ExitReason;

/// What the vCPU threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Hold still outside the guest.
    Paused = 0,
    /// Run the guest.
    Running = 1,
    /// Leave, for ever.
    Stopped = 2,
}

type ExitCallback = Box<dyn FnOnce(&ExitReason) + Send>;

/// Shared by a VM and its vCPU threads.
pub(crate) struct VcpuControl {
    kick_signal: i32,
    targets: Vec<KickTarget>,
    /// A copy of `State::mode` that can be read without the lock, once for every exit.
    mode: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mode: Mode,
    /// How many threads hold still or have left.
    parked: usize,
    /// Why the VM ended, once it did.
    exit: Option<ExitReason>,
    callbacks: Vec<ExitCallback>,
}

impl fmt::Debug for VcpuControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("VcpuControl")
            .field("mode", &state.mode)
            .field("parked", &state.parked)
            .field("exit", &state.exit)
            .finish_non_exhaustive()
    }
}

impl VcpuControl {
    /// Control of `vcpus` threads, all of which count as parked until they come.
    pub(crate) fn new(vcpus: usize, kick_signal: i32) -> Self {
        Self {
            kick_signal,
            targets: (0..vcpus).map(|_| KickTarget::default()).collect(),
            mode: AtomicU8::new(Mode::Paused as u8),
            state: Mutex::new(State {
                mode: Mode::Paused,
                parked: vcpus,
                exit: None,
                callbacks: Vec::new(),
            }),
            changed: Condvar::new(),
        }
    }

    /// Where to kick vCPU `index`.
    pub(crate) fn target(&self, index: usize) -> Option<&KickTarget> {
        self.targets.get(index)
    }

    /// The kick signal's number.
    pub(crate) fn kick_signal(&self) -> i32 {
        self.kick_signal
    }

    /// Whether a vCPU thread may stay in the guest.
    pub(crate) fn running(&self) -> bool {
        self.mode.load(Ordering::SeqCst) == Mode::Running as u8
    }

    /// Blocks a vCPU thread while it is to hold still. `false` means: leave.
    pub(crate) fn park(&self) -> bool {
        let mut state = self.state();
        state.parked += 1;
        self.changed.notify_all();
        while state.mode == Mode::Paused {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.mode == Mode::Stopped {
            // It stays counted as parked: it will never run again.
            return false;
        }
        state.parked -= 1;
        true
    }

    /// Takes the calling thread off the parked count: it was counted before it came.
    pub(crate) fn arrive(&self) {
        self.state().parked -= 1;
    }

    /// Makes all threads do `mode`. A stopped VM stays stopped; then this says `false`.
    pub(crate) fn set_mode(&self, mode: Mode) -> bool {
        let mut state = self.state();
        if state.mode == Mode::Stopped {
            return mode == Mode::Stopped;
        }
        self.apply(&mut state, mode);
        true
    }

    fn apply(&self, state: &mut State, mode: Mode) {
        state.mode = mode;
        self.mode.store(mode as u8, Ordering::SeqCst);
        self.changed.notify_all();
        if mode != Mode::Running {
            for target in &self.targets {
                target.kick(self.kick_signal);
            }
        }
    }

    /// Whether the VM is to hold still and does.
    pub(crate) fn is_paused(&self) -> bool {
        let state = self.state();
        state.mode == Mode::Paused && state.parked == self.targets.len()
    }

    /// Waits until no vCPU is in the guest.
    pub(crate) fn wait_parked(&self) {
        let mut state = self.state();
        while state.parked < self.targets.len() && state.mode != Mode::Running {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until no vCPU is in the guest of a VM that was stopped.
    pub(crate) fn wait_stopped(&self) {
        let mut state = self.state();
        while state.mode == Mode::Stopped && state.parked < self.targets.len() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The VM ended, for `reason`; only the first reason counts. Stops all vCPUs.
    pub(crate) fn finish(&self, reason: ExitReason) {
        let mut state = self.state();
        if state.exit.is_some() {
            return;
        }
        self.apply(&mut state, Mode::Stopped);
        let reason = state.exit.insert(reason).clone();
        let callbacks = std::mem::take(&mut state.callbacks);
        drop(state);
        for callback in callbacks {
            callback(&reason);
        }
    }

    /// Why the VM ended, if it did.
    pub(crate) fn exit(&self) -> Option<ExitReason> {
        self.state().exit.clone()
    }

    /// Waits for the end, until `deadline` if there is one.
    pub(crate) fn wait_exit(&self, deadline: Option<Instant>) -> Option<ExitReason> {
        let mut state = self.state();
        while state.exit.is_none() {
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => {
                    state = self
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                None => {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        state.exit.clone()
    }

    /// Has `callback` called when the VM ends, at once if it has.
    pub(crate) fn on_exit(&self, callback: ExitCallback) {
        let mut state = self.state();
        if let Some(reason) = state.exit.clone() {
            drop(state);
            callback(&reason);
        } else {
            state.callbacks.push(callback);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
