//! Templates and their clones.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use common::runtime;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ember_core::{
    ByteSize, Code, Command, ErrorKind, ForkOptions, Image, Kernel, Pool, PoolFork, Status,
    Template, TemplateBuilder,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn builder() -> TemplateBuilder {
    Template::builder(Image::pack("python"))
        .kernel(Kernel::tuned())
        .memory(ByteSize::mib(192))
}

#[test]
fn clones_are_themselves_and_share_what_was_warmed_up() {
    runtime().block_on(async {
        let template = builder()
            .vcpus(2)
            .warm_up(Code::python("open('/home/user/warm', 'w').write('yes')"))
            .build()
            .await
            .unwrap();
        let clones = template.fork_many(4).await.unwrap();
        let mut seen = std::collections::HashSet::new();
        for clone in &clones {
            let program = "import os, socket\n\
                print(open('/home/user/warm').read(), 6 * 7)\n\
                print(socket.gethostname(), open('/etc/machine-id').read().strip(),\n\
                      open('/proc/sys/kernel/random/boot_id').read().strip(), os.urandom(16).hex())";
            let out = clone.run(Code::python(program)).await.unwrap();
            let text = out.stdout.to_string_lossy().into_owned();
            let mut lines = text.lines();
            assert_eq!(lines.next(), Some("yes 42"), "{out:?}");
            for word in lines.next().unwrap().split(' ') {
                assert!(seen.insert(word.to_owned()), "{word} came twice");
            }
        }
        // What one writes, no other sees.
        let write = "open('/home/user/warm', 'w').write('mine')";
        clones[0].run(Code::python(write)).await.unwrap();
        let out = clones[1].exec(Command::new("cat").arg("/home/user/warm")).await.unwrap();
        assert_eq!(out.stdout, "yes");
        for clone in clones {
            clone.close().await;
        }
    });
}

#[test]
fn a_running_guest_is_cloned_with_its_processes() {
    runtime().block_on(async {
        let template = builder().build().await.unwrap();
        let options = ForkOptions::new().hostname("first").env("WHO", "first");
        let first = template.fork_with(options).await.unwrap();
        // Never half written, for whoever looks.
        let count = "import os, time\nn = 0\nwhile True:\n    n += 1\n    \
                     open('/tmp/next', 'w').write(str(n))\n    \
                     os.rename('/tmp/next', '/tmp/n')\n    time.sleep(0.01)";
        let counter = first.start(Code::python(count)).await.unwrap();
        let wait = "until [ -s /tmp/n ]; do sleep 0.1; done";
        let started = first.exec(Command::from_argv(["sh", "-c", wait])).await;
        assert!(started.unwrap().success());
        let mut generation = first
            .fork_with(ForkOptions::new().env("WHO", "1"))
            .await
            .unwrap();
        for number in 2..=3 {
            let options = ForkOptions::new().env("WHO", number.to_string());
            let next = generation.fork_with(options).await.unwrap();
            generation.close().await;
            generation = next;
        }
        let show = Command::from_argv([
            "sh",
            "-c",
            "cat /tmp/n; sleep 1; echo; cat /tmp/n; echo; echo $WHO",
        ]);
        for (sandbox, who) in [(&first, "first"), (&generation, "3")] {
            let out = sandbox.exec(show.clone()).await.unwrap();
            let text = out.stdout.to_string_lossy().into_owned();
            let words: Vec<&str> = text.split_whitespace().collect();
            let [before, after, name] = words[..] else {
                panic!("{who}: {out:?}")
            };
            assert_eq!(name, who);
            let (before, after): (u32, u32) = (before.parse().unwrap(), after.parse().unwrap());
            assert!(after > before, "the counter stands at {before}");
        }
        drop(counter);
    });
}

#[test]
fn a_pool_hands_out_clones_and_makes_others() {
    runtime().block_on(async {
        let template = builder().build().await.unwrap();
        let forks = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&forks);
        let pool = Pool::builder(template)
            .ready(2)
            .max(3)
            .on_fork(move |fork| match fork {
                PoolFork::Made { object, reply } => told.lock().unwrap().push((object, reply)),
                other => panic!("{other:?}"),
            })
            .build()
            .await
            .unwrap();
        assert_eq!(pool.status().ready, 2);
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(pool.acquire_within(PATIENCE).await.unwrap());
        }
        let mut names = std::collections::HashSet::new();
        for sandbox in &taken {
            let out = sandbox.exec(Command::new("hostname")).await.unwrap();
            assert!(names.insert(out.stdout.to_string_lossy().into_owned()));
        }
        // All there may be are handed out: the next one waits for a place.
        let none = pool.acquire_within(Duration::from_millis(200)).await;
        assert_eq!(none.unwrap_err().kind(), ErrorKind::Unavailable);
        drop(taken.pop());
        let next = pool.acquire_within(PATIENCE).await.unwrap();
        next.ping().await.unwrap();
        let before = next.copied_bytes().await.unwrap();
        assert!(before > 0);
        let fill = "head -c 8M /dev/urandom > /dev/shm/fill";
        let out = next.exec(Command::from_argv(["sh", "-c", fill])).await;
        assert!(out.unwrap().success());
        let more = next.copied_bytes().await.unwrap() - before;
        assert!((8 << 20..64 << 20).contains(&more), "{more} bytes");
        drop((taken, next));
        assert_eq!(pool.drain(PATIENCE).await, 0);
        let forks = forks.lock().unwrap();
        assert_eq!(forks.len() as u64, pool.status().made);
        for (object, reply) in forks.iter() {
            assert!(!object.is_zero() && object < reply, "{forks:?}");
        }
    });
}

#[test]
fn programs_start_in_the_interpreter_that_was_warmed_up() {
    runtime().block_on(async {
        let setup = "import random, numpy";
        let template = builder()
            .warm_up(Code::python(setup))
            .build()
            .await
            .unwrap();
        let program = "import sys, random, uuid, secrets, ssl\n\
            print('numpy' in sys.modules, __name__)\n\
            import numpy\n\
            print(random.random(), numpy.random.random(), uuid.uuid4(), secrets.token_hex(8),\n\
                  ssl.RAND_bytes(8).hex())";
        let mut seen = std::collections::HashSet::new();
        let clones = template.fork_many(3).await.unwrap();
        for clone in &clones {
            // Twice in the same clone: each run is a process of its own.
            for _ in 0..2 {
                let out = clone.run(Code::python(program)).await.unwrap();
                assert!(out.success(), "{out:?}");
                let text = out.stdout.to_string_lossy().into_owned();
                let mut lines = text.lines();
                assert_eq!(lines.next(), Some("True __main__"), "{out:?}");
                for word in lines.next().unwrap().split(' ') {
                    assert!(seen.insert(word.to_owned()), "{word} came twice");
                }
            }
            let out = clone
                .run(Code::python("import sys; sys.exit(3)"))
                .await
                .unwrap();
            assert_eq!(out.outcome.status, Status::Exited(3));
            let out = clone.run(Code::python("1 / 0")).await.unwrap();
            assert_eq!(out.outcome.status, Status::Exited(1));
            let errors = out.stderr.to_string_lossy().into_owned();
            assert!(
                errors.ends_with("ZeroDivisionError: division by zero\n"),
                "{errors}"
            );
        }
    });
}
