//! Asking for a member.

use super::*;

#[tokio::test(start_paused = true)]
async fn ready_members_are_handed_out_without_waiting_and_replaced() {
    let numbers = Numbers::default();
    let pool = numbers.pool(Settings::new(3, 10));
    pool.filled().await.unwrap();
    let first = take(&pool);
    let second = take(&pool);
    // What ran last is warm.
    assert_eq!((*first, *second), (3, 2));
    let status = pool.status();
    assert_eq!((status.ready, status.busy), (1, 2));
    pool.filled().await.unwrap();
    let status = pool.status();
    assert_eq!((status.ready, status.busy, status.made), (3, 2, 5));
    drop(first);
    settle().await;
    let status = pool.status();
    assert_eq!((status.busy, status.ended, status.ready), (1, 1, 3));
    assert_eq!(numbers.lock().discarded, [3], "never given out again");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_in_the_order_of_asking() {
    let numbers = Numbers::default();
    let pool = Arc::new(numbers.pool(Settings::new(0, 1)));
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut callers = Vec::new();
    for caller in 0..5 {
        let (pool, order) = (Arc::clone(&pool), Arc::clone(&order));
        callers.push(tokio::spawn(async move {
            let member = pool.acquire(None).await.unwrap();
            order.lock().unwrap().push((caller, *member));
            sleep(Duration::from_millis(5)).await;
        }));
        settle().await;
    }
    assert_eq!(pool.status().waiting, 5);
    for caller in callers {
        caller.await.unwrap();
    }
    let order = order.lock().unwrap();
    assert_eq!(*order, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]);
    assert_eq!(numbers.lock().most_alive, 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_waiting_and_says_what_was_in_the_way() {
    let numbers = Numbers::default();
    let pool = numbers.pool(Settings::new(0, 1));
    let begun = Instant::now();
    let error = pool.acquire(after(5)).await.unwrap_err();
    assert_eq!(begun.elapsed().as_millis(), 5);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("1 are being made"), "{error}");

    let member = pool.acquire(after(15)).await.unwrap();
    let error = pool.acquire(after(50)).await.unwrap_err();
    assert!(
        error.to_string().contains("all 1 that may be alive"),
        "{error}"
    );
    let status = pool.status();
    assert_eq!((status.waiting, status.expired), (0, 2));
    drop(member);
    // A member that comes late is kept for the next, even one whose deadline is over.
    let begun = Instant::now();
    assert!(pool.acquire(after(5)).await.is_err());
    sleep(MAKING).await;
    assert_eq!(pool.status().ready, 1);
    assert_eq!(*pool.acquire(Some(begun)).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_caller_too_many_is_refused_at_once() {
    let numbers = Numbers::default();
    let mut settings = Settings::new(0, 1);
    settings.waiting = 2;
    let pool = numbers.pool(settings);
    let first = pool.acquire(None);
    let second = pool.acquire(None);
    tokio::pin!(first, second);
    assert!(at_once(first.as_mut()).is_none());
    assert!(at_once(second.as_mut()).is_none());
    let error = at_once(pool.acquire(None)).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("2 callers wait"), "{error}");
    assert_eq!(pool.status().refused, 1);
    let member = first.await.unwrap();
    assert_eq!(*member, 1);
    drop(member);
    assert_eq!(*second.await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_gone_leaves_the_queue_and_its_member_to_the_next() {
    let numbers = Numbers::default();
    let mut settings = Settings::new(0, 1);
    settings.making = 1;
    let pool = numbers.pool(settings);
    let mut first = Box::pin(pool.acquire(None));
    let mut second = Box::pin(pool.acquire(None));
    let mut third = Box::pin(pool.acquire(None));
    for waiting in [&mut first, &mut second, &mut third] {
        assert!(at_once(waiting.as_mut()).is_none());
    }
    // Gone while it waits.
    drop(second);
    assert_eq!(pool.status().waiting, 2);
    // Gone when it has been given a member and does not know yet.
    sleep(MAKING * 2).await;
    let status = pool.status();
    assert_eq!((status.waiting, status.busy), (1, 1));
    drop(first);
    let status = pool.status();
    assert_eq!((status.waiting, status.busy, status.ended), (0, 1, 0));
    assert_eq!(*at_once(third).unwrap().unwrap(), 1);
    // Gone in that way with nobody behind it.
    settle().await;
    let mut fourth = Box::pin(pool.acquire(None));
    assert!(at_once(fourth.as_mut()).is_none());
    sleep(MAKING * 2).await;
    drop(fourth);
    let status = pool.status();
    assert_eq!((status.ready, status.busy, status.made), (1, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_died_is_not_handed_out() {
    let numbers = Numbers::default();
    let mut settings = Settings::new(3, 3);
    settings.examine_every = Duration::from_secs(60);
    let pool = numbers.pool(settings);
    pool.filled().await.unwrap();
    numbers.kill(3);
    numbers.kill(2);
    assert_eq!(*take(&pool), 1);
    let status = pool.status();
    assert_eq!((status.unhealthy, status.ready), (2, 0));
    // All dead: who asks waits for a new one.
    pool.filled().await.unwrap();
    let last = numbers.lock().last;
    (0..=last).for_each(|number| numbers.kill(number));
    assert_eq!(*pool.acquire(None).await.unwrap(), last + 1);
}

#[tokio::test(start_paused = true)]
async fn members_that_died_are_found_and_replaced_while_nobody_asks() {
    let numbers = Numbers::default();
    let pool = numbers.pool(Settings::new(40, 40));
    pool.filled().await.unwrap();
    for number in [1, 2, 17, 18, 39, 40] {
        numbers.kill(number);
    }
    sleep(Duration::from_millis(2500)).await;
    let status = pool.status();
    assert_eq!((status.unhealthy, status.ready), (6, 40));
    assert_eq!(
        numbers.lock().discarded.iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([&1, &2, &17, &18, &39, &40])
    );
}

#[tokio::test(start_paused = true)]
async fn a_member_can_become_the_callers_own() {
    let numbers = Numbers::default();
    let pool = numbers.pool(Settings::new(1, 1));
    pool.filled().await.unwrap();
    let mut member = take(&pool);
    *member += 100;
    assert_eq!(member.into_inner(), 101);
    pool.filled().await.unwrap();
    let status = pool.status();
    assert_eq!((status.taken, status.busy, status.ready), (1, 0, 1));
    assert_eq!(numbers.lock().discarded, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn neither_more_are_alive_nor_more_made_at_once_than_allowed() {
    let numbers = Numbers::default();
    let mut settings = Settings::new(5, 8);
    settings.making = 3;
    settings.waiting = 100;
    let pool = Arc::new(numbers.pool(settings));
    let callers = (0..50).map(|_| {
        let pool = Arc::clone(&pool);
        tokio::spawn(async move {
            let _member = pool.acquire(None).await.unwrap();
            sleep(Duration::from_millis(70)).await;
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    let counted = numbers.lock();
    assert_eq!(counted.most_under_way, 3);
    assert_eq!(counted.most_alive, 8);
}
