//! Sandboxes in worker processes: the same as in this one, and what is different about them.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use common::runtime;
use ember_core::{
    ByteSize, Code, Command, ErrorKind, ForkOptions, Image, Kernel, Placement, Pool, Sandbox,
    SandboxBuilder, TemplateBuilder,
};
use ember_leak::LeakGate;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

fn builder() -> SandboxBuilder {
    Sandbox::builder(Image::pack("python"))
        .kernel(Kernel::tuned())
        .memory(ByteSize::mib(192))
        .placement(Placement::Worker)
}

fn template() -> TemplateBuilder {
    common::template("python").placement(Placement::Worker)
}

/// The worker processes of the process `parent` that have a VM.
fn busy_workers_of(parent: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        let Some(stat) = fs::read_to_string(path.join("stat")).ok() else {
            continue;
        };
        let (before, after) = stat.rsplit_once(')').unwrap();
        let Some((id, "ember-worker")) = before.split_once(" (") else {
            continue;
        };
        // proc_pid_stat(5): the state, the parent; the number of threads is the 20th field.
        let fields: Vec<&str> = after.split_whitespace().collect();
        if fields[1] == parent.to_string() && fields[17] != "1" {
            found.insert(id.parse().unwrap());
        }
    }
    found
}

fn busy_workers() -> BTreeSet<u32> {
    busy_workers_of(std::process::id())
}

fn kill(id: u32) {
    let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

async fn says(sandbox: &Sandbox, words: &[&str], expected: &str) {
    let out = sandbox
        .exec(Command::from_argv(words.iter().copied()))
        .await
        .unwrap();
    assert_eq!(out.stdout, expected, "{out:?}");
}

#[test]
fn a_guest_boots_in_a_worker_and_its_end_is_told() {
    runtime().block_on(async {
        let sandbox = builder().vcpus(2).boot().await.unwrap();
        let workers = busy_workers();
        assert_eq!(workers.len(), 1);
        let out = sandbox
            .run(Code::python("import os; print(6 * 7, os.cpu_count())"))
            .await
            .unwrap();
        assert_eq!(out.stdout, "42 2\n");

        sandbox.pause().await.unwrap();
        let late = tokio::time::timeout(Duration::from_millis(300), sandbox.ping()).await;
        assert!(late.is_err(), "a guest that is paused has answered");
        sandbox.resume().await.unwrap();
        sandbox.ping().await.unwrap();

        // What it says on its console is known here when it dies.
        let words = "import ctypes, time; open('/dev/ttyS0', 'w').write('these were its words\\n')\n\
                     time.sleep(1); ctypes.CDLL(None).reboot(0x01234567); time.sleep(600)";
        // A program may not do that, but its operator may.
        let error = sandbox
            .exec(Command::from_argv(["/usr/bin/python3", "-c", words]))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GuestDied);
        let text = error.to_string();
        assert!(text.contains("the guest reset itself"), "{text}");
        assert!(text.contains("| these were its words"), "{text}");
        assert!(!sandbox.is_alive());
        sandbox.close().await;
        assert_eq!(busy_workers(), BTreeSet::new());
    });
}

#[test]
fn what_cannot_be_built_is_said_as_elsewhere() {
    runtime().block_on(async {
        let error = builder().memory(ByteSize::mib(1)).boot().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error:?}");
        assert!(format!("{error:?}").contains("MiB of memory"), "{error:?}");
        assert_eq!(busy_workers(), BTreeSet::new());
    });
}

#[test]
fn clones_are_made_in_workers_and_of_guests_in_workers() {
    runtime().block_on(async {
        let template = template().build().await.unwrap();
        // Its own guest has ended, if it was built here.
        assert_eq!(busy_workers(), BTreeSet::new());
        let before = template.digest().await.unwrap();
        let clones = template.fork_many(3).await.unwrap();
        assert_eq!(busy_workers().len(), 3);
        let mut seen = BTreeSet::new();
        for clone in &clones {
            let program = "import os; print(os.urandom(16).hex())";
            let out = clone.run(Code::python(program)).await.unwrap();
            let random = out.stdout.to_string_lossy().into_owned();
            assert_eq!(random.len(), 33, "{out:?}");
            assert!(!seen.contains(&random), "{random} came twice");
            seen.insert(random);
        }

        // A running guest with its processes, two deep, each with what was written before it.
        let count = "import os, time\nn = 0\nwhile True:\n    n += 1\n    \
                     open('/tmp/next', 'w').write(str(n))\n    \
                     os.rename('/tmp/next', '/tmp/n')\n    time.sleep(0.01)";
        let counter = clones[0].start(Code::python(count)).await.unwrap();
        let wait = "until [ -s /tmp/n ]; do sleep 0.1; done; echo of 0 > /tmp/of; echo ready";
        says(&clones[0], &["sh", "-c", wait], "ready\n").await;
        let mut generations = Vec::new();
        for number in 1..=2_usize {
            let parent = generations.last().unwrap_or(&clones[0]);
            let options = ForkOptions::new().env("WHO", number.to_string());
            let child: Sandbox = parent.fork_with(options).await.unwrap();
            let write = format!("cat /tmp/of; echo of {number} >> /tmp/of; echo $WHO");
            let expected: String = (0..number).map(|it| format!("of {it}\n")).collect();
            let expected = format!("{expected}{number}\n");
            says(&child, &["sh", "-c", &write], &expected).await;
            generations.push(child);
        }
        let goes_on = "a=$(cat /tmp/n); sleep 1; b=$(cat /tmp/n); [ $b -gt $a ] && echo on";
        for sandbox in generations.iter().chain([&clones[0]]) {
            says(sandbox, &["sh", "-c", goes_on], "on\n").await;
        }
        says(&clones[0], &["cat", "/tmp/of"], "of 0\n").await;
        drop(counter);

        // A clone elsewhere than its template's, and a template of that.
        let here = ForkOptions::new().placement(Placement::InProcess);
        let workers = busy_workers().len();
        let local = generations[1].fork_with(here).await.unwrap();
        assert_eq!(busy_workers().len(), workers);
        says(&local, &["tail", "-1", "/tmp/of"], "of 2\n").await;
        let snapshot = local.snapshot().await.unwrap();
        assert!(snapshot.pause().unwrap() > Duration::ZERO);
        let there = ForkOptions::new().placement(Placement::Worker);
        let back = snapshot.fork_with(there).await.unwrap();
        assert_eq!(busy_workers().len(), workers + 1);
        says(&back, &["tail", "-1", "/tmp/of"], "of 2\n").await;
        assert_eq!(template.digest().await.unwrap(), before);
        template.verify().await.unwrap();
        for sandbox in clones.into_iter().chain(generations).chain([local, back]) {
            sandbox.close().await;
        }
        assert_eq!(busy_workers(), BTreeSet::new());
    });
}

#[test]
fn a_worker_that_is_killed_is_an_error_to_its_caller_and_to_nobody_else() {
    runtime().block_on(async {
        let template = template().shells(1).build().await.unwrap();
        let mut others = Vec::new();
        for _ in 0..2 {
            others.push(template.fork().await.unwrap());
        }
        // Those that wait have no other thread than that which waits, or are shells.
        let shells = Instant::now();
        while template.ready_shells() == 0 {
            assert!(shells.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let without = busy_workers();
        template.keep_shells(0);
        let victim = template.fork_with(ForkOptions::new()).await.unwrap();
        let id = *busy_workers()
            .difference(&without)
            .next()
            .unwrap_or_else(|| {
                panic!("{without:?}");
            });
        let call = async {
            victim
                .exec(Command::from_argv(["sleep", "600"]))
                .await
                .unwrap_err()
        };
        let killer = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            kill(id);
        };
        let (error, ()) = tokio::join!(call, killer);
        assert_eq!(error.kind(), ErrorKind::GuestDied);
        let expected = format!("the worker process {id} was killed by signal 9");
        assert!(error.to_string().contains(&expected), "{error}");
        for error in [
            victim.ping().await.unwrap_err(),
            victim.pause().await.unwrap_err(),
            victim.fork().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::GuestDied, "{error:?}");
        }
        assert!(!victim.is_alive());
        victim.close().await;
        for other in &others {
            other.ping().await.unwrap();
        }
        template.fork().await.unwrap().ping().await.unwrap();
    });
}

#[test]
fn a_pool_has_workers_and_nothing_is_left() {
    let run = || {
        runtime().block_on(async {
            let template = template().shells(1).build().await.unwrap();
            let pool = Pool::builder(template)
                .ready(2)
                .max(3)
                .build()
                .await
                .unwrap();
            let mut taken = Vec::new();
            for _ in 0..3 {
                taken.push(pool.acquire_within(PATIENCE).await.unwrap());
            }
            let mut names = BTreeSet::new();
            for sandbox in &taken {
                let out = sandbox.exec(Command::new("hostname")).await.unwrap();
                assert!(names.insert(out.stdout.to_string_lossy().into_owned()));
            }
            // One of them ends in a hurry.
            drop(taken.pop());
            let next = pool.acquire_within(PATIENCE).await.unwrap();
            next.ping().await.unwrap();
            drop((taken, next));
            assert_eq!(pool.drain(PATIENCE).await, 0);
        });
    };
    // What the first of all leaves is the process's own: a signal handler, an allocator's arenas.
    run();
    let gate = LeakGate::arm().unwrap();
    run();
    gate.check().unwrap();
}

/// Set for the process that is killed.
const VICTIM: &str = "EMBER_TEST_VICTIM";

#[test]
fn workers_end_with_their_owner_however_it_ends() {
    if std::env::var_os(VICTIM).is_some() {
        runtime().block_on(async {
            let sandbox = builder().boot().await.unwrap();
            println!("ready");
            sandbox
                .exec(Command::from_argv(["sleep", "600"]))
                .await
                .unwrap();
        });
        return;
    }
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("workers_end_with_their_owner_however_it_ends")
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let ready = lines
        .map_while(Result::ok)
        .any(|line| line.ends_with("ready"));
    assert!(ready);
    let workers = busy_workers_of(victim.id());
    assert_eq!(workers.len(), 1);
    kill(victim.id());
    victim.wait().unwrap();
    let end = Instant::now() + PATIENCE;
    let all = || {
        let names = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let name = fs::read_to_string(entry.unwrap().path().join("comm")).ok()?;
            (name == "ember-worker\n").then_some(())
        });
        names.count()
    };
    // The idle ones too. Whoever adopts them reaps them.
    while workers.iter().any(|id| is_running(*id)) || all() > 0 {
        assert!(Instant::now() < end, "{} workers are left", all());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the process is there and is not only waiting to be reaped.
fn is_running(id: u32) -> bool {
    fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}
