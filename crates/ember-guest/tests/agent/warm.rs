//! Programs that warm interpreters run, compared with what the interpreter itself does.

use std::error::Error as _;
use std::time::Duration;

use ember_guest::host::{
    Agent, Command, ErrorKind, Identity, Output, Process, RunnerId, Stdin, WarmCommand, WarmRunner,
};
use ember_guest::protocol::{ErrorCode, Limits, Outcome, PtySize, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{PATIENCE, TestAgent, eventually, processes_with, sh, text, unique_sleep};
use crate::freezing::Relay;

const PYTHON: &str = "/usr/bin/python3";

/// The runner as it is embedded, in a directory of its own.
struct Warm {
    directory: tempfile::TempDir,
}

impl Warm {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runner = ember_guest::packs::RUNNERS[0];
        std::fs::write(directory.path().join("runner.py"), runner.text).unwrap();
        Self { directory }
    }

    fn runner(&self, setup: &str) -> WarmRunner {
        let program = self.directory.path().join("runner.py");
        WarmRunner::new("python", [PYTHON.into(), program]).setup(setup)
    }

    async fn up(&self, agent: &Agent, setup: &str) -> RunnerId {
        tokio::time::timeout(PATIENCE, agent.warm(self.runner(setup)))
            .await
            .expect("in time")
            .unwrap()
    }
}

async fn output(agent: &Agent, runner: &RunnerId, program: WarmCommand) -> Output {
    let run = async {
        let process = agent.run_warm(runner, program).await.unwrap();
        process.output(1 << 20).await.unwrap()
    };
    tokio::time::timeout(PATIENCE, run).await.expect("in time")
}

async fn says(agent: &Agent, runner: &RunnerId, code: &str) -> String {
    let output = output(agent, runner, WarmCommand::code(code)).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.outcome.success(), "{:?}: {stderr}", output.outcome);
    String::from_utf8(output.stdout).unwrap()
}

/// What cannot be told from `python3 -c` in a fresh process.
const PROGRAMS: &[&str] = &[
    "print(6 * 7)",
    "",
    "import sys; print(sys.argv, __name__, sys.path[0], sys.orig_argv[1:])",
    "print(sorted(globals()), __builtins__, __spec__, __loader__, __annotations__)",
    "x: int = 1; print(__annotations__)",
    "1 / 0",
    "def f(n):\n    return f(n - 1) if n else 1 / 0\nf(3)",
    "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('x') from error",
    "x = = 1",
    "print('a\0b')",
    "if True:\nprint(1)",
    "import sys; sys.exit()",
    "import sys; sys.exit(3)",
    "import sys; sys.exit(-1)",
    "import sys; sys.exit(256 + 7)",
    "import sys; sys.exit(2 ** 70)",
    "import sys; sys.exit('goodbye')",
    "import sys; sys.exit((1, 2))",
    "raise SystemExit(True)",
    "raise KeyboardInterrupt",
    "import os; os._exit(9)",
    "import os; os.kill(os.getpid(), 15)",
    "import os; os.abort()",
    "import atexit; atexit.register(print, 'last'); print('first')",
    "import atexit; atexit.register(lambda: 1 / 0); print('first')",
    "import sys; sys.stdout.write('no newline'); sys.stderr.write('nor here')",
    "import threading\ngo = threading.Event()\n\
     t = threading.Thread(target=lambda: (go.wait(), print('thread')))\n\
     t.start()\nprint('main')\ngo.set()",
    "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='T')\nt.start(); t.join()\nprint('main')",
    "class A:\n    def __del__(self):\n        print('gone')\na = A()\nprint('end')",
    "class A:\n    pass\nclass B(A):\n    def __del__(self):\n        print('cycle')\n\
     b = B()\nb.b = b\ndel b\nprint('end')",
    "f = open('/dev/stdout', 'w'); f.write('never closed')",
    "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__, a[2] is not None)\n1 / 0",
    "import sys\ndef hook(*a):\n    raise ValueError('in the hook')\nsys.excepthook = hook\n1 / 0",
    "import sys; sys.stdout.close()",
    "import os; os.close(1); print('lost')",
    "print(input())",
    "import sys; print(sys.stdin.read().upper(), end='')",
    "import subprocess; print(subprocess.run(['echo', 'child'], capture_output=True).stdout)",
    "import os\nif os.fork() == 0:\n    print('child')\nelse:\n    os.wait(); print('parent')",
    "import multiprocessing as m\nif __name__ == '__main__':\n    c = m.get_context('fork')\n    \
     p = c.Process(target=print, args=('process',)); p.start(); p.join(); print(p.exitcode)",
    "import os; print(os.getcwd(), os.environ['GREETING'], sorted(os.environ))",
    "import ctypes; ctypes.CDLL(None).printf(b'from C')",
    "import warnings; warnings.warn('careful')",
    "import sys; sys.setrecursionlimit(100)\ndef f(): f()\ntry:\n    f()\nexcept RecursionError:\n    print('deep')",
    "import asyncio\nasync def f():\n    await asyncio.sleep(0); print('async')\nasyncio.run(f())",
    "import concurrent.futures as c\nwith c.ThreadPoolExecutor() as e:\n    print(list(e.map(abs, [-1, -2])))",
    "import logging; logging.error('logged')",
    "print('ü', '\\udc80'.encode('utf-8', 'surrogateescape'))",
    "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0)",
    "import os, signal; print(os.getpgrp() == os.getpid() == os.getsid(0), \
     signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGPIPE))",
    "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:3])",
    "exec('1/0')",
    "import json; json.loads('{')",
    "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
];

/// Everything that can be seen of a program's end is what the interpreter gives.
#[tokio::test(flavor = "multi_thread")]
async fn programs_behave_as_in_an_interpreter_of_their_own() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let warm = Warm::new();
    let runner = warm
        .up(&agent, "import json, threading, asyncio, logging")
        .await;
    let mut differing = Vec::new();
    for code in PROGRAMS {
        let code = code.replace('\0', "\\0");
        let mut own = Command::from_argv([PYTHON, "-c", &code, "one", "two"])
            .env_clear()
            .current_dir("/tmp")
            .stdin(Stdin::Piped);
        let mut program = WarmCommand::code(code.clone())
            .args(["one", "two"])
            .env_clear()
            .current_dir("/tmp")
            .stdin(Stdin::Piped);
        for (name, value) in [
            ("GREETING", "hello"),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("LC_ALL", "C.UTF-8"),
            ("HOME", "/"),
        ] {
            own = own.env(name, value);
            program = program.env(name, value);
        }
        let own = shown(agent.spawn(own).await.unwrap(), &code).await;
        let warm = shown(agent.run_warm(&runner, program).await.unwrap(), &code).await;
        if addresses(&own) != addresses(&warm) {
            differing.push(format!("=== {code}\n--- python3\n{own}\n--- warm\n{warm}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// All that there is to see of a program that is given two lines.
async fn shown(mut process: Process, code: &str) -> String {
    let mut stdin = process.take_stdin().unwrap();
    let _ = stdin.write_all(b"a line\nanother\n").await;
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, process.output(1 << 20))
        .await
        .unwrap_or_else(|_| panic!("{code} does not end"))
        .unwrap();
    format!(
        "{}\n{}{}",
        output.outcome.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Without what differs from one process to the next.
fn addresses(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("0x") {
        plain.push_str(before);
        rest = after.trim_start_matches(|it: char| it.is_ascii_hexdigit());
    }
    plain + rest
}

#[tokio::test]
async fn files_run_as_they_do_in_an_interpreter() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let warm = Warm::new();
    let runner = warm.up(&agent, "").await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program.py");
    std::fs::write(directory.path().join("part.py"), "word = 'imported'\n").unwrap();
    let code = "# coding: latin-1\nimport part, sys\nprint(part.word, sys.argv, __file__, __cached__)\n1 / 0\n";
    std::fs::write(&path, code).unwrap();
    let own = std::process::Command::new(PYTHON)
        .args(["-B".as_ref(), path.as_os_str(), "x".as_ref()])
        .output()
        .unwrap();
    let output = output(&agent, &runner, WarmCommand::file(&path).arg("x")).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&output.stdout), text(&own.stdout));
    assert_eq!(text(&output.stderr), text(&own.stderr));
    assert!(
        text(&own.stderr).contains("    1 / 0"),
        "its lines are shown"
    );
    assert_eq!(output.outcome.status, Status::Exited(1));

    let missing = crate::warm::output(&agent, &runner, WarmCommand::file("/no/such.py")).await;
    assert_eq!(missing.outcome.status, Status::Exited(2));
    assert!(text(&missing.stderr).contains("can't open file '/no/such.py'"));
}

/// Nothing random that the warm-up drew, or could have drawn, is the same in two programs.
#[tokio::test]
async fn programs_draw_their_own_random_numbers() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let warm = Warm::new();
    let setup = "import random, uuid, ssl, secrets, multiprocessing, tempfile\n\
        own = random.Random(1)\nrandom.seed(1)\nuuid.uuid1(); ssl.RAND_bytes(8)\n\
        import ember_runner\n@ember_runner.on_reseed\ndef reseed():\n    own.seed()\n";
    let runner = warm.up(&agent, setup).await;
    let code = "import random, uuid, ssl, secrets, multiprocessing, tempfile, os, ember_setup\n\
        one = uuid.uuid1()\n\
        print(random.random(), random.getrandbits(64), one.node, one.clock_seq, uuid.uuid4(), \
        ssl.RAND_bytes(8).hex(), secrets.token_hex(8), os.urandom(8).hex(), \
        multiprocessing.current_process().authkey.hex(), tempfile.mktemp(), \
        ember_setup.own.random())";
    let mut drawn: Vec<Vec<String>> = vec![Vec::new(); 11];
    for _ in 0..4 {
        let said = says(&agent, &runner, code).await;
        for (all, value) in drawn.iter_mut().zip(said.split_ascii_whitespace()) {
            all.push(value.to_owned());
        }
    }
    for (index, mut all) in drawn.into_iter().enumerate() {
        all.sort();
        all.dedup();
        // A sequence of 14 bits may be the same by chance.
        let least = if index == 3 { 2 } else { 4 };
        assert!(all.len() >= least, "value {index}: {all:?}");
    }
}

/// Each program has a process of its own, and nothing of the one before.
#[tokio::test]
async fn each_program_is_alone() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let warm = Warm::new();
        let setup =
            "import sys, random\nprepared = [1, 2]\nsys.setup_was_here = True\nprint('set up')";
        let runner = warm.up(&agent, setup).await;
        let code = "import sys, os, ember_setup\nprint(sys.setup_was_here, ember_setup.prepared, \
                    os.getppid())\nember_setup.prepared.append(3); sys.mine = 1; os.environ['X'] = '1'";
        let first = says(&agent, &runner, code).await;
        assert_eq!(
            first,
            format!("True [1, 2] {}\n", test.pid()),
            "{}",
            test.name()
        );
        assert_eq!(says(&agent, &runner, code).await, first);
        let code = "import sys, os; print(hasattr(sys, 'mine'), 'X' in os.environ, os.getpid())";
        let mut pids = Vec::new();
        for _ in 0..5 {
            let said = says(&agent, &runner, code).await;
            pids.push(said.strip_prefix("False False ").unwrap().to_owned());
        }
        pids.sort();
        pids.dedup();
        assert_eq!(pids.len(), 5);
        // Generators are seeded anew.
        let mut values = Vec::new();
        for _ in 0..5 {
            values.push(says(&agent, &runner, "import random; print(random.random())").await);
        }
        values.sort();
        values.dedup();
        assert_eq!(values.len(), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_programs_at_once() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let warm = Warm::new();
        let runner = warm.up(&agent, "").await;
        let programs: Vec<_> = (0..30)
            .map(|number| {
                let (agent, runner) = (agent.clone(), runner.clone());
                tokio::spawn(async move {
                    let code = format!("import sys; print({number}); print(sys.stdin.read())");
                    let program = WarmCommand::code(code).stdin(Stdin::Piped);
                    let mut process = agent.run_warm(&runner, program).await.unwrap();
                    let mut stdin = process.take_stdin().unwrap();
                    stdin.write_all(&vec![b'x'; 100_000]).await.unwrap();
                    drop(stdin);
                    let output = process.output(1 << 20).await.unwrap();
                    assert_eq!(output.stdout.len(), format!("{number}\n").len() + 100_001);
                    assert!(output.outcome.success());
                })
            })
            .collect();
        for program in programs {
            tokio::time::timeout(PATIENCE, program)
                .await
                .unwrap()
                .unwrap();
        }
    }
}

/// Limits, timeouts, signals and forced ends work as on any command.
#[tokio::test]
async fn programs_can_be_bounded_and_ended() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let warm = Warm::new();
        let runner = warm.up(&agent, "").await;
        let outcome = async |program: WarmCommand| -> Outcome {
            output(&agent, &runner, program).await.outcome
        };
        let sleep = "import time; time.sleep(1000)";
        let late = outcome(WarmCommand::code(sleep).timeout(Duration::from_millis(100))).await;
        assert!(
            late.timed_out() && late.status == Status::Signaled(9),
            "{late:?}"
        );

        let mark = unique_sleep();
        let code = format!("import subprocess; subprocess.run(['sleep', '{mark}'])");
        let mut process = agent
            .run_warm(&runner, WarmCommand::code(code))
            .await
            .unwrap();
        eventually("the child runs", || !processes_with(&mark).is_empty()).await;
        process.kill();
        assert_eq!(process.wait().await.unwrap().status, Status::Signaled(9));
        eventually("its child is gone", || processes_with(&mark).is_empty()).await;

        let code = "import time\ntry:\n    print('up', flush=True); time.sleep(1000)\n\
                    except KeyboardInterrupt:\n    print('stopped')";
        let mut process = agent
            .run_warm(&runner, WarmCommand::code(code))
            .await
            .unwrap();
        let mut stdout = process.take_stdout().unwrap();
        stdout.read_exact(&mut [0; 3]).await.unwrap();
        process.signal(2).unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "stopped\n");
        assert!(process.wait().await.unwrap().success());

        let limits = Limits {
            open_files: Some(20),
            file_size: Some(1000),
            cpu_time: Some(Duration::from_secs(1)),
            ..Limits::default()
        };
        let code = "import resource as r; print([r.getrlimit(it) for it in \
                    (r.RLIMIT_NOFILE, r.RLIMIT_FSIZE, r.RLIMIT_CPU)])";
        let shown = output(&agent, &runner, WarmCommand::code(code).limits(limits)).await;
        assert_eq!(
            String::from_utf8_lossy(&shown.stdout),
            "[(20, 20), (1000, 1000), (2, 2)]\n"
        );
        let endless = outcome(WarmCommand::code("while True: pass").limits(limits)).await;
        assert!(
            matches!(endless.status, Status::Signaled(9 | 24)),
            "{endless:?}"
        );
        assert!(endless.user >= Duration::from_millis(500));
        assert_eq!(says(&agent, &runner, "print('well')").await, "well\n");
    }
}

#[tokio::test]
async fn programs_on_a_terminal() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let warm = Warm::new();
    let runner = warm.up(&agent, "").await;
    let size = PtySize {
        rows: 33,
        columns: 99,
    };
    let code = "import os, sys\nprint(os.get_terminal_size(), os.isatty(0), os.tcgetpgrp(0) == \
                os.getpid(), sys.stdout.line_buffering, os.environ['TERM'])\nprint(input('? '))";
    let mut process = agent
        .run_warm(&runner, WarmCommand::code(code).pty(size))
        .await
        .unwrap();
    process
        .take_stdin()
        .unwrap()
        .write_all(b"typed\n")
        .await
        .unwrap();
    let output = tokio::time::timeout(PATIENCE, process.output(10_000))
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("os.terminal_size(columns=99, lines=33) True True True xterm-256color"),
        "{said}"
    );
    assert!(said.ends_with("typed\r\n"), "{said}");
}

/// Code and arguments that a socket does not hold go another way.
#[tokio::test]
async fn long_programs() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let warm = Warm::new();
    let runner = warm.up(&agent, "").await;
    let code = format!(
        "{}print(len(open('/proc/self/environ').read()) > 0)",
        "# x\n".repeat(200_000)
    );
    assert_eq!(says(&agent, &runner, &code).await, "True\n");
    let long = "y".repeat(100_000);
    let program =
        WarmCommand::code("import sys, os; print(len(sys.argv[1]), len(os.environ['LONG']))")
            .arg(&long)
            .env("LONG", &long);
    let said = output(&agent, &runner, program).await;
    assert_eq!(said.stdout, b"100000 100000\n");
    let error = agent
        .run_warm(&runner, WarmCommand::code("#".repeat(1 << 21)))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::ArgumentTooLong));
    // A long warm-up as well.
    drop(agent);
    let agent = loop {
        let agent = test.connect().await;
        if agent.ping().await.is_ok() {
            break agent;
        }
    };
    let setup = format!("{}import json", "# x\n".repeat(100_000));
    let runner = warm.up(&agent, &setup).await;
    assert_eq!(says(&agent, &runner, "print('well')").await, "well\n");
}

#[tokio::test]
async fn runners_that_do_not_get_warm_say_why() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let warm = Warm::new();
    for (setup, expected) in [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("print('so far'); 1 / 0", "so far"),
        ("x = = 1", "SyntaxError"),
        ("import sys; sys.exit('no')", "no"),
        ("import os; os._exit(0)", "exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        // It gets warm, and what it forks does not live to wait for a program.
        (
            "import os; os.register_at_fork(after_in_child=lambda: os._exit(1))",
            "signal 9",
        ),
    ] {
        let error = agent.warm(warm.runner(setup)).await.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Refused(ErrorCode::WarmUp),
            "{error:?}"
        );
        let message = error.source().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(
            !message.contains("runner.py"),
            "a line of the runner's: {message}"
        );
    }
    let error = agent
        .warm(WarmRunner::new("x", ["/no/such"]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    // A runner that speaks no such protocol.
    let error = agent
        .warm(WarmRunner::new("cat", ["cat"]))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::WarmUp));
    let runner = RunnerId::named("python");
    let error = agent
        .run_warm(&runner, WarmCommand::code(""))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotFound));
    assert_eq!(
        error.source().unwrap().to_string(),
        "there is no runner \"python\"; there is none"
    );
    let runner = warm.up(&agent, "").await;
    let error = agent.warm(warm.runner("")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest));
    let program = WarmCommand::code("").current_dir("/no/such");
    let error = agent.run_warm(&runner, program).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoSuchDirectory));
    assert_eq!(says(&agent, &runner, "print('well')").await, "well\n");
}

/// The end of a runner, and of the process that it had ready.
#[tokio::test]
async fn runners_and_their_processes_can_die() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let warm = Warm::new();
        let runner = warm.up(&agent, "import os; os.environ['MARK'] = 'x'").await;
        // The spare's parent is the agent; the runner's as well. It is the one with no children.
        for _ in 0..3 {
            let children = test.children();
            assert_eq!(children.len(), 2, "{}", test.name());
            let spare = *children.iter().max().unwrap();
            text(&agent, sh(format!("kill -9 {spare}"))).await;
            eventually("the dead one is noticed", || {
                !test.children().contains(&spare)
            })
            .await;
            assert_eq!(says(&agent, &runner, "print('well')").await, "well\n");
            eventually("there is another", || test.children().len() == 2).await;
        }
        let leader = *test.children().iter().min().unwrap();
        text(&agent, sh(format!("kill -9 {leader}"))).await;
        eventually("all of it is gone", || test.children().is_empty()).await;
        let error = agent
            .run_warm(&runner, WarmCommand::code(""))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::NotFound));
        let runner = warm.up(&agent, "").await;
        assert_eq!(says(&agent, &runner, "print('again')").await, "again\n");
    }
}

/// A runner is there in a clone, ready, and knows nothing of the host before.
#[tokio::test]
async fn a_clone_has_its_runners() {
    for test in TestAgent::every_kind() {
        let (relay, parent) = Relay::new(&test).await;
        let warm = Warm::new();
        let setup = "import ember_runner, random\n@ember_runner.on_reseed\ndef hook():\n    \
                     global told\n    told = True";
        let runner = warm.up(&parent, setup).await;
        assert_eq!(says(&parent, &runner, "print(1)").await, "1\n");
        let mark = unique_sleep();
        let code = format!("import os; os.execlp('sleep', 'sleep', '{mark}')");
        let _process = parent
            .run_warm(&runner, WarmCommand::code(code))
            .await
            .unwrap();
        eventually("it runs", || processes_with(&mark).len() == 1).await;
        // The spare that was used is replaced before the agent falls silent.
        parent.freeze().await.unwrap();
        assert_eq!(test.children().len(), 3, "{}", test.name());
        let clone = relay.cloned(&parent).await;
        let identity = Identity::random().unwrap().env("FROM", "identity");
        clone.identify(identity).await.unwrap();
        let code = "import os, ember_setup; print(ember_setup.told, os.environ['FROM'])";
        assert_eq!(says(&clone, &runner, code).await, "True identity\n");
        assert_eq!(
            processes_with(&mark).len(),
            1,
            "the parent's program goes on"
        );
        let error = clone.warm(warm.runner("")).await.unwrap_err();
        assert_eq!(
            error.code(),
            Some(ErrorCode::InvalidRequest),
            "there is one"
        );
        assert_eq!(
            text(&clone, Command::from_argv(["echo", "well"])).await,
            "well\n"
        );
    }
}

/// Without a program, nobody's time is spent on another process.
#[tokio::test]
async fn a_program_that_waits_can_be_given_up() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let warm = Warm::new();
    let runner = warm.up(&agent, "").await;
    for _ in 0..10 {
        let all: Vec<_> = (0..5)
            .map(|_| {
                Box::pin(agent.run_warm(&runner, WarmCommand::code("import time; time.sleep(9)")))
            })
            .collect();
        for program in all {
            let _ = tokio::time::timeout(Duration::from_millis(1), program).await;
        }
    }
    assert_eq!(says(&agent, &runner, "print('well')").await, "well\n");
    eventually("all of them are gone", || test.children().len() == 2).await;
}
