//! The task behind a pool: makes, examines, shrinks, destroys.

use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::budget::Reserved;
use super::engine::{Departing, Member, Shared, cannot_make, fits};
use super::supply::Supply;
use crate::error::{Error, ErrorKind};

/// Members examined with the lock held once.
const EXAMINED_AT_ONCE: usize = 16;

/// An attempt to make a member: its bytes, and what came of it.
type Attempt<T> = (Option<Reserved>, Result<T, Error>);

/// Keeps a pool until it is closed and all its members are destroyed.
pub(super) async fn keep<S: Supply>(shared: Arc<Shared<S>>) {
    let mut keeper = Keeper {
        attempts: JoinSet::new(),
        examine_at: Instant::now(),
        shared,
    };
    loop {
        let again = keeper.round();
        keeper.shared.rounds.notify_waiters();
        {
            let books = keeper.shared.lock();
            if books.ledger.is_closing() && books.ledger.present() == 0 {
                return;
            }
        }
        let pause = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(attempt) = keeper.attempts.join_next() => keeper.attempted(attempt),
            () = keeper.shared.work.notified() => {}
            () = pause => {}
        }
    }
}

struct Keeper<S: Supply> {
    shared: Arc<Shared<S>>,
    attempts: JoinSet<Attempt<S::Item>>,
    examine_at: Instant,
}

impl<S: Supply> Keeper<S> {
    /// Does what there is to do. Gives the time of the next round, if it needs no reason.
    fn round(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.shared.lock().ledger.shrink(now);
        let examine = self.examine(now);
        let again = self.make(now);
        self.destroy();
        [examine, again].into_iter().flatten().min()
    }

    fn examine(&mut self, now: Instant) -> Option<Instant> {
        let mut from = 0;
        if now >= self.examine_at {
            loop {
                // A caller that wants a member has its turn between two bites. One that moves
                // meanwhile may be left out: it is looked at when it is handed out.
                let mut books = self.shared.lock();
                let healthy =
                    |member: &Member<S::Item>| self.shared.supply.is_healthy(&member.item);
                if !books.ledger.examine(from, EXAMINED_AT_ONCE, healthy) {
                    break;
                }
                from += EXAMINED_AT_ONCE;
            }
            self.examine_at = now + self.shared.lock().ledger.settings().examine_every;
        }
        let any = self.shared.lock().ledger.status().ready > 0;
        any.then_some(self.examine_at)
    }

    /// Begins to make what there should be.
    fn make(&mut self, now: Instant) -> Option<Instant> {
        let plan = self.shared.lock().ledger.plan(now);
        let mut begun: Vec<Option<Reserved>> = Vec::new();
        let wanted = plan.urgent + plan.spare;
        match &self.shared.lease {
            None => begun.resize_with(wanted, || None),
            Some(lease) => {
                let cost = self.shared.supply.cost_bytes();
                if wanted > 0
                    && let Err(error) = fits(lease.budget(), cost)
                {
                    lease.withdraw();
                    self.failed(error, 0, now);
                    // The ledger says when to try again.
                    return self.shared.lock().ledger.plan(now).again;
                }
                let reserved = lease.reserve(cost, plan.urgent, plan.spare);
                begun.extend(reserved.into_iter().map(Some));
            }
        }
        {
            let mut books = self.shared.lock();
            books.ledger.making(begun.len());
            books.short = begun.len() < wanted;
        }
        for reserved in begun {
            let shared = Arc::clone(&self.shared);
            self.attempts
                .spawn(async move { (reserved, shared.supply.make().await) });
        }
        plan.again
    }

    /// An attempt is over.
    fn attempted(&mut self, attempt: Result<Attempt<S::Item>, JoinError>) {
        let now = Instant::now();
        let error = match attempt {
            Ok((reserved, Ok(item))) => {
                let member = Member { item, reserved };
                let offered = self.shared.lock().ledger.made(member, now);
                self.shared.hand_over(offered);
                return;
            }
            Ok((_, Err(error))) => error,
            Err(error) => Error::because(
                ErrorKind::Internal,
                "making a member for the pool ended unexpectedly",
                error,
            ),
        };
        self.failed(error, 1, now);
    }

    /// A member could not be made, of `begun` that were begun.
    fn failed(&self, error: Error, begun: usize, now: Instant) {
        let lasting = is_lasting(error.kind());
        let (waiters, failure) = {
            let mut books = self.shared.lock();
            let waiters = books.ledger.make_failed(error, begun, lasting, now);
            (waiters, books.ledger.last_failure().cloned())
        };
        for waiter in waiters {
            if let Some(failure) = &failure {
                // A caller that is gone needs no word.
                let _ = waiter.send(Err(cannot_make(failure)));
            }
        }
    }

    /// Has members destroyed that are to be, on threads for what blocks.
    fn destroy(&self) {
        let members = {
            let mut books = self.shared.lock();
            let at_once = books.ledger.settings().ending;
            books.ledger.departures(at_once)
        };
        for member in members {
            let departing = Departing::new(Arc::clone(&self.shared), member);
            // A runtime that is shutting down drops what it will not run, which destroys it too.
            drop(tokio::task::spawn_blocking(move || departing.destroy()));
        }
    }
}

/// However the keeper ends (the pool did, the runtime is shut down, it panicked), nobody waits for
/// it, and what is left to destroy is destroyed.
impl<S: Supply> Drop for Keeper<S> {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(lease) = &self.shared.lease {
            lease.withdraw();
        }
        {
            let mut books = self.shared.lock();
            books.alone = true;
            books.ledger.unmade();
        }
        self.shared.changed();
    }
}

/// Whether what went wrong will go wrong again.
fn is_lasting(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::HostUnsupported | ErrorKind::InvalidRequest | ErrorKind::Unprepared
    )
}
