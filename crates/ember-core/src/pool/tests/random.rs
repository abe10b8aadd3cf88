//! Whatever happens in whatever order, everything is accounted for.

use std::pin::Pin;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::pool::{Budget, PoolStatus};
use crate::size::ByteSize;

/// What can happen to the pools of a test.
#[derive(Debug, Clone)]
enum Step {
    /// A caller asks a pool, for so many milliseconds.
    Ask { pool: usize, patience: Option<u16> },
    /// A caller that waits goes away.
    Leave(prop::sample::Index),
    /// A member that is handed out is dropped.
    Drop(prop::sample::Index),
    /// Or becomes its caller's own.
    Keep(prop::sample::Index),
    /// A member dies, wherever it is.
    Kill { pool: usize, number: u32 },
    /// The next attempts fail.
    Fail { pool: usize, times: usize },
    /// Time passes.
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0..2_usize, prop::option::of(0..100_u16))
            .prop_map(|(pool, patience)| Step::Ask { pool, patience }),
        2 => index().prop_map(Step::Leave),
        4 => index().prop_map(Step::Drop),
        1 => index().prop_map(Step::Keep),
        1 => (0..2_usize, 1..40_u32).prop_map(|(pool, number)| Step::Kill { pool, number }),
        1 => (0..2_usize, 1..4_usize).prop_map(|(pool, times)| Step::Fail { pool, times }),
        4 => (0..60_u16).prop_map(Step::Wait),
        1 => (500..20_000_u16).prop_map(Step::Wait),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    (
        0..4_usize,
        1..6_usize,
        1..5_usize,
        1..4_usize,
        any::<bool>(),
    )
        .prop_map(|(ready, max, waiting, making, shrinks)| {
            let mut settings = Settings::new(ready.min(max), max);
            settings.waiting = waiting;
            settings.making = making;
            settings.ending = making;
            settings.idle_after = shrinks.then_some(Duration::from_secs(3));
            settings
        })
}

type Answer = Result<Pooled<Numbers>, Error>;

struct Caller {
    pool: usize,
    /// Set when it has its answer, which is looked at later.
    future: Pin<Box<dyn Future<Output = Answer>>>,
}

struct World {
    supplies: [Numbers; 2],
    settings: [Settings; 2],
    pools: [Arc<Engine<Numbers>>; 2],
    budget: Budget,
    callers: Vec<Caller>,
    held: Vec<(usize, Pooled<Numbers>)>,
    kept: usize,
}

impl World {
    async fn act(&mut self, step: Step) {
        match step {
            Step::Ask { pool, patience } => {
                let engine = Arc::clone(&self.pools[pool]);
                let deadline = patience.and_then(|patience| after(patience.into()));
                let future = Box::pin(async move { engine.acquire(deadline).await });
                self.callers.push(Caller { pool, future });
                self.answers();
            }
            Step::Leave(index) if !self.callers.is_empty() => {
                drop(self.callers.remove(index.index(self.callers.len())));
            }
            Step::Drop(index) if !self.held.is_empty() => {
                drop(self.held.swap_remove(index.index(self.held.len())));
            }
            Step::Keep(index) if !self.held.is_empty() => {
                let (_, member) = self.held.swap_remove(index.index(self.held.len()));
                member.into_inner();
                self.kept += 1;
            }
            Step::Kill { pool, number } => self.supplies[pool].kill(number),
            Step::Fail { pool, times } => {
                self.supplies[pool].fail(Failure::Error(ErrorKind::BootFailed), times);
            }
            Step::Wait(milliseconds) => sleep(Duration::from_millis(milliseconds.into())).await,
            _ => {}
        }
    }

    /// Callers look at their answers, in order. Each pool serves those that wait longest.
    fn answers(&mut self) {
        let mut waits = [false; 2];
        let callers = std::mem::take(&mut self.callers);
        for mut caller in callers {
            let pool = caller.pool;
            match at_once(caller.future.as_mut()) {
                None => {
                    waits[pool] = true;
                    self.callers.push(caller);
                }
                Some(Ok(member)) => {
                    assert!(!waits[pool], "served before somebody who came first");
                    self.held.push((pool, member));
                }
                Some(Err(error)) => assert!(
                    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::BootFailed),
                    "{error:?}"
                ),
            }
        }
    }

    fn check(&self) {
        let mut used = 0;
        for index in 0..2 {
            let (status, settings) = (self.pools[index].status(), &self.settings[index]);
            let PoolStatus {
                ready,
                busy,
                making,
                ending,
                waiting,
                ..
            } = status;
            assert!(ready + busy + making <= settings.max, "{status:?}");
            assert!(making <= settings.making, "{status:?}");
            assert!(waiting <= settings.waiting, "{status:?}");
            assert!(waiting == 0 || ready == 0, "{status:?}");
            let somewhere = (ready + busy + ending) as u64 + status.ended + status.taken;
            assert_eq!(status.made, somewhere, "{status:?}");
            let cost = self.supplies[index].lock().cost;
            used += cost * (ready + busy + making + ending) as u64;

            let alive = self.supplies[index].lock().alive.len();
            // One that was made may not have been taken note of yet.
            let known = ready + busy + ending + usize::try_from(status.taken).unwrap();
            assert!(
                (known..=known + making).contains(&alive),
                "{status:?}, {alive} alive"
            );
        }
        assert!(used <= self.budget.limit().as_bytes());
        assert_eq!(self.budget.used().as_bytes(), used);
    }
}

async fn play(settings: [Settings; 2], costs: [u64; 2], limit: u64, steps: Vec<Step>) {
    let supplies = costs.map(Numbers::costing);
    let budget = Budget::new(ByteSize::bytes(limit));
    let pools = [0, 1].map(|index: usize| {
        let (supply, settings) = (supplies[index].clone(), settings[index].clone());
        Arc::new(Engine::start(supply, settings, Some(&budget)).unwrap())
    });
    let mut world = World {
        supplies,
        settings,
        pools,
        budget,
        callers: Vec::new(),
        held: Vec::new(),
        kept: 0,
    };
    for step in steps {
        world.act(step).await;
        settle().await;
        world.answers();
        world.check();
    }
    // Whoever still waits is served when those before him are done.
    while !world.callers.is_empty() {
        world.held.clear();
        sleep(Duration::from_secs(15)).await;
        world.answers();
        world.check();
    }
    world.held.clear();
    for pool in &world.pools {
        assert_eq!(pool.drain(None).await, 0);
    }
    let kept: usize = world.supplies.iter().map(Numbers::alive).sum();
    assert_eq!(kept, world.kept);
    assert_eq!(world.budget.used().as_bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_member_is_accounted_for_and_everybody_served_in_order(
        settings in [settings(), settings()],
        costs in [1..4_u64, 1..4_u64],
        limit in 3..12_u64,
        steps in vec(step(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(play(settings, costs, limit, steps));
    }
}
