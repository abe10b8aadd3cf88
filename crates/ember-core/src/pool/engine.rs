//! The caller's side of a pool: taking a member, waiting for one, giving it back, the end.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::budget::{Budget, Lease, Reserved, Tenant};
use super::keeper;
use super::ledger::{Asked, Ledger};
use super::settings::Settings;
use super::status::PoolStatus;
use super::supply::Supply;
use crate::error::{Error, ErrorKind};
use crate::size::ByteSize;

/// A pool of what `S` makes.
///
/// Dropping it closes it: who waits is told, what is ready is destroyed, and what is handed out is
/// destroyed when it is dropped.
pub(crate) struct Engine<S: Supply> {
    shared: Arc<Shared<S>>,
}

/// What the engine, its keeper and the members that are handed out have in common.
pub(super) struct Shared<S: Supply> {
    pub(super) supply: S,
    ledger: Mutex<Books<S>>,
    /// Wakes the keeper.
    pub(super) work: Notify,
    /// Tells of every round of the keeper, and of its end.
    pub(super) rounds: Notify,
    pub(super) lease: Option<Lease>,
}

/// The ledger, and what the lock covers besides.
pub(super) struct Books<S: Supply> {
    pub(super) ledger: Ledger<Member<S::Item>, Waiter<S>>,
    /// There is no keeper any more: whoever has a member to destroy does it himself.
    pub(super) alone: bool,
    /// Members that should be made are not, since there is no memory for them.
    pub(super) short: bool,
}

/// A member, with the bytes that it counts for.
pub(super) struct Member<T> {
    pub(super) item: T,
    pub(super) reserved: Option<Reserved>,
}

/// What a caller that waits is told by.
pub(super) type Waiter<S> = oneshot::Sender<Result<Pooled<S>, Error>>;

/// A member that is handed out. Dropped, it is given to the pool to destroy, and its place is free.
pub(crate) struct Pooled<S: Supply> {
    /// There until it is dropped or taken out.
    member: Option<Member<S::Item>>,
    shared: Arc<Shared<S>>,
}

impl<S: Supply> Engine<S> {
    /// Begins to make members, in the tokio runtime that this is called in.
    pub(crate) fn start(
        supply: S,
        settings: Settings,
        budget: Option<&Budget>,
    ) -> Result<Self, Error> {
        settings.check()?;
        let runtime = Handle::try_current().map_err(|error| {
            let message = "a pool is kept by a task: make it where a tokio runtime runs";
            Error::because(ErrorKind::InvalidRequest, message, error)
        })?;
        if let Some(budget) = budget {
            fits(budget, supply.cost_bytes())?;
        }
        let shared = Arc::new_cyclic(|weak: &Weak<Shared<S>>| Shared {
            supply,
            ledger: Mutex::new(Books {
                ledger: Ledger::new(settings, Instant::now()),
                alone: false,
                short: false,
            }),
            work: Notify::new(),
            rounds: Notify::new(),
            lease: budget.map(|budget| budget.join(weak.clone())),
        });
        runtime.spawn(keeper::keep(Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// A member: one that is ready, or the next one when those who came before have theirs.
    ///
    /// Dropping the future leaves the queue; a member that it was just given goes to the next.
    pub(crate) async fn acquire(&self, deadline: Option<Instant>) -> Result<Pooled<S>, Error> {
        let mut waiting = match self.shared.ask()? {
            Answer::Ready(pooled) => return Ok(pooled),
            Answer::Queued(waiting) => waiting,
        };
        let answer = match deadline {
            None => (&mut waiting.answer).await,
            Some(deadline) => match timeout_at(deadline, &mut waiting.answer).await {
                Ok(answer) => answer,
                Err(_) => match waiting.leave() {
                    Some(answer) => Ok(answer),
                    None => return Err(self.shared.expired()),
                },
            },
        };
        waiting.is_over = true;
        // Whoever drops a waiter tells it something before; but for a keeper that is torn away.
        answer.unwrap_or_else(|_| Err(self.shared.lock().closed()))
    }

    /// Waits until as many members are ready as should be.
    ///
    /// Fails when members cannot be made, or memory is short, which the pool nevertheless goes on
    /// trying.
    pub(crate) async fn filled(&self) -> Result<(), Error> {
        loop {
            let round = self.shared.rounds.notified();
            tokio::pin!(round);
            round.as_mut().enable();
            {
                let books = self.shared.lock();
                let ledger = &books.ledger;
                if ledger.is_closing() {
                    return Err(books.closed());
                }
                if ledger.is_filled(Instant::now()) {
                    return Ok(());
                }
                if let Some(failure) = ledger.last_failure().filter(|_| ledger.is_failing()) {
                    return Err(cannot_make(failure));
                }
                if let Some(lease) = self.shared.lease.as_ref().filter(|_| books.short) {
                    let (ready, limit) = (ledger.status().ready, lease.budget().limit());
                    let message = format!(
                        "{ready} members of the pool are ready, and there is no memory for more: \
                         the budget of {limit} is used up"
                    );
                    return Err(Error::new(ErrorKind::Unavailable, message));
                }
            }
            round.await;
        }
    }

    /// Where the members are.
    pub(crate) fn status(&self) -> PoolStatus {
        self.shared.lock().ledger.status()
    }

    /// Gives no more members: who waits is told so, what is ready is destroyed. Returns at once.
    pub(crate) fn close(&self) {
        self.shared.close();
    }

    /// Closes, and waits until all members are destroyed, those too that are handed out, or the
    /// deadline comes. Gives the number of members that are left: nothing is forced upon those.
    pub(crate) async fn drain(&self, deadline: Option<Instant>) -> usize {
        self.close();
        let empty = async {
            loop {
                let round = self.shared.rounds.notified();
                tokio::pin!(round);
                round.as_mut().enable();
                if self.shared.lock().ledger.present() == 0 {
                    return;
                }
                round.await;
            }
        };
        match deadline {
            None => empty.await,
            // How many are left is looked at in either case.
            Some(deadline) => drop(timeout_at(deadline, empty).await),
        }
        self.shared.lock().ledger.present()
    }
}

/// What a caller got.
enum Answer<S: Supply> {
    Ready(Pooled<S>),
    Queued(Waiting<S>),
}

/// A place in the queue; dropped, it is left.
struct Waiting<S: Supply> {
    ticket: u64,
    answer: oneshot::Receiver<Result<Pooled<S>, Error>>,
    shared: Arc<Shared<S>>,
    is_over: bool,
}

impl<S: Supply> Waiting<S> {
    /// Leaves the queue. Gives the answer if there was one at the last moment.
    fn leave(&mut self) -> Option<Result<Pooled<S>, Error>> {
        self.is_over = true;
        // From here on nobody can answer: what is not in the channel now goes to the next.
        self.answer.close();
        let answer = self.answer.try_recv().ok();
        if answer.is_none() {
            let waiter = self.shared.lock().ledger.leave(self.ticket);
            drop(waiter);
            // Less is needed now.
            self.shared.work.notify_one();
        }
        answer
    }
}

impl<S: Supply> Drop for Waiting<S> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if let Some(Ok(mut pooled)) = self.leave()
            && let Some(member) = pooled.member.take()
        {
            let offered = self.shared.lock().ledger.returned(member, Instant::now());
            self.shared.hand_over(offered);
            self.shared.changed();
        }
    }
}

impl<S: Supply> Shared<S> {
    pub(super) fn lock(&self) -> MutexGuard<'_, Books<S>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the ledger until it gives a member that lives, or a place in the queue.
    ///
    /// The way to a ready member is short: no task is waited for, nothing is allocated.
    fn ask(self: &Arc<Self>) -> Result<Answer<S>, Error> {
        loop {
            let now = Instant::now();
            let mut answer = None;
            let (asked, call) = {
                let mut books = self.lock();
                let asked = books.ledger.ask(now, || {
                    let (sender, receiver) = oneshot::channel();
                    answer = Some(receiver);
                    sender
                });
                let plan = books.ledger.plan(now);
                (asked, plan.urgent + plan.spare > 0 || plan.again.is_some())
            };
            if call {
                // It works when the caller's task has gone on, or on another thread.
                self.work.notify_one();
            }
            match asked {
                Asked::Ready(member) => {
                    let mut pooled = Pooled {
                        member: Some(member),
                        shared: Arc::clone(self),
                    };
                    if self.supply.is_healthy(&pooled) {
                        return Ok(Answer::Ready(pooled));
                    }
                    pooled.give_up(true);
                }
                Asked::Queued(ticket) => {
                    let Some(answer) = answer else {
                        unreachable!("a place in the queue was made with its channel");
                    };
                    return Ok(Answer::Queued(Waiting {
                        ticket,
                        answer,
                        shared: Arc::clone(self),
                        is_over: false,
                    }));
                }
                Asked::Full => return Err(self.full()),
                Asked::Closed => return Err(self.lock().closed()),
            }
        }
    }

    /// Gives a member to the caller that it is for, or to the next one if that one is gone, until
    /// somebody has it.
    pub(super) fn hand_over(self: &Arc<Self>, mut offered: Option<(Member<S::Item>, Waiter<S>)>) {
        // Not under the lock: sending wakes a task, which is somebody else's code.
        while let Some((member, waiter)) = offered {
            let pooled = Pooled {
                member: Some(member),
                shared: Arc::clone(self),
            };
            offered = match waiter.send(Ok(pooled)) {
                Err(Ok(mut pooled)) => pooled
                    .member
                    .take()
                    .and_then(|member| self.lock().ledger.returned(member, Instant::now())),
                _ => None,
            };
        }
    }

    /// Gives no more members.
    pub(super) fn close(&self) {
        let waiters: Vec<_> = {
            let mut books = self.lock();
            let waiters = books.ledger.close();
            let told = waiters.into_iter();
            told.map(|waiter| (waiter, books.closed())).collect()
        };
        for (waiter, error) in waiters {
            // A caller that is gone needs no word.
            let _ = waiter.send(Err(error));
        }
        self.work.notify_one();
    }

    /// Something has changed that the keeper has to look at. Where there is none any more, what is
    /// to be done is done here.
    pub(super) fn changed(self: &Arc<Self>) {
        self.work.notify_one();
        loop {
            let members = {
                let mut books = self.lock();
                if !books.alone {
                    return;
                }
                books.ledger.departures(usize::MAX)
            };
            if members.is_empty() {
                break;
            }
            for member in members {
                Departing::new(Arc::clone(self), member).destroy();
            }
        }
        self.rounds.notify_waiters();
    }

    fn full(&self) -> Error {
        let books = self.lock();
        let status = books.ledger.status();
        let message = format!(
            "the pool's queue is full: {} callers wait for a member, {} are handed out and {} are \
             being made. Try later, or allow the pool more",
            status.waiting, status.busy, status.making
        );
        Error::new(ErrorKind::Unavailable, message)
    }

    /// A caller's deadline has come. Counts it and says what kept the pool.
    fn expired(&self) -> Error {
        let mut books = self.lock();
        books.ledger.expired();
        let ledger = &books.ledger;
        let status = ledger.status();
        let max = ledger.settings().max;
        let late = "no member of the pool came before the deadline";
        if let Some(failure) = ledger.last_failure() {
            let message = format!("{late}: the last attempt to make one failed");
            return Error::because(failure.kind(), message, SharedError(Arc::clone(failure)));
        }
        let reason = if status.busy >= max {
            format!("all {max} that may be alive are handed out")
        } else if let Some(lease) = self.lease.as_ref().filter(|_| books.short) {
            let limit = lease.budget().limit();
            format!("the memory budget of {limit} is used up")
        } else {
            format!(
                "{} are handed out, {} are being made, {} are being destroyed",
                status.busy, status.making, status.ending
            )
        };
        let message = format!("{late}: {reason}, and {} callers wait", status.waiting);
        Error::new(ErrorKind::Unavailable, message)
    }
}

impl<S: Supply> Books<S> {
    fn closed(&self) -> Error {
        match self.ledger.last_failure() {
            Some(failure) if self.ledger.is_failing() => Error::because(
                ErrorKind::Closed,
                "the pool is closed, and before that it could make no members",
                SharedError(Arc::clone(failure)),
            ),
            _ => Error::new(ErrorKind::Closed, "the pool is closed: it gives no members"),
        }
    }
}

/// Refuses members that a budget can never hold.
pub(super) fn fits(budget: &Budget, cost: u64) -> Result<(), Error> {
    if cost <= budget.limit().as_bytes() {
        return Ok(());
    }
    let message = format!(
        "a member of the pool takes {}, and the memory budget is {}: it can never be made",
        ByteSize::bytes(cost),
        budget.limit()
    );
    Err(Error::new(ErrorKind::InvalidRequest, message))
}

/// What a caller is told when members cannot be made.
pub(super) fn cannot_make(failure: &Arc<Error>) -> Error {
    let message = "cannot make a member for the pool";
    Error::because(failure.kind(), message, SharedError(Arc::clone(failure)))
}

/// One error that many are told.
#[derive(Debug)]
struct SharedError(Arc<Error>);

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl<S: Supply> Tenant for Shared<S> {
    fn idle_since(&self) -> Option<Instant> {
        self.lock().ledger.idle_since()
    }

    fn evict(&self) -> bool {
        let evicted = self.lock().ledger.evict(Member::leave);
        self.work.notify_one();
        evicted
    }

    fn wake(&self) {
        self.work.notify_one();
    }
}

impl<T> Member<T> {
    /// It is going to be destroyed.
    fn leave(&mut self) {
        if let Some(reserved) = &mut self.reserved {
            reserved.leave();
        }
    }
}

/// A member on its way out: however this ends, it is destroyed and counted.
pub(super) struct Departing<S: Supply> {
    item: Option<S::Item>,
    reserved: Option<Reserved>,
    shared: Arc<Shared<S>>,
}

impl<S: Supply> Departing<S> {
    pub(super) fn new(shared: Arc<Shared<S>>, mut member: Member<S::Item>) -> Self {
        member.leave();
        Self {
            item: Some(member.item),
            reserved: member.reserved,
            shared,
        }
    }

    /// Destroys it, here and now.
    pub(super) fn destroy(mut self) {
        if let Some(item) = self.item.take() {
            self.shared.supply.discard(item);
        }
    }
}

impl<S: Supply> Drop for Departing<S> {
    fn drop(&mut self) {
        // It is there if the thread that was to destroy it never came.
        if let Some(item) = self.item.take() {
            self.shared.supply.discard(item);
        }
        drop(self.reserved.take());
        self.shared.lock().ledger.ended();
        self.shared.changed();
    }
}

impl<S: Supply> Drop for Pooled<S> {
    fn drop(&mut self) {
        self.give_up(false);
    }
}

impl<S: Supply> Pooled<S> {
    /// Gives the member to the keeper to destroy.
    fn give_up(&mut self, dead: bool) {
        if let Some(mut member) = self.member.take() {
            member.leave();
            self.shared.lock().ledger.give_up(member, dead);
            self.shared.changed();
        }
    }

    /// The member itself, which is the caller's from now on: it counts for the pool's numbers and
    /// memory no more.
    pub(crate) fn into_inner(mut self) -> S::Item {
        let member = self.member.take();
        self.shared.lock().ledger.taken();
        self.shared.changed();
        let Some(member) = member else {
            unreachable!("a member is there until its guard is dropped");
        };
        member.item
    }
}

impl<S: Supply> Deref for Pooled<S> {
    type Target = S::Item;

    fn deref(&self) -> &S::Item {
        match &self.member {
            Some(member) => &member.item,
            None => unreachable!("a member is there until its guard is dropped"),
        }
    }
}

impl<S: Supply> DerefMut for Pooled<S> {
    fn deref_mut(&mut self) -> &mut S::Item {
        match &mut self.member {
            Some(member) => &mut member.item,
            None => unreachable!("a member is there until its guard is dropped"),
        }
    }
}

impl<S: Supply> Drop for Engine<S> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<S: Supply> fmt::Debug for Engine<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status().fmt(f)
    }
}

impl<S: Supply> fmt::Debug for Pooled<S>
where
    S::Item: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
