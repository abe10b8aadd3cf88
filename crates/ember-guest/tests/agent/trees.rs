//! A command and everything it has started: what ends it, and that nothing is left.

use std::task::Poll;
use std::time::{Duration, Instant};

use ember_guest::host::Command;
use ember_guest::protocol::{FEATURE_CGROUP, Status};
use tokio::time::timeout;

use crate::common::{
    PATIENCE, TestAgent, a_while, eventually, output, processes_with, sh, spawn, text, unique_sleep,
};

/// Sleeps in all the ways in which a child can get away: in the background, in a session of its
/// own, orphaned, both.
fn escape_artists(mark: &str) -> String {
    format!(
        "sleep {mark} & setsid sleep {mark} & (sleep {mark} &) ; (setsid sleep {mark} &) ; \
         (setsid sh -c 'setsid sleep {mark} & sleep {mark}' &) ; "
    )
}

/// How many processes those are; the shells that hold the mark in their command line come and go.
const ARTISTS: usize = 6;

fn sleeping(mark: &str) -> usize {
    let is_sleep = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
    };
    processes_with(mark)
        .iter()
        .filter(|pid| is_sleep(pid))
        .count()
}

#[tokio::test]
async fn the_agent_says_what_it_can_do() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let has_cgroups = agent.hello().features & FEATURE_CGROUP != 0;
        assert_eq!(has_cgroups, test.name() == "with cgroups");
    }
}

#[tokio::test]
async fn a_double_fork_leaves_no_zombie() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        for _ in 0..20 {
            // The grandchild outlives its parent, and is the agent's to bury.
            let script = "(sh -c 'sleep 0.05; exit 3' >/dev/null 2>&1 &) ; echo gone";
            assert_eq!(text(&agent, sh(script)).await, "gone\n");
        }
        eventually("no child is left", || test.children().is_empty()).await;
    }
}

#[tokio::test]
async fn a_timeout_ends_the_whole_tree() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let mark = unique_sleep();
        let script = format!("{} sleep {mark}", escape_artists(&mark));
        let time = a_while(&agent).await;
        let start = Instant::now();
        let process = spawn(&agent, sh(script).timeout(time)).await;
        eventually("all run", || sleeping(&mark) == ARTISTS + 1).await;
        let outcome = timeout(PATIENCE, process.output(0))
            .await
            .unwrap()
            .unwrap()
            .outcome;
        assert!(outcome.timed_out(), "{outcome:?}");
        assert_eq!(outcome.status, Status::Signaled(9));
        assert!(!outcome.success());
        assert!(start.elapsed() >= time);
        eventually("all are gone", || processes_with(&mark).is_empty()).await;
        eventually("no child is left", || test.children().is_empty()).await;
    }
}

/// The output is still open, so the command is not over until its timeout.
#[tokio::test]
async fn a_child_that_holds_the_output_is_ended_by_the_timeout() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let mark = unique_sleep();
        let command = sh(format!("sleep {mark} & echo out; exit 4"));
        let result = output(&agent, command.timeout(a_while(&agent).await)).await;
        assert_eq!(result.stdout, b"out\n");
        assert_eq!(
            result.outcome.status,
            Status::Exited(4),
            "the command's own end"
        );
        assert!(result.outcome.timed_out());
        eventually("the child is gone", || processes_with(&mark).is_empty()).await;
    }
}

/// A daemon lets go of everything. The command is over, and its timeout still holds.
#[tokio::test]
async fn a_daemon_is_ended_by_the_timeout_of_its_command() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let mark = unique_sleep();
        let script = format!("(setsid sleep {mark} </dev/null >/dev/null 2>&1 &) ; echo started");
        let time = a_while(&agent).await * 2;
        let start = Instant::now();
        let result = output(&agent, sh(script).timeout(time)).await;
        assert!(result.outcome.success(), "{:?}", result.outcome);
        assert!(start.elapsed() < time, "not waited for");
        eventually("the daemon runs", || sleeping(&mark) == 1).await;
        eventually("the daemon is gone", || processes_with(&mark).is_empty()).await;
        assert!(start.elapsed() >= time, "not before its time");
        eventually("no child is left", || test.children().is_empty()).await;
    }
}

/// Without a timeout it lives as long as the connection.
#[tokio::test]
async fn a_daemon_is_ended_with_the_connection() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let mark = unique_sleep();
        let script = format!("(setsid sleep {mark} </dev/null >/dev/null 2>&1 &) ; :");
        assert!(output(&agent, sh(script)).await.outcome.success());
        for _ in 0..10 {
            text(&agent, Command::new("true")).await;
        }
        eventually("the daemon runs", || sleeping(&mark) == 1).await;
        drop(agent);
        eventually("the daemon is gone", || processes_with(&mark).is_empty()).await;
    }
}

#[tokio::test]
async fn killing_ends_the_whole_tree() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let mark = unique_sleep();
        let mut process = spawn(
            &agent,
            sh(format!("{} sleep {mark}", escape_artists(&mark))),
        )
        .await;
        eventually("all run", || sleeping(&mark) == ARTISTS + 1).await;
        process.control().kill();
        let outcome = timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
        assert_eq!(outcome.status, Status::Signaled(9));
        assert!(!outcome.timed_out());
        eventually("all are gone", || processes_with(&mark).is_empty()).await;
    }
}

#[tokio::test]
async fn dropping_a_process_ends_it() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mark = unique_sleep();
    let process = spawn(&agent, sh(format!("sleep {mark} & sleep {mark}"))).await;
    eventually("it runs", || sleeping(&mark) == 2).await;
    drop(process);
    eventually("it is gone", || processes_with(&mark).is_empty()).await;
    agent.ping().await.unwrap();
}

/// A future that is dropped before the agent has answered.
#[tokio::test]
async fn dropping_a_spawn_ends_what_it_started() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mark = unique_sleep();
    {
        let mut spawn = std::pin::pin!(agent.spawn(Command::from_argv(["sleep", &mark])));
        // Polled once, so that the request is on its way, and never again.
        let once = std::future::poll_fn(|context| Poll::Ready(spawn.as_mut().poll(context)));
        assert!(once.await.is_pending());
    }
    agent.ping().await.unwrap();
    eventually("it is gone", || processes_with(&mark).is_empty()).await;
}

#[tokio::test]
async fn a_connection_that_drops_ends_its_commands() {
    for test in TestAgent::every_kind() {
        let mark = unique_sleep();
        for _ in 0..3 {
            let agent = test.connect().await;
            let mut process = spawn(
                &agent,
                sh(format!("{} sleep {mark}", escape_artists(&mark))),
            )
            .await;
            let stdout = process.take_stdout();
            eventually("all run", || sleeping(&mark) == ARTISTS + 1).await;
            // Every handle holds the connection.
            drop(agent);
            drop(process);
            drop(stdout);
            eventually("all are gone", || processes_with(&mark).is_empty()).await;
        }
        // And the next connection finds the agent as the first did.
        let agent = test.connect().await;
        assert_eq!(text(&agent, sh("echo well")).await, "well\n");
        assert!(test.children().is_empty());
    }
}

/// The timeout is for the command, not for whoever reads its output.
#[tokio::test]
async fn a_slow_reader_has_not_timed_out() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let time = a_while(&agent).await;
        let command = sh("head -c 290000 /dev/zero").timeout(time);
        let process = spawn(&agent, command).await;
        tokio::time::sleep(time + Duration::from_millis(300)).await;
        let output = timeout(PATIENCE, process.output(usize::MAX))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(output.stdout.len(), 290_000);
        assert_eq!(output.outcome.status, Status::Exited(0));
        assert!(
            !output.outcome.timed_out(),
            "{} {:?}",
            test.name(),
            output.outcome
        );
    }
}

/// A reader that has stopped does not keep a timeout from being told.
#[tokio::test]
async fn a_timeout_is_told_while_nobody_reads() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let mut process = spawn(&agent, Command::new("yes").timeout(a_while(&agent).await)).await;
        let mut stdout = process.take_stdout().unwrap();
        let outcome = timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
        assert!(outcome.timed_out());
        // What had been written by then is still there to be read, and has an end.
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stdout, &mut rest);
        timeout(PATIENCE, read).await.unwrap().unwrap();
        assert!(rest.len() >= 256 * 1024);
    }
}

/// Many that are started, time out and are buried at the same time.
#[tokio::test]
async fn many_timeouts_at_once() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let mark = unique_sleep();
        let mut processes = Vec::new();
        for _ in 0..50 {
            let command = sh(format!("setsid sleep {mark} & sleep {mark}"));
            processes.push(spawn(&agent, command.timeout(Duration::from_millis(100))).await);
        }
        for mut process in processes {
            let outcome = timeout(PATIENCE, process.wait()).await.unwrap().unwrap();
            assert!(outcome.timed_out());
        }
        eventually("all are gone", || processes_with(&mark).is_empty()).await;
        eventually("no child is left", || test.children().is_empty()).await;
    }
}

/// As the first process of a PID namespace, orphans are the kernel's to hand over.
#[tokio::test]
async fn as_pid_1_it_buries_everybody() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("not tested as PID 1: that takes root");
        return;
    }
    let test = TestAgent::start_with(None, &["unshare", "--pid", "--fork", "--kill-child"]);
    let init = test.children();
    let agent = test.connect().await;
    for _ in 0..20 {
        text(
            &agent,
            sh("(setsid sh -c 'sleep 0.02' >/dev/null 2>&1 &) ; :"),
        )
        .await;
    }
    eventually("no child is left", || {
        crate::common::children(init[0]).is_empty()
    })
    .await;
    agent.power_off().await.unwrap();
}
