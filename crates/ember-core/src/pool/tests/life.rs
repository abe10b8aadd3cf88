//! A pool's beginning, its quiet times and its end.

use super::*;

#[test]
fn numbers_that_make_no_pool_are_refused() {
    for (change, part) in [
        (
            &(|s: &mut Settings| s.max = 0) as &dyn Fn(&mut Settings),
            "max must be 1",
        ),
        (&|s| s.ready = 5, "keep 5 members ready when 4"),
        (&|s| s.idle = 3, "cannot keep 3"),
        (&|s| s.making = 0, "being made"),
        (&|s| s.ending = 0, "being destroyed"),
        (&|s| s.examine_every = Duration::ZERO, "interval"),
        (&|s| s.retry_first = Duration::ZERO, "interval"),
    ] {
        let mut settings = Settings::new(2, 4);
        change(&mut settings);
        let error = Engine::start(Numbers::default(), settings, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = Engine::start(Numbers::default(), Settings::new(2, 4), None).unwrap_err();
    assert!(error.to_string().contains("runtime"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn members_that_nobody_asks_for_are_given_up_and_come_back_with_the_first_caller() {
    let numbers = Numbers::default();
    let mut settings = Settings::new(6, 6);
    settings.idle_after = Some(Duration::from_secs(10));
    settings.idle = 2;
    let pool = numbers.pool(settings);
    sleep(Duration::from_secs(9)).await;
    assert_eq!(pool.status().ready, 6);
    drop(take(&pool));
    sleep(Duration::from_secs(9)).await;
    assert_eq!(pool.status().ready, 6, "somebody asked since");
    sleep(Duration::from_millis(1100)).await;
    let status = pool.status();
    assert_eq!((status.ready, status.shrunk), (2, 4));
    assert_eq!(numbers.alive(), 2);
    // They are destroyed at the same time, on threads of their own.
    let mut discarded = numbers.lock().discarded[1..].to_vec();
    discarded.sort_unstable();
    assert_eq!(discarded, [1, 2, 3, 4], "the oldest go");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(pool.status().ready, 2);

    let member = take(&pool);
    assert_eq!(*member, 7);
    sleep(Duration::from_secs(1)).await;
    let status = pool.status();
    assert_eq!((status.ready, status.busy), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn draining_refuses_callers_destroys_what_is_ready_and_waits_for_the_rest() {
    let numbers = Numbers::default();
    let pool = Arc::new(numbers.pool(Settings::new(2, 4)));
    pool.filled().await.unwrap();
    let held = [take(&pool), take(&pool)];
    settle().await;
    let (third, fourth) = (pool.acquire(None), pool.acquire(None));
    let (third, fourth) = tokio::join!(third, fourth);
    let (third, fourth) = (third.unwrap(), fourth.unwrap());
    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.acquire(None).await.map(drop) }
    });
    settle().await;
    assert_eq!(pool.status().waiting, 1);

    assert_eq!(pool.drain(after(100)).await, 4);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(
        pool.acquire(None).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(pool.filled().await.unwrap_err().kind(), ErrorKind::Closed);

    drop((third, fourth));
    let drained = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.drain(None).await }
    });
    sleep(Duration::from_secs(1)).await;
    assert!(!drained.is_finished());
    drop(held);
    assert_eq!(drained.await.unwrap(), 0);
    assert_eq!(numbers.alive(), 0);
    let status = pool.status();
    assert_eq!(status.made, status.ended);
}

#[tokio::test(start_paused = true)]
async fn what_is_being_made_when_a_pool_is_drained_is_destroyed_too() {
    let numbers = Numbers::default();
    let pool = numbers.pool(Settings::new(4, 4));
    settle().await;
    assert_eq!(pool.status().making, 4);
    assert_eq!(pool.drain(None).await, 0);
    let counted = numbers.lock();
    assert_eq!((counted.last, counted.alive.len()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_takes_everything_with_it_but_what_is_handed_out() {
    let numbers = Numbers::default();
    let pool = numbers.pool(Settings::new(3, 4));
    pool.filled().await.unwrap();
    let held = take(&pool);
    settle().await;
    drop(pool);
    sleep(MAKING * 2).await;
    assert_eq!(*held, 3);
    assert_eq!(numbers.alive(), 1);
    drop(held);
    settle().await;
    assert_eq!(numbers.alive(), 0);
    assert_eq!(Arc::strong_count(&numbers.counted), 1, "the keeper is gone");
}

#[test]
fn a_runtime_that_ends_takes_everything_with_it_but_what_is_handed_out() {
    let numbers = Numbers::default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (pool, held) = runtime.block_on(async {
        let pool = numbers.pool(Settings::new(3, 8));
        pool.filled().await.unwrap();
        let held = take(&pool);
        (pool, held)
    });
    drop(runtime);
    assert_eq!(numbers.alive(), 1);
    drop(held);
    assert_eq!(numbers.alive(), 0);
    let error = at_once(pool.acquire(None)).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    drop(pool);
    assert_eq!(Arc::strong_count(&numbers.counted), 1);
}

#[tokio::test(start_paused = true)]
#[allow(
    clippy::await_holding_lock,
    reason = "only the threads that destroy wait for it"
)]
async fn destroying_holds_back_making_only_when_there_is_too_much_of_it() {
    let numbers = Numbers::default();
    let mut settings = Settings::new(0, 4);
    settings.ending = 2;
    let pool = numbers.pool(settings);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pool.acquire(None).await.unwrap());
    }
    let destroying = numbers.destroying.lock().unwrap();
    held.truncate(3);
    let fifth = pool.acquire(None);
    tokio::pin!(fifth);
    assert!(at_once(fifth.as_mut()).is_none());
    tokio::task::yield_now().await;
    assert_eq!(pool.status().making, 1, "one that ends has no place");
    held.clear();
    let sixth = pool.acquire(None);
    tokio::pin!(sixth);
    assert!(at_once(sixth.as_mut()).is_none());
    tokio::task::yield_now().await;
    let status = pool.status();
    assert_eq!((status.ending, status.making), (4, 1));
    drop(destroying);
    let (fifth, sixth) = tokio::join!(fifth, sixth);
    assert_eq!((*fifth.unwrap(), *sixth.unwrap()), (5, 6));
}
