//! Pools of numbers, on a clock that stands still until everybody waits.

mod acquire;
mod failures;
mod life;
mod random;
mod sharing;
mod threads;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Engine, Pooled, Settings, Supply};
use crate::error::{Error, ErrorKind};

/// How long it takes to make a member, unless a test says otherwise.
const MAKING: Duration = Duration::from_millis(10);

/// Makes numbers: 1, 2, 3, and so on.
#[derive(Debug, Clone, Default)]
struct Numbers {
    counted: Arc<Mutex<Counted>>,
    /// Destroying one waits for this.
    destroying: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct Counted {
    last: u32,
    /// Made and not destroyed, by the supply's own count.
    alive: BTreeSet<u32>,
    most_alive: usize,
    under_way: usize,
    most_under_way: usize,
    dead: BTreeSet<u32>,
    /// In this order.
    discarded: Vec<u32>,
    /// When an attempt was begun.
    attempts: Vec<Instant>,
    /// The attempts to come which fail, and how.
    failures: Vec<Failure>,
    making: Option<Duration>,
    cost: u64,
    broken: bool,
}

#[derive(Debug, Clone, Copy)]
enum Failure {
    Error(ErrorKind),
    Panic,
}

impl Numbers {
    fn costing(cost: u64) -> Self {
        let numbers = Self::default();
        numbers.lock().cost = cost;
        numbers
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        // Part of the tests is that something panics.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, settings: Settings) -> Engine<Self> {
        Engine::start(self.clone(), settings, None).unwrap()
    }

    fn kill(&self, number: u32) {
        self.lock().dead.insert(number);
    }

    fn fail(&self, failure: Failure, times: usize) {
        self.lock().failures = vec![failure; times];
    }

    fn alive(&self) -> usize {
        self.lock().alive.len()
    }
}

/// Takes one from a count, however the attempt ends.
struct UnderWay(Numbers);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

impl Supply for Numbers {
    type Item = u32;

    async fn make(&self) -> Result<u32, Error> {
        let making = {
            let mut counted = self.lock();
            counted.attempts.push(Instant::now());
            counted.under_way += 1;
            counted.most_under_way = counted.most_under_way.max(counted.under_way);
            counted.making.unwrap_or(MAKING)
        };
        let _under_way = UnderWay(self.clone());
        sleep(making).await;
        let failure = self.lock().failures.pop();
        match failure {
            Some(Failure::Error(kind)) => return Err(Error::new(kind, "out of numbers")),
            Some(Failure::Panic) => panic!("this is part of the test"),
            None => {}
        }
        let mut counted = self.lock();
        counted.last += 1;
        let number = counted.last;
        counted.alive.insert(number);
        counted.most_alive = counted.most_alive.max(counted.alive.len());
        Ok(number)
    }

    fn is_healthy(&self, number: &u32) -> bool {
        let counted = self.lock();
        assert!(!counted.broken, "this is part of the test");
        !counted.dead.contains(number)
    }

    fn cost_bytes(&self) -> u64 {
        self.lock().cost
    }

    fn discard(&self, number: u32) {
        drop(self.destroying.lock().unwrap());
        let mut counted = self.lock();
        assert!(counted.alive.remove(&number), "{number} destroyed twice");
        counted.discarded.push(number);
    }
}

/// Lets everybody do what can be done without time: the clock goes on only when all tasks wait and
/// no thread works for one.
async fn settle() {
    sleep(Duration::from_micros(1)).await;
}

/// What a future has to say without waiting.
fn at_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    match future.as_mut().poll(&mut context) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// A member that has to be there at once.
fn take(pool: &Engine<Numbers>) -> Pooled<Numbers> {
    at_once(pool.acquire(None))
        .expect("no member is ready")
        .unwrap()
}

fn after(milliseconds: u64) -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(milliseconds))
}
