//! When the guest is interrupted for packets that it sent and that were taken.
//!
//! All it does then is to free their memory, which can wait; but an interrupt costs it two exits to
//! the monitor (what for, and seen) and its driver a work item, a quarter of a whole round trip
//! over a stream. So the guest learns of it with its next interrupt for a packet that it receives;
//! or when too much waits; or else a little later.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::timer::Timer;
use crate::devices::virtio::chain::Chain;

/// The most descriptors that wait: a quarter of a full queue, so that the guest never finds it full
/// because of those.
const MAX_DESCRIPTORS: usize = 64;

/// The most bytes that wait: about one large packet.
const MAX_BYTES: u64 = 64 * 1024;

/// The longest time anything waits.
const MAX_DELAY: Duration = Duration::from_millis(4);

/// What the guest does not know yet to have been taken.
#[derive(Debug)]
pub(super) struct Returns {
    descriptors: usize,
    bytes: u64,
    is_overdue: bool,
    timer: Timer,
}

impl Returns {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            descriptors: 0,
            bytes: 0,
            is_overdue: false,
            timer: Timer::new()?,
        })
    }

    /// The timer whose readiness calls for [`overdue`](Self::overdue) and another round.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.fd()
    }

    /// Counts a packet that was taken.
    pub(super) fn add(&mut self, chain: &Chain) {
        self.descriptors += chain.readable.iter().count();
        self.bytes += chain.len();
    }

    /// Whether there is no need to interrupt the guest.
    pub(super) fn can_wait(&self) -> bool {
        !self.is_overdue && self.descriptors < MAX_DESCRIPTORS && self.bytes < MAX_BYTES
    }

    /// The time is over.
    pub(super) fn overdue(&mut self) {
        self.is_overdue = true;
        self.timer.fired(None, Instant::now());
    }

    /// After a round: either the guest knows all now, or it must in a while.
    pub(super) fn after_round(&mut self, all_known: bool) {
        if all_known {
            self.descriptors = 0;
            self.bytes = 0;
        } else if !self.timer.is_set() {
            let now = Instant::now();
            self.timer.at_latest(now + MAX_DELAY, now);
        }
        self.is_overdue = false;
    }
}
