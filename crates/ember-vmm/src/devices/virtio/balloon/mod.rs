//! The virtio balloon device (specification section 5.5): guest memory that goes back to the host.
//!
//! There are two ways. The host asks the guest to put a number of pages into the balloon
//! ([`BalloonHandle::set_target`]), or the guest reports by itself which pages it has no use for at
//! the moment (free page reporting), and takes them again by touching them.

mod device;
mod give_back;
mod pages;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(crate) use device::BalloonDevice;
use device::Shared;
use pages::PAGE_SIZE;

/// How a VM gives memory back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Whether the guest reports free memory by itself. The memory is given back at once and
    /// stays the guest's.
    pub free_page_reporting: bool,
    /// Whether the guest may take pages out of the balloon when it runs out of memory, however
    /// large the balloon should be.
    pub deflate_on_oom: bool,
}

impl Default for BalloonConfig {
    /// Both.
    fn default() -> Self {
        Self {
            free_page_reporting: true,
            deflate_on_oom: true,
        }
    }
}

/// The host's hold on a VM's balloon. It may outlive the VM, and then does nothing.
#[derive(Clone, Debug)]
pub struct BalloonHandle {
    shared: Arc<Shared>,
}

impl BalloonHandle {
    /// Asks the guest to have `bytes` of its memory in the balloon, rounded down to pages. How far
    /// it follows, and when, is up to the guest: see [`actual`](Self::actual).
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        self.shared.target.store(pages, Ordering::SeqCst);
        self.shared.wake();
    }

    /// While `keep`, what the guest gives back stays where it is, and is lost to the host.
    pub(crate) fn keep_memory(&self, keep: bool) {
        self.shared.keep.store(keep, Ordering::SeqCst);
    }

    /// How many bytes the guest says are in the balloon.
    pub fn actual(&self) -> u64 {
        u64::from(self.shared.actual.load(Ordering::SeqCst)) * PAGE_SIZE
    }

    /// How many bytes were given back to the host because the guest reported them free, over the
    /// VM's life. Memory that was used again and reported again counts again.
    pub fn reported(&self) -> u64 {
        self.shared.reported.load(Ordering::SeqCst)
    }
}
