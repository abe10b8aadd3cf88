//! How many members a pool keeps, for how long and how fast.

use std::time::Duration;

use crate::error::{Error, ErrorKind};

/// The numbers of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Members kept ready to be handed out.
    pub(crate) ready: usize,
    /// Members alive at once: ready, handed out and being made.
    pub(crate) max: usize,
    /// Callers that may wait at once. One more is refused.
    pub(crate) waiting: usize,
    /// Members being made at once.
    pub(crate) making: usize,
    /// Members being destroyed at once. They take no slot, since destroying waits for the kernel
    /// and for nothing that a new member needs; but while there are so many, none is made, or a
    /// busy pool would be outrun by its own garbage.
    pub(crate) ending: usize,
    /// How long nobody may ask for a member before [`idle`](Self::idle) are kept ready instead of
    /// [`ready`](Self::ready). `None`: forever.
    pub(crate) idle_after: Option<Duration>,
    /// Members kept ready when nobody asks for any.
    pub(crate) idle: usize,
    /// How often the ready members are examined.
    pub(crate) examine_every: Duration,
    /// How long after a failure to make a member the next attempt is made; doubled with each
    /// further one.
    pub(crate) retry_first: Duration,
    /// The most that it becomes.
    pub(crate) retry_limit: Duration,
    /// Failures in a row from which on whoever waits is told. Before that they go on waiting for
    /// the next attempt.
    pub(crate) failures: u32,
}

impl Settings {
    /// For `ready` members kept ready of at most `max`, with the usual rest.
    pub(crate) fn new(ready: usize, max: usize) -> Self {
        Self {
            ready,
            max,
            waiting: max.max(16),
            making: 4,
            ending: 64,
            idle_after: None,
            idle: 0,
            examine_every: Duration::from_secs(1),
            retry_first: Duration::from_millis(100),
            retry_limit: Duration::from_secs(10),
            failures: 3,
        }
    }

    /// Refuses numbers that make no pool.
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |message: String| Err(Error::new(ErrorKind::InvalidRequest, message));
        if self.max == 0 {
            return wrong("a pool of at most 0 members has none to give: max must be 1".to_owned());
        }
        if self.ready > self.max {
            return wrong(format!(
                "a pool cannot keep {} members ready when {} may be alive: max must be at least \
                 ready",
                self.ready, self.max
            ));
        }
        if self.idle > self.ready {
            return wrong(format!(
                "a pool that keeps {} members ready cannot keep {} when it is idle",
                self.ready, self.idle
            ));
        }
        for (name, value) in [
            ("being made", self.making),
            ("being destroyed", self.ending),
        ] {
            if value == 0 {
                return wrong(format!(
                    "a pool with at most 0 members {name} at once cannot work"
                ));
            }
        }
        if self.examine_every.is_zero() || self.retry_first.is_zero() {
            return wrong(
                "a pool cannot examine its members, or try again, all the time: give an interval"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// How long to wait after so many failures in a row.
    pub(super) fn retry_after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.retry_first
            .saturating_mul(1 << doublings)
            .min(self.retry_limit.max(self.retry_first))
    }
}
