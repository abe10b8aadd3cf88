//! What programs may use: each that wants more ends at its limit, with its right status, and the
//! sandbox runs the next thing at once.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::{Duration, Instant};

use common::runtime;
use ember_core::{
    ByteSize, Code, Command, Image, Kernel, LimitHit, Limits, Output, Sandbox, Status, Template,
};

const KILLED: Status = Status::Signaled(9);
const NONE: Limits = Limits {
    memory: None,
    processes: None,
    cpu_time: None,
    output: None,
    disk: None,
    address_space: None,
    user_processes: None,
    open_files: None,
    file_size: None,
};

fn few_processes() -> Limits {
    Limits {
        processes: Some(40),
        ..NONE
    }
}

async fn template() -> Template {
    Template::builder(Image::pack("python"))
        .kernel(Kernel::tuned())
        .vcpus(2)
        .memory(ByteSize::mib(160))
        .timeout(Duration::from_secs(60))
        .working_set(false)
        .warm_up(Code::python(""))
        .build()
        .await
        .unwrap()
}

/// The sandbox runs the next program as if nothing had been, warm and cold, and nobody is left.
async fn is_well(sandbox: &Sandbox, what: &str) {
    let start = Instant::now();
    let out = sandbox.run(Code::python("print('well')")).await.unwrap();
    assert_eq!(out.stdout, "well\n", "after {what}: {out:?}");
    let all = Command::from_argv(["ps", "-o", "user=,args=", "-A"]);
    let out = sandbox.exec(all).await.unwrap();
    let text = out.stdout.to_string_lossy().into_owned();
    assert!(text.contains("ps -o user="), "after {what}: {out:?}");
    let left = |line: &&str| line.starts_with("user") && !line.contains("runners");
    assert_eq!(text.lines().find(left), None, "after {what}: {text}");
    assert!(start.elapsed() < Duration::from_secs(30), "after {what}");
}

/// Runs a program in a warm interpreter and as a command, both confined.
async fn both_ways(
    sandbox: &Sandbox,
    code: &str,
    limits: Limits,
    time: Option<u64>,
) -> [Output; 2] {
    let time = time.map(Duration::from_millis);
    let mut warm = Code::python(code).limits(limits);
    let mut cold = Command::from_argv(["/usr/bin/python3", "-c", code])
        .user("user")
        .current_dir("/home/user")
        .limits(limits)
        .confined();
    if let Some(time) = time {
        warm = warm.timeout(time);
        cold = cold.timeout(time);
    }
    let warm = sandbox.run(warm).await.unwrap();
    is_well(sandbox, code).await;
    let cold = sandbox.exec(cold).await.unwrap();
    is_well(sandbox, code).await;
    [warm, cold]
}

fn assert_hit(outputs: &[Output], limit: LimitHit) {
    for out in outputs {
        assert_eq!(
            out.outcome.limit,
            Some(limit),
            "{:?} {}",
            out.outcome,
            out.stderr
        );
        assert_eq!(out.outcome.status, KILLED, "{:?}", out.outcome);
        assert!(!out.success());
    }
}

const FORK_BOMB: &str = "import os\nwhile True:\n    try:\n        os.fork()\n    \
                         except OSError:\n        pass";
const THREAD_BOMB: &str = "import threading, time\nwhile True:\n    \
                           threading.Thread(target=time.sleep, args=(1000,)).start()";
const ZOMBIE_FARM: &str = "import os, time\nwhile True:\n    try:\n        \
                           if os.fork() == 0: os._exit(0)\n    except OSError:\n        \
                           time.sleep(1)";
const MEMORY_BOMB: &str = "all = []\nwhile True:\n    all.append(bytearray(1 << 20))";
const FAMILY_BOMB: &str = "import os\nfor i in range(4): os.fork()\nall = []\n\
                           while True:\n    all.append(bytearray(1 << 20))";
const FLOOD: &str = "import sys\nwhile True:\n    sys.stdout.write('x' * 10000)\n    \
                     sys.stderr.write('y' * 10000)";
const FILLER: &str = "import os\nf = open('/home/user/full', 'wb', 0)\ntry:\n    while True:\n        \
                      f.write(b'x' * (1 << 18))\nexcept OSError as error:\n    print(error.errno)\n\
                      os.unlink('/home/user/full')";
const ENDLESS: &str = "while True: pass";
const STUBBORN: &str = "import signal, time\nfor number in range(1, 65):\n    try:\n        \
                        signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError):\n        \
                        pass\nwhile True: time.sleep(1)";
const SILENT: &str = "import os, time\nos.closerange(0, 3)\ntime.sleep(1000)";
const DESERTER: &str = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    \
                        if os.fork() == 0:\n        os.closerange(0, 3)\n        \
                        time.sleep(1000)\n    os._exit(0)\nos.wait()\nprint('gone')";

#[test]
fn each_ends_at_its_limit() {
    runtime().block_on(async {
        let template = template().await;
        let fork = async || template.fork().await.unwrap();

        let sandbox = fork().await;
        for bomb in [FORK_BOMB, THREAD_BOMB, ZOMBIE_FARM] {
            let ended = both_ways(&sandbox, bomb, few_processes(), None).await;
            assert_hit(&ended, LimitHit::Processes);
            assert!(ended.iter().all(|out| out.outcome.peak_processes <= 41));
        }

        // Of the guest, and of their own.
        let own = Limits {
            memory: Some(40 << 20),
            ..NONE
        };
        for (bomb, limits) in [(MEMORY_BOMB, NONE), (MEMORY_BOMB, own), (FAMILY_BOMB, own)] {
            let ended = both_ways(&sandbox, bomb, limits, None).await;
            assert_hit(&ended, LimitHit::Memory);
            assert!(
                ended.iter().all(|out| out.outcome.peak_memory > 20 << 20),
                "{ended:?}"
            );
        }
        sandbox.close().await;

        let sandbox = fork().await;
        let output = Limits {
            output: Some(1_000_000),
            ..NONE
        };
        let ended = both_ways(&sandbox, FLOOD, output, None).await;
        assert_hit(&ended, LimitHit::Output);
        for out in &ended {
            assert_eq!(out.stdout.len() + out.stderr.len(), 1_000_000);
            assert_eq!(out.outcome.output, 1_000_000);
        }
        assert!(ended[0].truncated);

        let disk = Limits {
            disk: Some(10_000_000),
            ..NONE
        };
        let slow = FILLER.replace(
            "f.write(b'x' * (1 << 18))",
            "f.write(b'x' * (1 << 18)); __import__('time').sleep(0.01)",
        );
        let ended = both_ways(&sandbox, &slow, disk, None).await;
        assert_hit(&ended, LimitHit::Disk);
        assert!(
            ended.iter().all(|out| out.outcome.disk > 10_000_000),
            "{ended:?}"
        );
        sandbox.close().await;

        // The disk itself: the program is told, and what it left is there for the next to feel.
        let sandbox = fork().await;
        for out in both_ways(&sandbox, FILLER, NONE, None).await {
            assert_eq!(out.stdout, "28\n", "{out:?}");
            assert!(out.success());
        }
        let keeps = FILLER.replace("os.unlink", "print");
        let out = sandbox.run(Code::python(&keeps)).await.unwrap();
        assert!(out.stdout.to_string_lossy().starts_with("28\n"), "{out:?}");
        is_well(&sandbox, "a full disk").await;
        let shared = keeps.replace("/home/user", "/dev/shm");
        let out = sandbox.run(Code::python(&shared)).await.unwrap();
        assert!(out.stdout.to_string_lossy().starts_with("28\n"), "{out:?}");
        is_well(&sandbox, "every disk full").await;
        sandbox.close().await;

        let sandbox = fork().await;
        let cpu = Limits {
            cpu_time: Some(Duration::from_millis(700)),
            ..NONE
        };
        let ended = both_ways(&sandbox, ENDLESS, cpu, None).await;
        assert_hit(&ended, LimitHit::CpuTime);
        let children = format!("import os\nfor i in range(3): os.fork()\n{ENDLESS}");
        let shared = both_ways(&sandbox, &children, cpu, None).await;
        assert_hit(&shared, LimitHit::CpuTime);
        for out in ended.iter().chain(&shared) {
            let used = out.outcome.user + out.outcome.system;
            assert!(used >= Duration::from_millis(700), "{:?}", out.outcome);
            assert!(used < Duration::from_secs(3), "{:?}", out.outcome);
        }
        for code in [ENDLESS, STUBBORN, SILENT] {
            let ended = both_ways(&sandbox, code, NONE, Some(1000)).await;
            assert_hit(&ended, LimitHit::WallTime);
            assert!(
                ended
                    .iter()
                    .all(|out| out.outcome.wall >= Duration::from_secs(1))
            );
        }
        // What has left its program ends with it.
        for out in both_ways(&sandbox, DESERTER, NONE, None).await {
            assert_eq!(out.stdout, "gone\n", "{out:?}");
            assert!(out.success(), "{out:?}");
        }
        sandbox.close().await;
    });
}

#[test]
fn what_is_used_is_told() {
    runtime().block_on(async {
        let sandbox = template().await.fork().await.unwrap();
        let code = "import os, threading, time\nblock = bytearray(30_000_000)\n\
                    gate = threading.Event()\n\
                    all = [threading.Thread(target=gate.wait) for _ in range(9)]\n\
                    [it.start() for it in all]\ngate.set()\n\
                    open('/home/user/file', 'wb').write(b'x' * 5_000_000)\n\
                    if os.fork() == 0:\n    end = time.process_time() + 0.3\n    \
                    while time.process_time() < end: pass\n    os._exit(0)\n\
                    print('x' * 1000)";
        // The child is not waited for: the kernel counts it nevertheless.
        for out in both_ways(&sandbox, &format!("{code}\ntime.sleep(1)"), NONE, None).await {
            let outcome = &out.outcome;
            assert!(out.success(), "{out:?}");
            assert!(
                outcome.peak_memory > 30_000_000 && outcome.peak_memory < 100_000_000,
                "{outcome:?}"
            );
            assert!((10..=20).contains(&outcome.peak_processes), "{outcome:?}");
            assert_eq!(outcome.output, 1001);
            assert!(
                outcome.disk >= 5_000_000 && outcome.disk < 8_000_000,
                "{outcome:?}"
            );
            assert!(
                outcome.user + outcome.system >= Duration::from_millis(300),
                "{outcome:?}"
            );
            assert!(outcome.wall >= Duration::from_secs(1), "{outcome:?}");
        }

        // The same while it runs.
        let code = "import time\nblock = bytearray(30_000_000)\ntime.sleep(1)\ndel block\n\
                    end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n\
                    print('x' * 100, flush=True)\ntime.sleep(1)";
        let program = sandbox.start(Code::python(code)).await.unwrap();
        let mut watch = program.watch_usage();
        let watched = tokio::spawn(async move {
            let mut looks = Vec::new();
            while let Some(usage) = watch.next().await.unwrap() {
                looks.push(usage);
            }
            looks
        });
        let out = program.output(1 << 20).await.unwrap();
        let looks = watched.await.unwrap();
        let outcome = &out.outcome;
        assert!(out.success(), "{out:?}");
        assert!(looks.len() >= 10, "{}", looks.len());
        assert!(looks.iter().any(|it| it.memory > 30_000_000), "{looks:?}");
        let last = looks.last().unwrap();
        assert!(last.memory < 20_000_000, "{last:?}");
        assert!(last.peak_memory > 30_000_000, "{last:?}");
        assert_eq!(last.output, 101);
        assert!(last.processes >= 1 && last.peak_processes >= last.processes);
        assert!(
            last.user + last.system >= Duration::from_millis(400),
            "{last:?}"
        );
        for (earlier, later) in looks.iter().zip(&looks[1..]) {
            assert!(earlier.user <= later.user && earlier.wall < later.wall);
            assert!(later.memory <= later.peak_memory);
        }
        assert!(last.peak_memory <= outcome.peak_memory && last.user <= outcome.user);
        sandbox.close().await;
    });
}
