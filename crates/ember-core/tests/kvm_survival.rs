//! What a guest has going goes on in its clones, at the right time, and in generations of them.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{runtime, template};
use ember_core::{Code, Command, ForkOptions, Sandbox};
use tokio::io::AsyncReadExt;

/// How far a clone's clock may be from the host's, besides what an answer takes on this machine.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(5);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Asks `survivor.py` whether all it holds still works.
async fn all_is_well(sandbox: &Sandbox, who: &str) {
    let ask = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/tmp/asked')\n\
               print(s.recv(1 << 16).decode())";
    let output = sandbox.run(Code::python(ask)).await.unwrap();
    assert_eq!(output.stdout, "all is well\n", "{who}: {output:?}");
}

#[test]
fn what_a_guest_has_going_goes_on_in_its_clones() {
    runtime().block_on(async {
        let template = template("python").vcpus(2).build().await.unwrap();
        let parent = template.fork().await.unwrap();
        let mut survivor = parent
            .start(Code::python(include_str!("common/survivor.py")))
            .await
            .unwrap();
        let mut ready = [0; 6];
        let mut stdout = survivor.take_stdout().unwrap();
        stdout.read_exact(&mut ready).await.unwrap();
        assert_eq!(&ready, b"ready\n");

        let snapshot = parent.snapshot().await.unwrap();
        // The guest at rest does not see this time pass.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let clone = snapshot.fork().await.unwrap();
        let grandchild = clone.fork().await.unwrap();
        for (sandbox, who) in [
            (&parent, "the guest itself"),
            (&clone, "its clone"),
            (&grandchild, "the clone's clone"),
        ] {
            all_is_well(sandbox, who).await;
        }
        // None of that has changed what they were made from.
        snapshot.verify().await.unwrap();
        template.verify().await.unwrap();
        let another = snapshot.fork().await.unwrap();
        all_is_well(&another, "a clone made later").await;
    });
}

/// How far the sandbox's wall clock is ahead of or behind the host's, at least.
async fn clock_error(sandbox: &Sandbox) -> Duration {
    let ask = Command::from_argv(["date", "+%s.%N"]);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = now();
    let output = sandbox.exec(ask).await.unwrap();
    let after = now();
    let text = output.stdout.to_string_lossy().into_owned();
    let (seconds, nanoseconds) = text.trim().split_once('.').unwrap();
    let guests = Duration::new(seconds.parse().unwrap(), nanoseconds.parse().unwrap());
    before
        .saturating_sub(guests)
        .max(guests.saturating_sub(after))
}

#[test]
fn the_wall_clock_is_right_after_a_day_of_rest() {
    runtime().block_on(async {
        let yesterday = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - DAY;
        // To the guest it is the same whether it rests for a day or its clock is a day behind when it
        // is saved.
        let set = Command::from_argv(["date", "-s", &format!("@{}", yesterday.as_secs())]);
        let template = template("bash").prepare(set).cached(false);
        let template = template.build().await.unwrap();
        for _ in 0..3 {
            let clone = template.fork().await.unwrap();
            let tolerance = CLOCK_TOLERANCE + clone.ping().await.unwrap();
            let error = clock_error(&clone).await;
            println!("{error:?} wrong, of at most {tolerance:?}");
            assert!(error <= tolerance, "{error:?} wrong");
            let clone = clone.fork().await.unwrap();
            let tolerance = CLOCK_TOLERANCE + clone.ping().await.unwrap();
            let error = clock_error(&clone).await;
            println!("{error:?} wrong after a live fork, of at most {tolerance:?}");
            assert!(error <= tolerance, "{error:?} wrong after a live fork");
        }
        // And it is what the caller says it is.
        let tomorrow = ForkOptions::new().realtime(SystemTime::now() + DAY);
        let clone = template.fork_with(tomorrow).await.unwrap();
        let error = clock_error(&clone).await;
        let off = error.abs_diff(DAY);
        assert!(off < Duration::from_secs(30), "{error:?} ahead");
    });
}

#[test]
fn ten_generations_remember_all_that_went_before() {
    runtime().block_on(async {
        let template = template("bash").build().await.unwrap();
        let mut last = template.fork().await.unwrap();
        for generation in 1..=10 {
            let write = format!("echo {generation} >> /tmp/generations");
            let options = ForkOptions::new().env("GENERATION", generation.to_string());
            let next = last.fork_with(options).await.unwrap();
            let written = next.exec(Command::from_argv(["sh", "-c", &write])).await;
            assert!(written.unwrap().success());
            last.close().await;
            last = next;
        }
        let show = "cat /tmp/generations | tr '\\n' ' '; echo $GENERATION";
        let output = last.exec(Command::from_argv(["sh", "-c", show])).await;
        assert_eq!(output.unwrap().stdout, "1 2 3 4 5 6 7 8 9 10 10\n");
    });
}
