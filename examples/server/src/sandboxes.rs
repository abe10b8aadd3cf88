//! The sandboxes that clients hold by an id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ember_core::PooledSandbox;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::app::App;
use crate::error::ApiError;

/// How many programs of a client may run in a sandbox at once. More wait.
const AT_ONCE: usize = 8;

/// The sandboxes that clients hold. How many there can be, the pools bound.
#[derive(Debug, Default)]
pub(crate) struct Sandboxes(Mutex<HashMap<String, Arc<Held>>>);

/// A sandbox that a client holds.
#[derive(Debug)]
pub(crate) struct Held {
    sandbox: PooledSandbox,
    pub(crate) pack: String,
    /// What its programs are in.
    pub(crate) language: String,
    since: Instant,
    usage: Mutex<Usage>,
    /// Becomes true when the client holds it no more.
    ended: watch::Sender<bool>,
    places: Semaphore,
}

#[derive(Debug)]
struct Usage {
    running: usize,
    last: Instant,
}

/// Why a sandbox ends whose client did not ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Idle,
    Old,
    Dead,
}

impl Sandboxes {
    /// Gives a sandbox an id.
    pub(crate) fn hold(&self, sandbox: PooledSandbox, pack: &str, language: String) -> String {
        // As long as it takes that nobody finds another's by trying.
        let id = format!("sb_{}", Uuid::new_v4().simple());
        let now = Instant::now();
        let held = Held {
            sandbox,
            pack: pack.to_owned(),
            language,
            since: now,
            usage: Mutex::new(Usage {
                running: 0,
                last: now,
            }),
            ended: watch::Sender::new(false),
            places: Semaphore::new(AT_ONCE),
        };
        self.lock().insert(id.clone(), Arc::new(held));
        id
    }

    pub(crate) fn find(&self, id: &str) -> Result<Arc<Held>, ApiError> {
        let held = self.lock().get(id).cloned();
        held.ok_or_else(ApiError::no_such_sandbox)
    }

    /// Takes a sandbox from its client. What runs in it is over.
    pub(crate) fn take(&self, id: &str) -> Result<Arc<Held>, ApiError> {
        let held = self.lock().remove(id);
        let held = held.ok_or_else(ApiError::no_such_sandbox)?;
        held.ended.send_replace(true);
        Ok(held)
    }

    /// Takes all of them.
    pub(crate) fn take_all(&self) -> usize {
        let all: Vec<Arc<Held>> = self.lock().drain().map(|(_, held)| held).collect();
        for held in &all {
            held.ended.send_replace(true);
        }
        all.len()
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Held>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl App {
    /// Ends the sandboxes that have lain idle or lived too long, or that have died, now and then.
    pub(crate) async fn evict(&self) {
        let often = (self.options.idle_timeout / 2)
            .clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut ticks = tokio::time::interval(often);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.metrics.upkeep();
            let due: Vec<(String, Reason)> = {
                let held = self.sandboxes.lock();
                held.iter()
                    .filter_map(|(id, held)| Some((id.clone(), self.is_due(held)?)))
                    .collect()
            };
            for (id, reason) in due {
                if let Ok(held) = self.sandboxes.take(&id) {
                    tracing::info!(id, pack = held.pack, ?reason, "a sandbox is ended");
                    self.metrics.evicted(&held.pack);
                }
            }
        }
    }

    fn is_due(&self, held: &Held) -> Option<Reason> {
        if !held.sandbox.is_alive() {
            return Some(Reason::Dead);
        }
        if held.since.elapsed() >= self.options.max_age {
            return Some(Reason::Old);
        }
        let usage = held.usage();
        let idle = usage.running == 0 && usage.last.elapsed() >= self.options.idle_timeout;
        idle.then_some(Reason::Idle)
    }
}

impl Held {
    pub(crate) fn sandbox(&self) -> &PooledSandbox {
        &self.sandbox
    }

    /// What it is of, and it.
    pub(crate) fn into_parts(self) -> (String, PooledSandbox) {
        (self.pack, self.sandbox)
    }

    /// Does something in it, unless it ends meanwhile: then whatever it was is over.
    pub(crate) async fn during<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let _running = Running::new(self);
        let mut ended = self.ended.subscribe();
        let work = async {
            match tokio::time::timeout(patience, self.places.acquire()).await {
                Ok(_place) => work.await,
                Err(_) => Err(ApiError::unavailable(format!(
                    "{AT_ONCE} programs run in this sandbox already"
                ))),
            }
        };
        tokio::select! {
            result = work => result,
            // It cannot be closed: this has the sender.
            _ = ended.wait_for(|ended| *ended) => Err(ApiError::no_such_sandbox()),
        }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that is under way in a sandbox.
struct Running<'a>(&'a Held);

impl<'a> Running<'a> {
    fn new(held: &'a Held) -> Self {
        held.usage().running += 1;
        Self(held)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut usage = self.0.usage();
        usage.running -= 1;
        usage.last = Instant::now();
    }
}
