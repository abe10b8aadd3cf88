//! A pool of sandboxes: clones of a template, each with an identity of its own, that wait to be
//! handed out.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Budget, Engine, PoolStatus, Pooled, Settings, Supply};
use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::size::ByteSize;
use crate::template::{ForkOptions, Template};

/// What a clone counts for in a shared [`Budget`] if nothing else is said: far more than one that
/// has done nothing has copied, and far less than all of its memory.
const MEMBER_COST: ByteSize = ByteSize::mib(8);

/// Clones of a template, kept ready.
///
/// A sandbox that is taken is the taker's alone and never comes back; the pool makes another in the
/// background. A clone of this value is another handle on the same pool. When the last one is
/// dropped, the sandboxes that are ready end; those that were handed out live on.
#[derive(Clone)]
pub struct Pool {
    engine: Arc<Engine<Clones>>,
}

/// What a pool is to be.
#[derive(Debug)]
pub struct PoolBuilder {
    template: Template,
    settings: Settings,
    budget: Option<Budget>,
    cost: ByteSize,
    listener: Listener,
}

/// How a pool fared when it made a sandbox, told to who [asked](PoolBuilder::on_fork).
#[derive(Debug)]
#[non_exhaustive]
pub enum PoolFork<'a> {
    /// There is another sandbox.
    Made {
        /// How long it took to have a VM that is ready to run.
        object: Duration,
        /// How long it took, all in all, until the clone had confirmed its identity.
        reply: Duration,
    },
    /// There is none, for this reason. The pool tries again.
    Failed(&'a Error),
}

/// Who is told of what a pool makes, if anybody.
#[derive(Clone, Default)]
struct Listener(Option<Arc<OnFork>>);

type OnFork = dyn Fn(PoolFork<'_>) + Send + Sync;

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "listener" } else { "none" })
    }
}

/// A sandbox out of a pool. Dropping it ends it, without a wait, and frees its place in the pool.
pub struct PooledSandbox(Pooled<Clones>);

/// Makes and ends the clones.
#[derive(Debug)]
struct Clones {
    template: Template,
    cost: ByteSize,
    listener: Listener,
}

impl Clones {
    /// Makes a clone, and says how long it took to have the VM, and until it had answered.
    async fn timed(&self) -> Result<(Sandbox, Duration, Duration), Error> {
        let begun = Instant::now();
        let shell = self.template.shell().await?;
        let object = begun.elapsed();
        let sandbox = shell.start(ForkOptions::default()).await?;
        Ok((sandbox, object, begun.elapsed()))
    }
}

impl Supply for Clones {
    type Item = Sandbox;

    async fn make(&self) -> Result<Sandbox, Error> {
        let made = self.timed().await;
        if let Some(listener) = &self.listener.0 {
            listener(match &made {
                Ok((_, object, reply)) => PoolFork::Made {
                    object: *object,
                    reply: *reply,
                },
                Err(error) => PoolFork::Failed(error),
            });
        }
        made.map(|(sandbox, _, _)| sandbox)
    }

    fn is_healthy(&self, sandbox: &Sandbox) -> bool {
        sandbox.is_alive()
    }

    fn cost_bytes(&self) -> u64 {
        self.cost.as_bytes()
    }

    fn discard(&self, sandbox: Sandbox) {
        sandbox.end();
    }
}

impl Pool {
    /// Describes a pool of clones of `template`.
    pub fn builder(template: Template) -> PoolBuilder {
        PoolBuilder {
            template,
            settings: Settings::new(4, 64),
            budget: None,
            cost: MEMBER_COST,
            listener: Listener::default(),
        }
    }

    /// A sandbox: one that is ready, or else the next one, in the order in which it was asked for.
    /// Dropping the future gives the place in the queue up.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when too many wait already or the
    /// memory budget is used up, [`ErrorKind::Closed`](crate::ErrorKind::Closed) after
    /// [`close`](Self::close), and as for [`Template::fork`] when no clone can be made.
    pub async fn acquire(&self) -> Result<PooledSandbox, Error> {
        self.engine.acquire(None).await.map(PooledSandbox)
    }

    /// [`acquire`](Self::acquire), waiting at most for `timeout`.
    ///
    /// # Errors
    /// As for [`acquire`](Self::acquire), and
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when the time is over.
    pub async fn acquire_within(&self, timeout: Duration) -> Result<PooledSandbox, Error> {
        let deadline = Instant::now().checked_add(timeout);
        self.engine.acquire(deadline).await.map(PooledSandbox)
    }

    /// Waits until as many sandboxes are ready as should be.
    ///
    /// # Errors
    /// When they cannot be made; the pool goes on trying.
    pub async fn filled(&self) -> Result<(), Error> {
        self.engine.filled().await
    }

    /// How many sandboxes are where.
    pub fn status(&self) -> PoolStatus {
        self.engine.status()
    }

    /// Gives no more sandboxes: who waits is told so, what is ready ends. Returns at once.
    pub fn close(&self) {
        self.engine.close();
    }

    /// Closes, and waits until all sandboxes have ended, those too that were handed out, but no
    /// longer than `timeout`. Gives the number of those that are left.
    pub async fn drain(&self, timeout: Duration) -> usize {
        self.engine.drain(Instant::now().checked_add(timeout)).await
    }
}

impl PoolBuilder {
    /// How many sandboxes are kept ready: 4 if not said.
    #[must_use]
    pub fn ready(mut self, count: usize) -> Self {
        self.settings.ready = count;
        self
    }

    /// How many may be alive at once, ready or handed out: 64 if not said.
    #[must_use]
    pub fn max(mut self, count: usize) -> Self {
        self.settings.max = count;
        self.settings.waiting = count.max(16);
        self
    }

    /// How many callers may wait at once; one more is refused. As many as there may be sandboxes,
    /// if not said after [`max`](Self::max).
    #[must_use]
    pub fn waiting(mut self, count: usize) -> Self {
        self.settings.waiting = count;
        self
    }

    /// How many are made at the same time: 4 if not said.
    #[must_use]
    pub fn parallel(mut self, count: usize) -> Self {
        self.settings.making = count;
        self
    }

    /// Keeps only `count` ready when nobody has asked for one for the time `after`.
    #[must_use]
    pub fn shrink(mut self, count: usize, after: Duration) -> Self {
        self.settings.idle = count;
        self.settings.idle_after = Some(after);
        self
    }

    /// Shares `budget` with other pools. Each sandbox counts for `cost` in it.
    #[must_use]
    pub fn budget(mut self, budget: &Budget, cost: ByteSize) -> Self {
        self.budget = Some(budget.clone());
        self.cost = cost;
        self
    }

    /// Has `listener` told of every sandbox that is made, or could not be. It is called by the task
    /// that does it, and must not block.
    #[must_use]
    pub fn on_fork(mut self, listener: impl Fn(PoolFork<'_>) + Send + Sync + 'static) -> Self {
        self.listener = Listener(Some(Arc::new(listener)));
        self
    }

    /// Makes the pool, and returns when as many sandboxes are ready as should be. It has to be
    /// called on a tokio runtime, which from then on does the pool's work.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`](crate::ErrorKind::InvalidRequest) for numbers that make no
    /// pool, and as for [`Template::fork`].
    pub async fn build(self) -> Result<Pool, Error> {
        let clones = Clones {
            template: self.template,
            cost: self.cost,
            listener: self.listener,
        };
        let engine = Engine::start(clones, self.settings, self.budget.as_ref())?;
        let pool = Pool {
            engine: Arc::new(engine),
        };
        pool.filled().await?;
        Ok(pool)
    }
}

impl PooledSandbox {
    /// The sandbox itself. It counts for the pool's numbers and memory no more.
    pub fn into_inner(self) -> Sandbox {
        self.0.into_inner()
    }
}

impl Deref for PooledSandbox {
    type Target = Sandbox;

    fn deref(&self) -> &Sandbox {
        &self.0
    }
}

impl fmt::Debug for PooledSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PooledSandbox").field(&**self).finish()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("status", &self.status())
            .finish()
    }
}
