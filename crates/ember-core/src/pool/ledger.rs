//! Who is where in a pool: members, callers that wait, failures, counts.
//!
//! Plain state that is told what happens and what time it is. Whoever holds it behind a lock does
//! what it says.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use super::settings::Settings;
use super::status::PoolStatus;
use crate::error::Error;

/// A pool's state. `M` is a member, `W` what a caller that waits is told by.
#[derive(Debug)]
pub(super) struct Ledger<M, W> {
    settings: Settings,
    /// Ready members, the one that is ready longest in front. Handed out from the back: what ran
    /// last is warm, and what is in front shows how many nobody needs.
    ready: VecDeque<(Instant, M)>,
    /// Callers that wait, in order. Nobody waits while a member is ready.
    queue: VecDeque<(u64, W)>,
    /// Members to be destroyed.
    leaving: Vec<M>,
    tickets: u64,
    closing: bool,
    /// Failures to make a member since one was made.
    failures: u32,
    last_failure: Option<Arc<Error>>,
    retry_at: Option<Instant>,
    last_asked: Instant,
    /// Counts, but for `ready` and `waiting`.
    counts: PoolStatus,
}

/// What a caller gets that asks for a member.
#[derive(Debug)]
pub(super) enum Asked<M> {
    /// One that was ready. It is busy now.
    Ready(M),
    /// A place in the queue.
    Queued(u64),
    /// Too many wait.
    Full,
    /// There are none any more.
    Closed,
}

/// What is to be made now, and when to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Members that callers wait for.
    pub(super) urgent: usize,
    /// Members to be kept ready.
    pub(super) spare: usize,
    /// When there will be something to do that nobody calls for.
    pub(super) again: Option<Instant>,
}

impl<M, W> Ledger<M, W> {
    pub(super) fn new(settings: Settings, now: Instant) -> Self {
        Self {
            settings,
            ready: VecDeque::new(),
            queue: VecDeque::new(),
            leaving: Vec::new(),
            tickets: 0,
            closing: false,
            failures: 0,
            last_failure: None,
            retry_at: None,
            last_asked: now,
            counts: PoolStatus::default(),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn status(&self) -> PoolStatus {
        PoolStatus {
            ready: self.ready.len(),
            waiting: self.queue.len(),
            ..self.counts
        }
    }

    /// A caller asks for a member. It may be dead: who gets it looks.
    pub(super) fn ask(&mut self, now: Instant, waiter: impl FnOnce() -> W) -> Asked<M> {
        if self.closing {
            return Asked::Closed;
        }
        self.last_asked = now;
        if let Some((_, member)) = self.ready.pop_back() {
            self.counts.busy += 1;
            return Asked::Ready(member);
        }
        if self.queue.len() >= self.settings.waiting {
            self.counts.refused += 1;
            return Asked::Full;
        }
        let ticket = self.tickets;
        self.tickets += 1;
        self.queue.push_back((ticket, waiter()));
        Asked::Queued(ticket)
    }

    /// The caller with this ticket does not wait any more. Nothing if it was served.
    pub(super) fn leave(&mut self, ticket: u64) -> Option<W> {
        // Tickets ascend along the queue.
        let index = self
            .queue
            .binary_search_by_key(&ticket, |(ticket, _)| *ticket)
            .ok()?;
        self.queue.remove(index).map(|(_, waiter)| waiter)
    }

    pub(super) fn expired(&mut self) {
        self.counts.expired += 1;
    }

    /// What to make now.
    pub(super) fn plan(&self, now: Instant) -> Plan {
        if self.closing {
            return Plan {
                urgent: 0,
                spare: 0,
                again: None,
            };
        }
        let PoolStatus { busy, making, .. } = self.counts;
        let Settings {
            max,
            making: at_once,
            ending,
            ..
        } = self.settings;
        let alive = self.ready.len() + busy + making;
        let room = max
            .saturating_sub(alive)
            .min(at_once.saturating_sub(making));
        let wanted = (self.queue.len() + self.target(now))
            .saturating_sub(self.ready.len() + making)
            .min(room);
        let waits = self.retry_at.filter(|at| *at > now && wanted > 0);
        let wanted = match waits {
            None if self.counts.ending < ending => wanted,
            _ => 0,
        };
        let urgent = self.queue.len().saturating_sub(making).min(wanted);
        Plan {
            urgent,
            spare: wanted - urgent,
            again: [waits, self.quiet_at().filter(|at| *at > now)]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// So many members are being made.
    pub(super) fn making(&mut self, count: usize) {
        self.counts.making += count;
    }

    /// A member was made. It belongs to the caller that waits longest, or is kept.
    pub(super) fn made(&mut self, member: M, now: Instant) -> Option<(M, W)> {
        self.counts.making -= 1;
        self.counts.made += 1;
        self.failures = 0;
        self.retry_at = None;
        self.last_failure = None;
        self.offer(member, now)
    }

    /// A member that was handed to a caller that is gone belongs to the next one.
    pub(super) fn returned(&mut self, member: M, now: Instant) -> Option<(M, W)> {
        self.counts.busy -= 1;
        self.offer(member, now)
    }

    fn offer(&mut self, member: M, now: Instant) -> Option<(M, W)> {
        if self.closing {
            self.counts.ending += 1;
            self.leaving.push(member);
            return None;
        }
        if let Some((_, waiter)) = self.queue.pop_front() {
            self.counts.busy += 1;
            return Some((member, waiter));
        }
        self.ready.push_back((now, member));
        None
    }

    /// A member could not be made, of `begun` that were begun: one, or none if it was not even
    /// tried. Gives the callers that have to be told: all of them, when nothing is on its way and
    /// there is no hope (`lasting`, or too many failures in a row).
    pub(super) fn make_failed(
        &mut self,
        error: Error,
        begun: usize,
        lasting: bool,
        now: Instant,
    ) -> Vec<W> {
        self.counts.making -= begun;
        self.counts.failed += 1;
        self.failures = self.failures.saturating_add(1);
        if lasting {
            self.failures = self.failures.max(self.settings.failures);
        }
        self.retry_at = Some(now + self.settings.retry_after(self.failures));
        self.last_failure = Some(Arc::new(error));
        if self.counts.making > 0 || !self.is_failing() {
            return Vec::new();
        }
        self.dismiss()
    }

    /// Whether members cannot be made, for all that is known.
    pub(super) fn is_failing(&self) -> bool {
        self.failures >= self.settings.failures.max(1)
    }

    /// Why a member could not be made, if none was made since.
    pub(super) fn last_failure(&self) -> Option<&Arc<Error>> {
        self.last_failure.as_ref()
    }

    /// A busy member is to be destroyed.
    pub(super) fn give_up(&mut self, member: M, dead: bool) {
        self.counts.busy -= 1;
        self.counts.unhealthy += u64::from(dead);
        self.counts.ending += 1;
        self.leaving.push(member);
    }

    /// A busy member belongs to its caller from now on.
    pub(super) fn taken(&mut self) {
        self.counts.busy -= 1;
        self.counts.taken += 1;
    }

    /// Since when the member that is ready longest is ready.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.ready.front().map(|(since, _)| *since)
    }

    /// The member that is ready longest is to be destroyed.
    pub(super) fn evict(&mut self, prepare: impl FnOnce(&mut M)) -> bool {
        let Some((_, mut member)) = self.ready.pop_front() else {
            return false;
        };
        prepare(&mut member);
        self.counts.evicted += 1;
        self.counts.ending += 1;
        self.leaving.push(member);
        true
    }

    /// Gives up ready members that nobody has asked for in a long time.
    pub(super) fn shrink(&mut self, now: Instant) {
        if self.quiet_at().is_none_or(|at| at > now) {
            return;
        }
        let surplus = self.ready.len().saturating_sub(self.settings.idle);
        self.counts.shrunk += surplus as u64;
        self.counts.ending += surplus;
        let surplus = self.ready.drain(..surplus);
        self.leaving.extend(surplus.map(|(_, member)| member));
    }

    /// When nobody will have asked for a member in a long time; nothing if there is none to give
    /// up then.
    fn quiet_at(&self) -> Option<Instant> {
        let surplus = self.ready.len() > self.settings.idle;
        let after = self.settings.idle_after.filter(|_| surplus)?;
        Some(self.last_asked + after)
    }

    /// How many members to keep ready.
    fn target(&self, now: Instant) -> usize {
        let quiet = self.settings.idle_after;
        if quiet.is_some_and(|after| now >= self.last_asked + after) {
            self.settings.idle
        } else {
            self.settings.ready
        }
    }

    /// Whether as many members are ready as should be.
    pub(super) fn is_filled(&self, now: Instant) -> bool {
        self.ready.len() >= self.target(now)
    }

    /// Gives up those of the ready members number `from` to `from + count` that are dead. Says
    /// whether there are more.
    pub(super) fn examine(
        &mut self,
        from: usize,
        count: usize,
        is_healthy: impl Fn(&M) -> bool,
    ) -> bool {
        let end = from.saturating_add(count).min(self.ready.len());
        for index in (from..end).rev() {
            if !is_healthy(&self.ready[index].1)
                && let Some((_, member)) = self.ready.remove(index)
            {
                self.counts.unhealthy += 1;
                self.counts.ending += 1;
                self.leaving.push(member);
            }
        }
        end < self.ready.len()
    }

    /// Members to destroy now, as long as no more than `at_once` are being destroyed.
    pub(super) fn departures(&mut self, at_once: usize) -> Vec<M> {
        let under_way = self.counts.ending - self.leaving.len();
        let count = at_once.saturating_sub(under_way).min(self.leaving.len());
        self.leaving.drain(..count).collect()
    }

    /// Whatever is being made never will be.
    pub(super) fn unmade(&mut self) {
        self.counts.failed += self.counts.making as u64;
        self.counts.making = 0;
    }

    /// A member is destroyed.
    pub(super) fn ended(&mut self) {
        self.counts.ending -= 1;
        self.counts.ended += 1;
    }

    /// From now on nobody gets a member, and none is kept. Gives those who waited.
    pub(super) fn close(&mut self) -> Vec<W> {
        self.closing = true;
        self.counts.ending += self.ready.len();
        let ready = self.ready.drain(..);
        self.leaving.extend(ready.map(|(_, member)| member));
        self.dismiss()
    }

    fn dismiss(&mut self) -> Vec<W> {
        self.queue.drain(..).map(|(_, waiter)| waiter).collect()
    }

    /// Whether members are given no more.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// How many members there are, wherever.
    pub(super) fn present(&self) -> usize {
        let PoolStatus {
            busy,
            making,
            ending,
            ..
        } = self.counts;
        self.ready.len() + busy + making + ending
    }
}
