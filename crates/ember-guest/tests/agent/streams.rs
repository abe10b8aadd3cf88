//! Standard input, output and error.

use std::time::Duration;

use ember_guest::host::{Command, Stdin};
use ember_guest::protocol::{Status, WINDOW};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::common::{PATIENCE, TestAgent, output, sh, spawn, text};

/// Bytes of every value, in an order that repeats late.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn outputs_are_apart_and_whole() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let output = output(&agent, sh("echo out; echo error >&2; printf 'no line end'")).await;
    assert_eq!(output.stdout, b"out\nno line end");
    assert_eq!(output.stderr, b"error\n");
    assert!(!output.truncated);
}

#[tokio::test]
async fn without_standard_input_it_is_at_its_end() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    assert_eq!(
        text(&agent, sh("cat; readlink /proc/self/fd/0")).await,
        "/dev/null\n"
    );
    assert!(spawn(&agent, sh(":")).await.take_stdin().is_none());
}

#[tokio::test]
async fn binary_input_comes_back_the_same() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let sent = noise(3_000_000);
    let mut process = spawn(&agent, Command::new("cat").stdin(Stdin::Piped)).await;
    let mut stdin = process.take_stdin().unwrap();
    let mut stdout = process.take_stdout().unwrap();
    let to_send = sent.clone();
    let writer = tokio::spawn(async move {
        for chunk in to_send.chunks(77_777) {
            stdin.write_all(chunk).await.unwrap();
        }
        stdin.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    timeout(PATIENCE, stdout.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    writer.await.unwrap();
    assert_eq!(back.len(), sent.len());
    assert!(back == sent);
    assert!(process.wait().await.unwrap().success());
}

/// What a command does not read makes the writer wait, with a bounded amount on the way, and
/// nobody else.
#[tokio::test]
async fn a_command_that_does_not_read_stops_its_writer_only() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mut process = spawn(&agent, sh("sleep 1000").stdin(Stdin::Piped)).await;
    let mut stdin = process.take_stdin().unwrap();
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_millis(300), stdin.write(&[0; 10_000])).await {
        sent += written.unwrap();
    }
    // A window, and what the pipe holds.
    assert!(
        sent >= WINDOW as usize && sent <= 2 * WINDOW as usize + 65_536,
        "{sent}"
    );
    assert_eq!(text(&agent, sh("echo well")).await, "well\n");
    agent.ping().await.unwrap();
    process.kill();
    assert_eq!(process.wait().await.unwrap().status, Status::Signaled(9));
    let error = stdin.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_command_that_closes_its_input_breaks_the_pipe() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mut process = spawn(&agent, sh("exec 0<&-; sleep 1000").stdin(Stdin::Piped)).await;
    let mut stdin = process.take_stdin().unwrap();
    let broken = async {
        loop {
            if let Err(error) = stdin.write(b"x").await {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let error = timeout(PATIENCE, broken).await.unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn an_output_that_is_dropped_is_a_broken_pipe() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mut process = spawn(&agent, Command::new("yes")).await;
    drop(process.take_stdout());
    let outcome = timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert_eq!(outcome.status, Status::Signaled(13));
}

/// Waiting alone is enough: what nobody takes does not keep a command from ending.
#[tokio::test]
async fn waiting_drops_what_was_not_taken() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let script = "cat; head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2; exit 3";
    let mut process = spawn(&agent, sh(script).stdin(Stdin::Piped)).await;
    let outcome = timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    assert_eq!(outcome.status, Status::Exited(3));
}

#[tokio::test]
async fn collected_output_is_bounded() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let process = spawn(&agent, sh("head -c 5000000 /dev/zero; echo error >&2")).await;
    let output = timeout(PATIENCE, process.output(1000))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.stdout, [0; 1000]);
    assert_eq!(output.stderr, b"error\n");
    assert!(output.truncated && output.outcome.success());
}

/// Readers that stop reading hold their own commands up and nobody else.
#[tokio::test]
async fn a_reader_that_stops_does_not_block_others() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        stalled.push(spawn(&agent, Command::new("yes")).await);
    }
    // Until they have all filled their windows and their pipes.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..20 {
        timeout(PATIENCE, agent.ping()).await.unwrap().unwrap();
    }
    let process = spawn(&agent, sh("head -c 20000000 /dev/zero; echo done >&2")).await;
    let output = timeout(PATIENCE, process.output(usize::MAX))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.stdout.len(), 20_000_000);
    assert_eq!(output.stderr, b"done\n");

    // And they go on where they stopped.
    for mut process in stalled {
        let mut stdout = process.take_stdout().unwrap();
        let mut bytes = vec![0; 2_000_000];
        timeout(PATIENCE, stdout.read_exact(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        assert!(bytes.chunks(2).all(|pair| pair == b"y\n"));
        process.kill();
        timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn many_at_once_do_not_mix() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let tasks: Vec<_> = (0..64)
        .map(|index| {
            let agent = agent.clone();
            tokio::spawn(async move {
                let script = format!("cat; echo {index} >&2; exit {index}");
                let mut process = spawn(&agent, sh(script).stdin(Stdin::Piped)).await;
                let mut stdin = process.take_stdin().unwrap();
                let sent = vec![index; 300_000];
                let to_send = sent.clone();
                let writer = tokio::spawn(async move {
                    stdin.write_all(&to_send).await.unwrap();
                });
                let output = process.output(usize::MAX).await.unwrap();
                writer.await.unwrap();
                assert_eq!(output.outcome.status, Status::Exited(index));
                assert_eq!(output.stderr, format!("{index}\n").as_bytes());
                assert!(output.stdout == sent);
            })
        })
        .collect();
    for task in tasks {
        timeout(PATIENCE, task).await.unwrap().unwrap();
    }
}

/// On a runtime of several threads, all of which use the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_from_many_threads() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let tasks: Vec<_> = (0..200)
        .map(|index| {
            let agent = agent.clone();
            tokio::spawn(async move {
                agent.ping().await.unwrap();
                let expected = format!("{index}\n");
                assert_eq!(
                    text(&agent, Command::from_argv(["echo", expected.trim()])).await,
                    expected
                );
            })
        })
        .collect();
    for task in tasks {
        timeout(PATIENCE, task).await.unwrap().unwrap();
    }
}
