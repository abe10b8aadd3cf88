//! Processes and programs that have to know of a new identity before anybody can use the guest.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ember_guest::host::{Command, Identity};
use ember_guest::protocol::ErrorCode;

use crate::common::{TestAgent, eventually, processes_with, sh, text, unique_sleep};
use crate::freezing::{Relay, freeze, refused};

/// A process that wants to be told.
struct Hook {
    stream: BufReader<UnixStream>,
}

impl Hook {
    fn connect(test: &TestAgent) -> Self {
        let stream = UnixStream::connect(test.identity("reseed")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// The number of the identity that it is told of.
    fn told(&mut self) -> u64 {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let number = line.strip_prefix("reseed ").unwrap();
        number.trim_end().parse().unwrap()
    }

    fn say(&mut self, line: &str) {
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
    }
}

fn identity() -> Identity {
    Identity::random().unwrap()
}

fn program(test: &TestAgent, name: &str, script: &str) {
    let directory = test.identity("reseed.d");
    let _ = fs::create_dir(&directory);
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// There is no identity before everybody has answered, and nothing can be run.
#[tokio::test(flavor = "multi_thread")]
async fn an_identity_waits_for_its_hooks() {
    let test = TestAgent::start();
    let (relay, parent) = Relay::new(&test).await;
    let (mut first, mut second) = (Hook::connect(&test), Hook::connect(&test));
    let gone = Hook::connect(&test);
    let trace = test.identity("trace");
    let script = format!("echo $WHO >> {}; sleep 0.1", trace.display());
    program(&test, "one", &script);
    program(&test, "two", &script);
    fs::write(test.identity("reseed.d").join("no program"), "x").unwrap();
    freeze(&parent).await;
    drop(gone);
    let clone = relay.cloned(&parent).await;
    let identified = tokio::spawn({
        let clone = clone.clone();
        async move { clone.identify(identity().env("WHO", "clone")).await }
    });
    let (number, again) = tokio::task::spawn_blocking(move || {
        let number = first.told();
        assert_eq!(second.told(), number);
        first.say(&format!("done {number}\n"));
        std::thread::sleep(Duration::from_millis(300));
        (number, (first, second))
    })
    .await
    .unwrap();
    assert!(!identified.is_finished(), "one has not answered");
    let (mut first, mut second) = again;
    // In pieces, and with something else before it.
    second.say("hello\ndone 999\ndo");
    second.say(&format!("ne {number}\n"));
    identified.await.unwrap().unwrap();
    assert_eq!(fs::read_to_string(&trace).unwrap(), "clone\nclone\n");
    assert_eq!(text(&clone, sh("echo well")).await, "well\n");

    // The next time it is asked again: what was said before is no answer.
    freeze(&clone).await;
    let next = relay.cloned(&clone).await;
    let identified = tokio::spawn({
        let next = next.clone();
        async move { next.identify(identity()).await }
    });
    tokio::task::spawn_blocking(move || {
        assert_eq!(first.told(), number + 1);
        second.told();
        first.say(&format!("done {number}\n"));
        second.say(&format!("done {}\n", number + 1));
        std::thread::sleep(Duration::from_millis(100));
        first.say(&format!("done {}\n", number + 1));
        (first, second)
    })
    .await
    .unwrap();
    identified.await.unwrap().unwrap();
    assert_eq!(text(&next, sh("echo well")).await, "well\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_does_not_answer_costs_the_identity() {
    let test = TestAgent::start();
    let (relay, parent) = Relay::new(&test).await;
    let silent = Hook::connect(&test);
    freeze(&parent).await;
    let clone = relay.cloned(&parent).await;
    let start = Instant::now();
    let (code, message) = refused(&clone.identify(identity()).await.unwrap_err());
    assert_eq!(code, ErrorCode::Identity);
    let expected = format!(
        "the process {} has not reseeded itself within 2s",
        std::process::id()
    );
    assert!(message.contains(&expected), "{message}");
    assert!(start.elapsed() >= Duration::from_secs(2));
    let error = clone.spawn(Command::new("true")).await.unwrap_err();
    assert_eq!(refused(&error).0, ErrorCode::Frozen);
    drop(silent);
    clone.identify(identity()).await.unwrap();
    assert_eq!(text(&clone, sh("echo well")).await, "well\n");
}

#[tokio::test]
async fn programs_that_fail_cost_the_identity() {
    let test = TestAgent::start();
    let (relay, parent) = Relay::new(&test).await;
    let mark = unique_sleep();
    for (script, expected) in [
        ("exit 3".to_owned(), "reseed.d/hook ended with exit code 3"),
        ("kill -9 $$".to_owned(), "reseed.d/hook ended with signal 9"),
        (
            format!("exec sleep {mark}"),
            "reseed.d/hook has not reseeded itself",
        ),
    ] {
        program(&test, "hook", &script);
        let (code, message) = refused(&parent.identify(identity()).await.unwrap_err());
        assert_eq!(code, ErrorCode::Identity);
        assert!(message.contains(expected), "{message}");
    }
    eventually("it is ended", || processes_with(&mark).is_empty()).await;
    // One that cannot even be started.
    fs::write(test.identity("reseed.d").join("hook"), "no program").unwrap();
    freeze(&parent).await;
    let clone = relay.cloned(&parent).await;
    let (code, message) = refused(&clone.identify(identity()).await.unwrap_err());
    assert_eq!(code, ErrorCode::Identity);
    assert!(message.contains("reseed.d/hook: "), "{message}");
    let error = clone.spawn(Command::new("true")).await.unwrap_err();
    assert_eq!(refused(&error).0, ErrorCode::Frozen);
}

/// Many that connect, and some that say too much.
#[tokio::test]
async fn hooks_cannot_hurt_the_agent() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let many: Vec<_> = (0..200).map(|_| Hook::connect(&test)).collect();
    agent.ping().await.unwrap();
    drop(many);
    let mut loud = Hook::connect(&test);
    let _ = loud.stream.get_mut().write_all(&vec![b'x'; 1 << 20]);
    agent.identify(identity()).await.unwrap();
    assert_eq!(text(&agent, sh("echo well")).await, "well\n");
    let peak = test.status_kib("VmHWM");
    assert!(peak < 8 * 1024, "{peak} KiB");
}
