//! The host's half of the guest channel, with an agent that says anything.
#![no_main]

use std::time::Duration;

use ember_guest::host::{Agent, Command};
use ember_guest::protocol::{Hello, Message};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncWriteExt, DuplexStream, copy, duplex, sink, split};
use tokio::time::timeout;

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let session = timeout(Duration::from_secs(5), session(data.to_vec()));
        session.await.expect("everything ends when the stream does");
    });
});

async fn session(data: Vec<u8>) {
    let (ours, theirs) = duplex(4096);
    tokio::spawn(agent(theirs, data));
    let Ok(agent) = Agent::connect(ours).await else {
        return;
    };
    let run = async |program: &str| {
        if let Ok(process) = agent.spawn(Command::new(program)).await {
            process.control().kill();
            if let Ok(output) = process.output(4096).await {
                assert!(output.stdout.len() <= 4096 && output.stderr.len() <= 4096);
            }
        }
    };
    tokio::join!(run("first"), run("second"), async {
        // Started, but nobody reads what it says.
        let process = agent.spawn(Command::new("third")).await;
        let _ = agent.ping().await;
        drop(process);
    });
    agent.closed().await;
}

/// The other end: says `data`, whatever it is told.
async fn agent(stream: DuplexStream, data: Vec<u8>) {
    let (mut read, mut write) = split(stream);
    tokio::spawn(async move { copy(&mut read, &mut sink()).await });
    for frame in frames(&data) {
        if write.write_all(&frame).await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

/// The first byte says whether the rest is sent as it is, or made into frames behind a good hello:
/// frames that are whole, of requests that exist, and mostly as long as they should be, for the rest
/// is soon refused.
fn frames(data: &[u8]) -> Vec<Vec<u8>> {
    const KINDS: [u8; 15] = [1, 2, 3, 4, 5, 6, 16, 17, 18, 19, 20, 21, 22, 23, 24];
    const REQUESTS: u8 = 5;
    const ANY_FLAGS: u8 = 0xFF;
    let Some((mode, mut rest)) = data.split_first() else {
        return Vec::new();
    };
    if mode & 1 == 0 {
        return vec![rest.to_vec()];
    }
    let mut hello = Vec::new();
    let greeting = Message::Hello(Hello::ours(u64::MAX));
    greeting.encode(0, &mut hello).unwrap();
    let mut frames = vec![hello];
    while let Some((&[kind, flags, request, len], behind)) = rest.split_first_chunk() {
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let (len, flags) = match (kind, flags) {
            (_, ANY_FLAGS) => (len, flags),
            (3 | 6, _) => (0, 0),
            (17, _) => (4, 0),
            (18, _) => (len, flags & 7),
            (19, _) => (5, 0),
            (20, _) => (1, 0),
            (24, _) => (35, 0),
            _ => (len, 0),
        };
        let (payload, behind) = behind.split_at(usize::from(len).min(behind.len()));
        let mut frame = u32::from(len).to_le_bytes().to_vec();
        frame.extend([kind, flags, 0, 0]);
        frame.extend(u32::from(request % REQUESTS + 1).to_le_bytes());
        frame.extend(payload);
        frame.resize(12 + usize::from(len), 0);
        frames.push(frame);
        rest = behind;
    }
    frames
}
