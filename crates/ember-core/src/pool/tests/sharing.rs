//! Pools that share a budget.

use super::*;
use crate::pool::Budget;
use crate::size::ByteSize;

fn pool(numbers: &Numbers, settings: Settings, budget: &Budget) -> Engine<Numbers> {
    Engine::start(numbers.clone(), settings, Some(budget)).unwrap()
}

fn budget(bytes: u64) -> Budget {
    Budget::new(ByteSize::bytes(bytes))
}

fn used(budget: &Budget) -> u64 {
    budget.used().as_bytes()
}

#[tokio::test(start_paused = true)]
async fn members_are_kept_ready_as_far_as_the_memory_goes() {
    let budget = budget(100);
    let numbers = Numbers::costing(30);
    let pool = pool(&numbers, Settings::new(5, 5), &budget);
    let error = pool.filled().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("100 bytes"), "{error}");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(pool.status().ready, 3);
    assert_eq!(used(&budget), 90);
    assert_eq!(budget.limit(), ByteSize::bytes(100));
    // What a member becomes when it is the caller's own is no concern of the budget's.
    assert_eq!(take(&pool).into_inner(), 3);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((pool.status().ready, used(&budget)), (3, 90));
    assert_eq!(pool.drain(None).await, 0);
    assert_eq!(used(&budget), 0);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_can_never_fit_is_refused() {
    let budget = budget(100);
    let numbers = Numbers::costing(101);
    let error = Engine::start(numbers.clone(), Settings::new(0, 1), Some(&budget)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("101 bytes"), "{error}");
    // Or becomes too large later.
    numbers.lock().cost = 100;
    let pool = pool(&numbers, Settings::new(0, 1), &budget);
    numbers.lock().cost = 200;
    let error = pool.acquire(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    numbers.lock().cost = 100;
    pool.acquire(None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_the_memory_of_the_oldest_ready_member_elsewhere() {
    let budget = budget(100);
    let (old, young, here) = (
        Numbers::costing(25),
        Numbers::costing(25),
        Numbers::costing(25),
    );
    let old_pool = pool(&old, Settings::new(2, 2), &budget);
    old_pool.filled().await.unwrap();
    let young_pool = pool(&young, Settings::new(2, 2), &budget);
    young_pool.filled().await.unwrap();
    let pool = pool(&here, Settings::new(2, 4), &budget);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(pool.status().ready, 0, "nothing goes to be ready elsewhere");
    assert_eq!(used(&budget), 100);

    let first = pool.acquire(None).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!((old_pool.status().ready, old_pool.status().evicted), (1, 1));
    assert_eq!(old.lock().discarded, [1]);
    let second = pool.acquire(None).await.unwrap();
    let third = pool.acquire(None).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(old_pool.status().ready, 0);
    assert_eq!(young_pool.status().ready, 1);
    assert_eq!(young.lock().discarded, [1], "the older one of these");
    assert_eq!(used(&budget), 100);
    // And it goes back to those who would have more ready, whoever is first.
    drop((first, second, third));
    sleep(Duration::from_secs(5)).await;
    let ready = [&old_pool, &young_pool, &pool].map(|pool| pool.status().ready);
    assert_eq!(ready.iter().sum::<usize>(), 4, "{ready:?}");
    assert_eq!(used(&budget), 100);
    let evicted = [&old_pool, &young_pool, &pool].map(|pool| pool.status().evicted);
    assert_eq!(evicted, [2, 1, 0], "nobody was evicted for nothing");
}

#[tokio::test(start_paused = true)]
async fn when_nothing_can_be_evicted_one_waits_and_a_deadline_names_the_budget() {
    let budget = budget(100);
    let (elsewhere, here) = (Numbers::costing(50), Numbers::costing(60));
    let other = pool(&elsewhere, Settings::new(0, 2), &budget);
    let held = [
        other.acquire(None).await.unwrap(),
        other.acquire(None).await.unwrap(),
    ];
    let pool = Arc::new(pool(&here, Settings::new(0, 2), &budget));
    let error = pool.acquire(after(1000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("budget of 100 bytes is used up"),
        "{error}"
    );

    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.acquire(None).await.map(|member| *member) }
    });
    settle().await;
    let [first, second] = held;
    drop(first);
    // There are 50 bytes, and they are not given to a pool that came later and needs only those.
    let later = other.acquire(after(1000)).await;
    assert!(later.is_err());
    drop(second);
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    assert_eq!(*other.acquire(None).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn pools_that_wait_take_turns() {
    let budget = budget(10);
    let supplies = [Numbers::costing(10), Numbers::costing(10)];
    let pools = supplies
        .each_ref()
        .map(|supply| Arc::new(pool(supply, Settings::new(0, 10), &budget)));
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut callers = Vec::new();
    for name in [0, 0, 0, 1, 1, 1] {
        let (pool, order) = (Arc::clone(&pools[name]), Arc::clone(&order));
        callers.push(tokio::spawn(async move {
            let _member = pool.acquire(None).await.unwrap();
            order.lock().unwrap().push(name);
            sleep(Duration::from_millis(5)).await;
        }));
        settle().await;
    }
    for caller in callers {
        caller.await.unwrap();
    }
    // The first pool waited for its second member when the other one came.
    assert_eq!(*order.lock().unwrap(), [0, 0, 1, 0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_wait_any_more_is_in_nobodys_way() {
    let budget = budget(100);
    let (elsewhere, here) = (Numbers::costing(50), Numbers::costing(100));
    let other = pool(&elsewhere, Settings::new(0, 2), &budget);
    let held = other.acquire(None).await.unwrap();
    let pool = pool(&here, Settings::new(0, 2), &budget);
    {
        let gone = pool.acquire(None);
        tokio::pin!(gone);
        assert!(at_once(gone.as_mut()).is_none());
        settle().await;
        assert!(other.acquire(after(100)).await.is_err(), "not its turn");
    }
    assert_eq!(*other.acquire(after(100)).await.unwrap(), 2);
    // A pool that is dropped while it waits is not either.
    let mut gone = Box::pin(async move { pool.acquire(None).await.map(drop) });
    assert!(at_once(gone.as_mut()).is_none());
    settle().await;
    drop(gone);
    drop(held);
    settle().await;
    let _both = (
        other.acquire(after(100)).await.unwrap(),
        other.acquire(after(100)).await.unwrap(),
    );
    assert_eq!(used(&budget), 100);
}

#[tokio::test(start_paused = true)]
async fn failures_hold_no_memory() {
    let budget = budget(10);
    let (failing, here) = (Numbers::costing(10), Numbers::costing(10));
    failing.fail(Failure::Error(ErrorKind::BootFailed), 1000);
    let failing = pool(&failing, Settings::new(1, 1), &budget);
    assert!(failing.filled().await.is_err());
    assert!(failing.acquire(None).await.is_err());
    let pool = pool(&here, Settings::new(0, 1), &budget);
    let member = pool.acquire(after(10_000)).await.unwrap();
    assert_eq!(used(&budget), 10);
    drop(member);
    failing.drain(None).await;
    pool.drain(None).await;
    assert_eq!(used(&budget), 0);
    // Nor do pools that are gone.
    assert!(format!("{budget:?}").contains("pools: 2"), "{budget:?}");
    drop((failing, pool));
    settle().await;
    assert!(format!("{budget:?}").contains("pools: 0"), "{budget:?}");
}
