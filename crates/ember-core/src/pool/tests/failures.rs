//! Members that cannot be made.

use super::*;

#[tokio::test(start_paused = true)]
async fn who_waits_is_not_told_of_a_failure_that_passes() {
    let numbers = Numbers::default();
    numbers.fail(Failure::Error(ErrorKind::BootFailed), 2);
    let mut settings = Settings::new(0, 4);
    settings.making = 1;
    let pool = numbers.pool(settings);
    assert_eq!(*pool.acquire(None).await.unwrap(), 1);
    let status = pool.status();
    assert_eq!((status.failed, status.made), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_are_told_when_there_is_no_hope_and_later_ones_are_served_again() {
    let numbers = Numbers::default();
    numbers.fail(Failure::Error(ErrorKind::BootFailed), 4);
    let mut settings = Settings::new(0, 8);
    settings.making = 1;
    let pool = numbers.pool(settings);
    let (first, second) = tokio::join!(pool.acquire(None), pool.acquire(None));
    for error in [first.unwrap_err(), second.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::BootFailed);
        assert_eq!(
            format!("{error:?}"),
            "cannot make a member for the pool\n  because: out of numbers\n  (BootFailed)"
        );
    }
    assert_eq!(pool.status().failed, 3);
    // Each failure from then on is told; a member that is made ends it.
    assert!(pool.acquire(None).await.is_err());
    assert_eq!(*pool.acquire(None).await.unwrap(), 1);
    numbers.fail(Failure::Error(ErrorKind::BootFailed), 1);
    assert_eq!(*pool.acquire(None).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_while_another_attempt_is_under_way() {
    let numbers = Numbers::default();
    let mut settings = Settings::new(0, 8);
    settings.making = 2;
    settings.failures = 1;
    let pool = numbers.pool(settings);
    numbers.fail(Failure::Error(ErrorKind::BootFailed), 1);
    let (first, second) = tokio::join!(pool.acquire(None), pool.acquire(None));
    assert_eq!(*first.unwrap(), 1);
    assert_eq!(*second.unwrap(), 2);
    // The first one of those has ended the failures: the next was begun at once.
    let attempts = numbers.lock().attempts.clone();
    assert!(attempts[2] - attempts[0] < MAKING * 2, "{attempts:?}");
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_good_is_told_at_once() {
    let numbers = Numbers::default();
    numbers.fail(Failure::Error(ErrorKind::HostUnsupported), 1);
    let pool = numbers.pool(Settings::new(1, 1));
    let error = pool.acquire(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnsupported);
    assert_eq!(pool.filled().await.unwrap_err().kind(), error.kind());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_during_failures_tells_of_them() {
    let numbers = Numbers::default();
    numbers.fail(Failure::Error(ErrorKind::BootFailed), 100);
    let pool = numbers.pool(Settings::new(0, 1));
    let error = pool.acquire(after(20)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BootFailed);
    let text = format!("{error:?}");
    assert!(
        text.contains("before the deadline") && text.contains("out of numbers"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_time_between_attempts_grows_to_its_limit() {
    let numbers = Numbers::default();
    numbers.fail(Failure::Error(ErrorKind::BootFailed), 7);
    let mut settings = Settings::new(1, 1);
    settings.retry_limit = Duration::from_secs(1);
    let pool = numbers.pool(settings);
    sleep(Duration::from_secs(30)).await;
    let attempts = numbers.lock().attempts.clone();
    let pauses: Vec<u128> = attempts
        .windows(2)
        .map(|pair| (pair[1] - pair[0] - MAKING).as_millis())
        .collect();
    // The timer's grain is a millisecond.
    let expected = [100, 200, 400, 800, 1000, 1000, 1000];
    assert_eq!(pauses.len(), expected.len());
    for (pause, expected) in pauses.iter().zip(expected) {
        assert!((expected..=expected + 2).contains(pause), "{pauses:?}");
    }
    assert_eq!(pool.status().ready, 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_panics_is_one_that_failed() {
    let numbers = Numbers::default();
    numbers.fail(Failure::Panic, 3);
    let mut settings = Settings::new(0, 4);
    settings.making = 1;
    let pool = numbers.pool(settings);
    let error = pool.acquire(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(*pool.acquire(None).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_panics_leaves_nobody_waiting_and_nothing_alive() {
    let numbers = Numbers::default();
    let pool = numbers.pool(Settings::new(2, 2));
    pool.filled().await.unwrap();
    let held = take(&pool);
    sleep(MAKING).await;
    numbers.lock().broken = true;
    sleep(Duration::from_secs(2)).await;
    numbers.lock().broken = false;
    let error = pool.acquire(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(numbers.alive(), 1);
    drop(held);
    assert_eq!(numbers.alive(), 0, "destroyed by who held it");
    assert_eq!(pool.drain(None).await, 0);
}
