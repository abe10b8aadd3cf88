//! One timer for all deadlines.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// A timer that is readable when a deadline has passed.
#[derive(Debug)]
pub(super) struct Timer {
    descriptor: TimerFd,
    /// When it will fire, if it is set.
    set_for: Option<Instant>,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            descriptor: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            set_for: None,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Whether it will fire.
    pub(super) fn is_set(&self) -> bool {
        self.set_for.is_some()
    }

    /// Fires at `deadline`, or earlier if it was set to.
    pub(super) fn at_latest(&mut self, deadline: Instant, now: Instant) {
        if self.set_for.is_none_or(|set_for| deadline < set_for) {
            self.set(deadline, now);
        }
    }

    /// The timer has fired, and is to fire again for `next`.
    pub(super) fn fired(&mut self, next: Option<Instant>, now: Instant) {
        self.set_for = None;
        match next {
            // Setting it makes it unreadable.
            Some(deadline) => self.set(deadline, now),
            None => drop(self.descriptor.unset()),
        }
    }

    fn set(&mut self, deadline: Instant, now: Instant) {
        // Zero would stop the timer.
        let after = deadline
            .saturating_duration_since(now)
            .max(Duration::from_micros(1));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(after));
        match self.descriptor.set(expiration, TimerSetTimeFlags::empty()) {
            Ok(()) => self.set_for = Some(deadline),
            // Not for any time an `Instant` can hold. Deadlines are then met late, or never.
            Err(error) => tracing::warn!(%error, "cannot set a timer for vsock streams"),
        }
    }
}
