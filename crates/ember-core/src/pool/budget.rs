//! Memory that several pools share.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

use crate::size::ByteSize;

/// A number of bytes that the members of several pools may hold together.
///
/// Every member reserves what it costs before it is made, and gives it back when it is destroyed.
/// When somebody waits for a member and its pool finds no bytes left, the members that other pools
/// keep ready go, the one that was ready longest first; then that pool waits, in turn with others
/// that do. Members that are only to be kept ready are made from what nobody waits for.
///
/// Clones are the same budget.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    limit: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Bytes reserved.
    used: u64,
    /// Of these, bytes of members that are being destroyed: they come back by themselves.
    leaving: u64,
    tenants: BTreeMap<u64, Entry>,
    /// Tenants somebody waits at, in turn. While there is one, nobody else gets anything.
    turns: VecDeque<u64>,
    next: u64,
}

struct Entry {
    tenant: Weak<dyn Tenant>,
    /// Bytes that callers wait for.
    urgent: u64,
    /// Whether it would keep more members ready if it had the bytes.
    spare: bool,
}

/// A pool, as the budget sees it. None of this is called with the budget's lock held.
pub(super) trait Tenant: Send + Sync {
    /// Since when the member that is ready longest is ready.
    fn idle_since(&self) -> Option<Instant>;

    /// Gives up that member. Says whether there was one.
    fn evict(&self) -> bool;

    /// There may be bytes now.
    fn wake(&self);
}

/// A pool's place in a budget; dropped, it has none.
pub(super) struct Lease {
    budget: Budget,
    id: u64,
}

/// The bytes of one member, given back when dropped.
pub(super) struct Reserved {
    budget: Budget,
    bytes: u64,
    leaving: bool,
}

impl Budget {
    /// So many bytes, for all the pools that are given it or a clone of it.
    pub fn new(limit: ByteSize) -> Self {
        Self(Arc::new(Inner {
            limit: limit.as_bytes(),
            state: Mutex::default(),
        }))
    }

    /// How much may be used.
    pub fn limit(&self) -> ByteSize {
        ByteSize::bytes(self.0.limit)
    }

    /// How much is.
    pub fn used(&self) -> ByteSize {
        ByteSize::bytes(self.lock().used)
    }

    pub(super) fn join(&self, tenant: Weak<dyn Tenant>) -> Lease {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let entry = Entry {
            tenant,
            urgent: 0,
            spare: false,
        };
        state.tenants.insert(id, entry);
        drop(state);
        Lease {
            budget: self.clone(),
            id,
        }
    }

    /// Evicts until those whose turn it is have what they wait for, or will when the evicted
    /// members are destroyed, or there is nothing to evict.
    fn make_room(&self) {
        let (mut missing, mut idle) = {
            let state = self.lock();
            let idle: Vec<Arc<dyn Tenant>> = state
                .tenants
                .iter()
                // Who waits has nothing ready.
                .filter(|(id, _)| !state.turns.contains(id))
                .filter_map(|(_, entry)| entry.tenant.upgrade())
                .collect();
            (state.missing(self.0.limit), idle)
        };
        while missing > 0 {
            let oldest = idle
                .iter()
                .enumerate()
                .filter_map(|(index, tenant)| Some((tenant.idle_since()?, index)))
                .min();
            let Some((_, index)) = oldest else { return };
            if !idle[index].evict() {
                // Somebody else was given it. Whatever that pool has besides is younger than what
                // others have, or is seen the next time.
                idle.swap_remove(index);
            }
            missing = self.lock().missing(self.0.limit);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What those whose turn it is will lack when everything that is leaving has left.
    fn missing(&self, limit: u64) -> u64 {
        let wanted = self
            .turns
            .iter()
            .filter_map(|id| self.tenants.get(id))
            .fold(0_u64, |sum, entry| sum.saturating_add(entry.urgent));
        let coming = (limit - self.used).saturating_add(self.leaving);
        wanted.saturating_sub(coming)
    }

    /// Whom bytes that have become free are for.
    fn next_in_turn(&self) -> Vec<Arc<dyn Tenant>> {
        let first = self.turns.front().and_then(|id| self.tenants.get(id));
        match first {
            Some(first) => first.tenant.upgrade().into_iter().collect(),
            None => self
                .tenants
                .values()
                .filter(|entry| entry.spare)
                .filter_map(|entry| entry.tenant.upgrade())
                .collect(),
        }
    }
}

impl Lease {
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Reserves for up to `urgent` members that callers wait for and up to `spare` others, `cost`
    /// bytes each. The pool is woken when there may be more, until it asks again, for less.
    pub(super) fn reserve(&self, cost: u64, urgent: usize, spare: usize) -> Vec<Reserved> {
        let limit = self.budget.0.limit;
        let mut state = self.budget.lock();
        let waited = state.turns.front().copied();
        let mut count = 0;

        if urgent == 0 {
            state.turns.retain(|id| *id != self.id);
        } else if !state.turns.contains(&self.id) {
            state.turns.push_back(self.id);
        }
        if state.turns.front() == Some(&self.id) {
            count = state.fitting(limit, cost, urgent);
            if count > 0 {
                // Who has got something waits behind the others for the rest.
                state.turns.pop_front();
                if count < urgent {
                    state.turns.push_back(self.id);
                }
            }
        }
        state.used += cost * count as u64;
        let missed = urgent - count;

        let mut missed_spare = spare;
        if state.turns.is_empty() {
            let more = state.fitting(limit, cost, spare);
            state.used += cost * more as u64;
            count += more;
            missed_spare -= more;
        }
        if let Some(entry) = state.tenants.get_mut(&self.id) {
            entry.urgent = cost.saturating_mul(missed as u64);
            entry.spare = missed_spare > 0;
        }
        let next = match state.turns.front().copied() {
            // It was told before, or is told by whoever gives bytes back.
            next if next == waited || next == Some(self.id) => Vec::new(),
            _ => state.next_in_turn(),
        };
        let make_room = state.missing(limit) > 0;
        drop(state);

        let reserved = (0..count)
            .map(|_| Reserved {
                budget: self.budget.clone(),
                bytes: cost,
                leaving: false,
            })
            .collect();
        next.iter().for_each(|tenant| tenant.wake());
        if make_room {
            self.budget.make_room();
        }
        reserved
    }

    /// Needs nothing any more, for now.
    pub(super) fn withdraw(&self) {
        self.reserve(0, 0, 0);
    }
}

impl State {
    /// For how many of `wanted` members there are bytes.
    fn fitting(&self, limit: u64, cost: u64, wanted: usize) -> usize {
        let free = limit - self.used;
        match free.checked_div(cost) {
            Some(fitting) => wanted.min(usize::try_from(fitting).unwrap_or(usize::MAX)),
            None => wanted,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.withdraw();
        self.budget.lock().tenants.remove(&self.id);
    }
}

impl Reserved {
    /// The member is being destroyed: nothing else must go for what it holds.
    pub(super) fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.budget.lock().leaving += self.bytes;
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.used -= self.bytes;
        if self.leaving {
            state.leaving -= self.bytes;
        }
        let next = state.next_in_turn();
        drop(state);
        next.iter().for_each(|tenant| tenant.wake());
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("limit", &self.limit())
            .field("used", &self.used())
            .field("pools", &self.lock().tenants.len())
            .finish()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.budget.fmt(f)
    }
}

impl fmt::Debug for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reserved({})", ByteSize::bytes(self.bytes))
    }
}
