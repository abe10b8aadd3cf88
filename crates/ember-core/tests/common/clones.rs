//! Clones one after another, and many at once, and the gate behind the last.

use std::collections::HashSet;

use ember_core::{Backing, Code, Command, Sandbox, Template, TemplateBuilder};
use ember_leak::LeakGate;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{runtime, template};

/// One that has done once what its clones will be asked to do.
async fn rehearsed(backing: Backing) -> Template {
    template("bash")
        .prepare(Command::from_argv(["echo"]))
        .backing(backing)
        .build()
        .await
        .unwrap()
}

async fn answers(clone: &Sandbox, number: usize) {
    let command = Command::from_argv(["echo", &number.to_string()]);
    let output = clone.exec(command).await.unwrap();
    assert_eq!(output.stdout, *format!("{number}\n"));
}

/// Said now and then, so that a run of an hour is seen to get on.
fn tell(what: &str, done: usize, of: usize) {
    if done > 0 && done.is_multiple_of(100) && of > 100 {
        ember_leak::progress(&format!("{what}: {done} of {of}"));
    }
}

/// Clones, runs a command in and closes `count` sandboxes; nothing of them may be left.
pub(crate) fn cycles_leave_nothing_behind(count: usize, backing: Backing) {
    let template = runtime().block_on(rehearsed(backing));
    let cycles = |count| {
        runtime().block_on(async {
            for cycle in 0..count {
                let clone = template.fork().await.unwrap();
                answers(&clone, cycle).await;
                clone.close().await;
                tell("cloned, asked and closed", cycle + 1, count);
            }
        });
    };
    // What the first of all leaves is the process's own: a signal handler, an allocator's arenas.
    cycles(2);
    let gate = LeakGate::arm().unwrap();
    cycles(count);
    gate.check().unwrap();
}

/// What the template's interpreter has loaded, and drawn from, before it is cloned.
const WARM: &str = "import os, random, secrets, ssl, uuid, numpy\n\
    random.random(), numpy.random.random(), ssl.RAND_bytes(16), uuid.uuid4()";
/// One line of each source of randomness that a program has, and of each id that a guest has.
const DRAWS: &str = "import os, random, secrets, socket, ssl, uuid, numpy\n\
    print(open('/dev/urandom', 'rb').read(16).hex())\n\
    print(os.getrandom(16).hex())\n\
    print(uuid.uuid4().hex)\n\
    print(random.getrandbits(128))\n\
    print(secrets.token_hex(16))\n\
    print(numpy.random.bytes(16).hex())\n\
    print(numpy.random.default_rng().bytes(16).hex())\n\
    print(ssl.RAND_bytes(16).hex())\n\
    for name in '/etc/machine-id', '/proc/sys/kernel/random/boot_id', '/proc/sys/kernel/random/uuid':\n\
    \x20   print(open(name).read().strip())\n\
    print(socket.gethostname())";
const LINES: usize = 12;

/// Has `count` clones of a template with Python alive at once, each of which answers, at the beginning
/// and at the end. What the first `draw` of them draw, in the interpreter that they share and in the
/// kernel, is equal nowhere; and nothing of them may be left.
pub(crate) fn many_at_once_leave_nothing_behind(
    template: TemplateBuilder,
    count: usize,
    draw: usize,
) {
    // Each has some thirty descriptors.
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let template = template.warm_up(Code::python(WARM)).build();
    let template = runtime().block_on(template).unwrap();
    let many = |count, draw| {
        runtime().block_on(async {
            let clones = template.fork_many(count).await.unwrap();
            ember_leak::progress(&format!("{count} clones are there"));
            let mut seen = HashSet::new();
            for (number, clone) in clones.iter().enumerate() {
                clone.ping().await.unwrap();
                if number >= draw {
                    continue;
                }
                let output = clone.run(Code::python(DRAWS)).await.unwrap();
                let text = output.stdout.to_string_lossy().into_owned();
                assert_eq!(text.lines().count(), LINES, "{output:?}");
                for line in text.lines() {
                    assert!(seen.insert(line.to_owned()), "{line} came twice");
                }
                tell("have drawn", number + 1, count);
            }
            for (number, clone) in clones.iter().enumerate() {
                answers(clone, number).await;
            }
            for clone in clones {
                clone.close().await;
            }
        });
    };
    many(2, 2);
    // What an allocator keeps after many is the process's own, and there for as many more. Below
    // some hundreds the gate bears with it.
    if count > 500 {
        runtime().block_on(async {
            for clone in template.fork_many(count).await.unwrap() {
                clone.close().await;
            }
        });
    }
    let gate = LeakGate::arm().unwrap();
    many(count, draw);
    gate.check().unwrap();
}

/// Has `threads` threads clone one template at once, each `rounds` times; nothing of that may be left.
pub(crate) fn threads_clone_at_once(threads: usize, rounds: usize) {
    let template = runtime().block_on(rehearsed(Backing::Mapped));
    let clone = |threads, rounds| {
        let runtime = runtime();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (runtime, template) = (runtime.handle().clone(), template.clone());
                scope.spawn(move || {
                    runtime.block_on(async {
                        for round in 0..rounds {
                            let clone = template.fork().await.unwrap();
                            answers(&clone, thread * rounds + round).await;
                            clone.close().await;
                        }
                    });
                });
            }
        });
    };
    clone(2, 1);
    let gate = LeakGate::arm().unwrap();
    clone(threads, rounds);
    gate.check().unwrap();
}
