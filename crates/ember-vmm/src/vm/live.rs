//! Taking the state of a VM that goes on: it stands still only for as long as it takes to mark its
//! memory, not to copy it.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use ember_snapshot::pager::{PreparedCopy, ProtectedCopy};
use ember_snapshot::state::VmState;

use super::{Ended, SaveError, Vm};
use crate::devices::virtio::balloon::BalloonHandle;
use crate::memory::{self, GuestMemory};

/// A VM's state cannot be taken while it goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveSaveError {
    /// Its memory cannot be marked. A VM can always be [paused](Vm::pause) and
    /// [saved](Vm::save).
    #[error("the guest's memory cannot be marked")]
    Mark(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Its memory cannot be copied.
    #[error("the guest's memory cannot be copied")]
    Copy(#[source] io::Error),
    /// The state of everything else cannot be taken.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// The VM has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

fn mark(error: impl std::error::Error + Send + Sync + 'static) -> LiveSaveError {
    LiveSaveError::Mark(Box::new(error))
}

/// A copy of a guest's memory that is being made while the guest goes on. Dropping it gives it up.
pub struct MemoryCopy {
    /// Dropped first: it ends the thread that copies, and takes the marks away.
    copy: Option<ProtectedCopy>,
    balloon: Option<BalloonHandle>,
    /// What is copied from, for as long as it is.
    _memory: GuestMemory,
}

impl MemoryCopy {
    /// Waits until all is copied.
    ///
    /// # Errors
    /// What the sink said.
    pub fn wait(mut self) -> io::Result<()> {
        match self.copy.take() {
            Some(copy) => copy.wait().map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for MemoryCopy {
    fn drop(&mut self) {
        drop(self.copy.take());
        if let Some(balloon) = &self.balloon {
            balloon.keep_memory(false);
        }
    }
}

impl fmt::Debug for MemoryCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCopy").finish_non_exhaustive()
    }
}

/// A VM's state that was taken while it went on.
#[derive(Debug)]
pub struct Saved {
    /// Everything but the memory.
    pub state: VmState,
    /// The memory that is still being copied; `None` if all of it was.
    pub copy: Option<MemoryCopy>,
    /// For how long the VM stood still.
    pub paused: Duration,
}

impl Vm {
    /// Takes the state of a VM and goes on: [`save_live`](Self::save_live), or where memory cannot
    /// be marked, with a pause that lasts until all is copied. A paused VM stays paused.
    ///
    /// # Errors
    /// If the state cannot be taken, what `sink` says while the VM stands still, or if the VM has
    /// ended.
    pub fn save_running(
        &self,
        sink: impl FnMut(u64, &[u8]) -> io::Result<()> + Clone + Send + 'static,
    ) -> Result<Saved, LiveSaveError> {
        match self.save_live(sink.clone()) {
            Ok((state, copy, paused)) => Ok(Saved {
                state,
                copy: Some(copy),
                paused,
            }),
            Err(LiveSaveError::Mark(error)) => {
                tracing::debug!(
                    error = &*error as &dyn std::error::Error,
                    "copying while paused"
                );
                self.save_still(sink)
            }
            Err(error) => Err(error),
        }
    }

    fn save_still(
        &self,
        sink: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<Saved, LiveSaveError> {
        let was_paused = self.control.is_paused();
        let start = Instant::now();
        if !was_paused {
            self.pause()?;
        }
        let state = self.save();
        let copied = self.changed_memory(sink);
        // Also if it failed: the VM is its owner's.
        if !was_paused {
            self.resume()?;
        }
        copied.map_err(LiveSaveError::Copy)?;
        Ok(Saved {
            state: state?,
            copy: None,
            paused: start.elapsed(),
        })
    }

    /// Takes the state of a running VM. It stands still for the returned time; from then on `sink`
    /// gets all memory that is not what it was when the VM was made, as it was at that moment:
    /// places in the guest's memory, counted without the hole below 4 GiB, and contents, in whole
    /// pages and in any order. A paused VM stays paused.
    ///
    /// # Errors
    /// If memory cannot be marked, which needs userfaultfd with write protection (Linux 5.19), or the
    /// VM has ended.
    pub fn save_live(
        &self,
        sink: impl FnMut(u64, &[u8]) -> io::Result<()> + Send + 'static,
    ) -> Result<(VmState, MemoryCopy, Duration), LiveSaveError> {
        let features = self.vcpu_features()?;
        let memory = self.vm.memory().clone();
        let mapping = memory::mapping(&memory).map_err(mark)?;
        let balloon = self.balloon.clone();
        if let Some(balloon) = &balloon {
            // A page that the guest gives back before it is copied would be lost to the copy.
            balloon.keep_memory(true);
        }
        let mut copy = MemoryCopy {
            copy: None,
            balloon,
            _memory: memory,
        };
        let prepared = PreparedCopy::new(mapping).map_err(mark)?;
        let was_paused = self.control.is_paused();
        let start = Instant::now();
        if !was_paused {
            self.pause()?;
        }
        let taken = self.save_with(&features).map_err(LiveSaveError::from);
        let taken = taken.and_then(|state| {
            copy.copy = Some(prepared.begin(sink).map_err(mark)?);
            Ok(state)
        });
        // Also if it failed: the VM is its owner's.
        if !was_paused {
            self.resume()?;
        }
        let paused = start.elapsed();
        let state = taken?;
        if let Some(copy) = &copy.copy {
            copy.start();
        }
        Ok((state, copy, paused))
    }
}
