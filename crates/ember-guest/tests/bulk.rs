//! 100 MB each way, intact, and without more memory on either side than the windows need. A
//! program of its own, so that its memory is nobody else's.
#![cfg(all(feature = "host", feature = "embed"))]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test"
)]

#[path = "agent/common.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod common;

use std::time::{Duration, Instant};

use ember_guest::host::{Command, Stdin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use common::{TestAgent, spawn, status_kib};

const BLOCK: usize = 50_000;
const BLOCKS: usize = 2_000;

/// One test: what the second leaves in this process's memory would be counted for the first.
#[tokio::test]
async fn memory_is_bounded() {
    a_hundred_megabytes_arrive_intact().await;
    slow_readers_cost_the_agent_nothing().await;
}

/// The blocks of which no two are the same, and which do not repeat within themselves.
struct Blocks {
    block: Vec<u8>,
    number: usize,
}

impl Blocks {
    fn new() -> Self {
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        Self {
            block: (0..BLOCK).map(|_| random()).collect(),
            number: 0,
        }
    }

    fn next(&mut self) -> &[u8] {
        let place = self.number * 19 % (BLOCK - 8);
        self.block[place..place + 8].copy_from_slice(&self.number.to_le_bytes());
        self.number += 1;
        &self.block
    }
}

/// 100 MB through `cat`, in and out.
async fn a_hundred_megabytes_arrive_intact() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let before = status_kib(std::process::id(), "VmHWM");

    let start = Instant::now();
    let mut process = spawn(&agent, Command::new("cat").stdin(Stdin::Piped)).await;
    let mut stdin = process.take_stdin().unwrap();
    let mut stdout = process.take_stdout().unwrap();
    let writer = tokio::spawn(async move {
        let mut blocks = Blocks::new();
        for _ in 0..BLOCKS {
            stdin.write_all(blocks.next()).await.unwrap();
        }
    });
    let mut blocks = Blocks::new();
    let mut block = vec![0; BLOCK];
    for number in 0..BLOCKS {
        stdout.read_exact(&mut block).await.unwrap();
        assert!(
            block == blocks.next(),
            "block {number} is not what was sent"
        );
    }
    assert_eq!(
        stdout.read(&mut block).await.unwrap(),
        0,
        "more than was sent"
    );
    writer.await.unwrap();
    assert!(process.wait().await.unwrap().success());

    let here = status_kib(std::process::id(), "VmHWM") - before;
    let there = test.status_kib("VmHWM");
    eprintln!(
        "{:?}; host grew by {here} KiB, agent's peak {there} KiB",
        start.elapsed()
    );
    assert!(here < 4 * 1024, "the host's memory grew by {here} KiB");
    assert!(there < 4 * 1024, "the agent's memory grew to {there} KiB");
}

/// Commands that write as fast as they can, to readers that do not: the agent holds what its own
/// buffer holds, however many they are. The rest waits in the windows, and those are the host's.
async fn slow_readers_cost_the_agent_nothing() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mut processes = Vec::new();
    for _ in 0..32 {
        processes.push(spawn(&agent, Command::new("yes")).await);
    }
    for process in &mut processes {
        let mut stdout = process.take_stdout().unwrap();
        let mut buffer = vec![0; 800_000];
        stdout.read_exact(&mut buffer).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let there = test.status_kib("VmHWM");
    assert!(there < 4 * 1024, "the agent's memory grew to {there} KiB");
}
