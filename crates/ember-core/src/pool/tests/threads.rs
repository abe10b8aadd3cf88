//! Many threads at once, in real time.

use super::*;
use crate::pool::Budget;
use crate::size::ByteSize;

#[test]
fn nothing_is_lost_between_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let numbers = [Numbers::costing(1), Numbers::costing(2)];
    for supply in &numbers {
        supply.lock().making = Some(Duration::ZERO);
    }
    let budget = Budget::new(ByteSize::bytes(12));
    let mut settings = Settings::new(3, 6);
    settings.waiting = 1000;
    let pools: Vec<_> = runtime.block_on(async {
        let start =
            |supply: &Numbers| Engine::start(supply.clone(), settings.clone(), Some(&budget));
        numbers
            .iter()
            .map(|supply| Arc::new(start(supply).unwrap()))
            .collect()
    });
    let callers: Vec<_> = (0..16_usize)
        .map(|caller| {
            let pool = Arc::clone(&pools[caller % 2]);
            runtime.spawn(async move {
                for turn in 0..300_u64 {
                    // Some callers' patience ends just when they are served.
                    let patience = Duration::from_micros(turn % 7 * 300);
                    let member = if turn % 3 == 0 {
                        tokio::time::timeout(patience, pool.acquire(None))
                            .await
                            .ok()
                    } else {
                        Some(pool.acquire(None).await)
                    };
                    tokio::task::yield_now().await;
                    drop(member);
                }
            })
        })
        .collect();
    runtime.block_on(async {
        for caller in callers {
            caller.await.unwrap();
        }
        for pool in &pools {
            assert_eq!(pool.drain(None).await, 0);
        }
    });
    for (supply, pool) in numbers.iter().zip(&pools) {
        let status = pool.status();
        assert_eq!(status.made, status.ended);
        let counted = supply.lock();
        assert!(counted.alive.is_empty());
        assert!(counted.most_under_way <= settings.making);
    }
    assert_eq!(budget.used().as_bytes(), 0);
}
