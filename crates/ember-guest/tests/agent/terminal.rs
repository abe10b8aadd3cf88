//! Commands on a terminal.

use ember_guest::host::{Command, Process};
use ember_guest::protocol::{PtySize, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::common::{PATIENCE, TestAgent, output, sh, spawn};

const SIZE: PtySize = PtySize {
    rows: 33,
    columns: 111,
};

/// Reads the terminal until it has shown `wanted`.
async fn read_until(process: &mut Shown, wanted: &str) {
    let mut buffer = [0; 4096];
    while !process.text.contains(wanted) {
        let read = timeout(PATIENCE, process.stdout.read(&mut buffer)).await;
        let count = read
            .unwrap_or_else(|_| panic!("no {wanted:?} in {:?}", process.text))
            .unwrap();
        assert!(count > 0, "the end before {wanted:?}: {:?}", process.text);
        process
            .text
            .push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    process.text.clear();
}

struct Shown {
    stdout: ember_guest::host::ProcessOutput,
    text: String,
}

fn shown(process: &mut Process) -> Shown {
    Shown {
        stdout: process.take_stdout().unwrap(),
        text: String::new(),
    }
}

#[tokio::test]
async fn a_terminal_is_one() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let script = "tty; stty size; echo $TERM; echo error >&2; exit 7";
    let output = output(&agent, sh(script).pty(SIZE)).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{text}");
    assert_eq!(lines[1..], ["33 111", "xterm-256color", "error"]);
    assert_eq!(output.stderr, b"");
    assert_eq!(output.outcome.status, Status::Exited(7));
}

#[tokio::test]
async fn keys_and_sizes_reach_it() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let script = "trap 'stty size' WINCH; trap 'echo caught; exit 5' INT; echo ready; \
        while :; do sleep 0.01; done";
    let mut process = spawn(&agent, sh(script).pty(SIZE)).await;
    let mut screen = shown(&mut process);
    let mut keys = process.take_stdin().unwrap();
    read_until(&mut screen, "ready").await;
    process.resize(PtySize {
        rows: 5,
        columns: 6,
    });
    read_until(&mut screen, "5 6").await;
    keys.write_all(b"\x03").await.unwrap();
    read_until(&mut screen, "caught").await;
    assert_eq!(process.wait().await.unwrap().status, Status::Exited(5));
}

/// The end of standard input is typed, also in the middle of a line.
#[tokio::test]
async fn the_end_of_input_is_an_end_of_file() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    for typed in ["", "a line\n", "half a line"] {
        let mut process = spawn(&agent, sh("stty -echo; echo ready; cat").pty(SIZE)).await;
        let mut screen = shown(&mut process);
        let mut keys = process.take_stdin().unwrap();
        read_until(&mut screen, "ready\r\n").await;
        keys.write_all(typed.as_bytes()).await.unwrap();
        drop(keys);
        let mut rest = String::new();
        timeout(PATIENCE, screen.stdout.read_to_string(&mut rest))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(rest, typed.replace('\n', "\r\n"));
        assert!(process.wait().await.unwrap().success());
    }
}

#[tokio::test]
async fn a_shell_with_jobs_works() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mut process = spawn(
        &agent,
        Command::from_argv(["sh", "-i"]).env("PS1", "> ").pty(SIZE),
    )
    .await;
    let mut screen = shown(&mut process);
    let mut keys = process.take_stdin().unwrap();
    read_until(&mut screen, "> ").await;
    // Job control needs the controlling terminal: the job is a group of its own.
    keys.write_all(b"sleep 1000\n").await.unwrap();
    // It has the terminal before it becomes the program.
    let is_sleep = |pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
    };
    crate::common::eventually("the job runs", || {
        crate::common::children(process.pid())
            .into_iter()
            .any(is_sleep)
    })
    .await;
    keys.write_all(b"\x03").await.unwrap();
    keys.write_all(b"echo code $?\n").await.unwrap();
    read_until(&mut screen, "code 130").await;
    keys.write_all(b"exit 9\n").await.unwrap();
    assert_eq!(process.wait().await.unwrap().status, Status::Exited(9));
}

/// A lot of output through a terminal, and terminals come and go.
#[tokio::test]
async fn terminals_are_given_back() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    output(&agent, sh(":").pty(SIZE)).await;
    // Answered after the agent has cleaned up behind the command.
    agent.ping().await.unwrap();
    let before = std::fs::read_dir(format!("/proc/{}/fd", test.pid()))
        .unwrap()
        .count();
    for _ in 0..20 {
        let output = output(&agent, sh("seq 20000").pty(SIZE)).await;
        assert!(output.stdout.ends_with(b"\n19999\r\n20000\r\n"));
        assert!(output.outcome.success());
    }
    agent.ping().await.unwrap();
    let after = std::fs::read_dir(format!("/proc/{}/fd", test.pid()))
        .unwrap()
        .count();
    assert_eq!(before, after);
}
