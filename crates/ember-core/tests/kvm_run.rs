//! Programs and commands in a guest, and how they end.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::{Duration, Instant};

use common::shared;
use ember_core::{Code, Command, ErrorKind, PtySize, Status, Stdin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn shell(script: &str) -> Command {
    Command::from_argv(["sh", "-c", script])
}

#[test]
fn exit_codes_and_signals_are_exact() {
    shared(async |sandbox| {
        for code in [0_u8, 1, 42, 255] {
            let out = sandbox.exec(shell(&format!("exit {code}"))).await.unwrap();
            assert_eq!(out.outcome.status, Status::Exited(code));
            assert_eq!(out.success(), code == 0);
        }
        for signal in [1_u8, 6, 9, 11, 15] {
            let out = sandbox
                .exec(shell(&format!("kill -{signal} $$; sleep 60")))
                .await
                .unwrap();
            assert_eq!(out.outcome.status, Status::Signaled(signal));
        }
    });
}

#[test]
fn a_program_that_fails_is_an_output_and_no_error() {
    shared(async |sandbox| {
        let out = sandbox.run(Code::python("1 / 0")).await.unwrap();
        assert_eq!(out.outcome.status, Status::Exited(1));
        assert!(
            out.stderr.to_string_lossy().contains("ZeroDivisionError"),
            "{out:?}"
        );
        assert_eq!(out.stdout, "");
    });
}

#[test]
fn arguments_environment_user_and_directory_reach_a_program() {
    shared(async |sandbox| {
        let text = "import os, sys; print(sys.argv[1:], os.environ['COLOUR'], os.getuid(), \
                    os.getcwd(), os.environ['HOME'])";
        let code = Code::python(text)
            .args(["a b", "-c", "ü"])
            .env("COLOUR", "red");
        let out = sandbox.run(code.clone()).await.unwrap();
        assert_eq!(
            out.stdout, "['a b', '-c', 'ü'] red 1000 /home/user /home/user\n",
            "{out:?}"
        );
        let out = sandbox
            .run(code.user("root").current_dir("/tmp"))
            .await
            .unwrap();
        assert_eq!(
            out.stdout, "['a b', '-c', 'ü'] red 0 /tmp /root\n",
            "{out:?}"
        );
    });
}

#[test]
fn binary_input_and_output_pass_unchanged() {
    shared(async |sandbox| {
        let bytes: Vec<u8> = (0..1 << 20)
            .map(|n: u32| (n * 7 + (n >> 8)) as u8)
            .collect();
        let echo = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())";
        let out = sandbox
            .run(Code::python(echo).stdin(bytes.clone()))
            .await
            .unwrap();
        assert!(out.stdout == bytes[..], "{} bytes", out.stdout.len());
        assert!(!out.truncated);
        // A program need not read what it is given.
        let out = sandbox
            .run(Code::python("print(1)").stdin(bytes))
            .await
            .unwrap();
        assert_eq!(out.stdout, "1\n", "{out:?}");
    });
}

#[test]
fn without_input_there_is_an_end_and_no_waiting() {
    shared(async |sandbox| {
        let out = sandbox
            .run(Code::python("print(repr(input()))"))
            .await
            .unwrap();
        assert!(out.stderr.to_string_lossy().contains("EOFError"), "{out:?}");
        let out = sandbox
            .exec(Command::new("cat").stdin(Stdin::Piped))
            .await
            .unwrap();
        assert!(out.success(), "{out:?}");
    });
}

#[test]
fn a_program_may_be_a_file_and_longer_than_an_argument_may_be() {
    shared(async |sandbox| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program.py");
        std::fs::write(&path, "import sys\nprint(sys.argv)\nraise SystemExit(3)\n").unwrap();
        let out = sandbox.run(Code::file(&path).arg("x")).await.unwrap();
        assert_eq!(out.stdout, "['/home/user/program.py', 'x']\n", "{out:?}");
        assert_eq!(out.outcome.status, Status::Exited(3));

        let long = format!("{}\nprint(len(open(__file__).read()))", "#".repeat(1 << 20));
        let out = sandbox.run(Code::python(long.clone())).await.unwrap();
        assert_eq!(
            out.stdout,
            format!("{}\n", long.len()).as_str(),
            "{}",
            out.stderr
        );
    });
}

#[test]
fn much_output_is_kept_up_to_the_limit_and_said_to_be_cut() {
    shared(async |sandbox| {
        let process = sandbox
            .spawn(shell("head -c 20000000 /dev/zero; echo end >&2"))
            .await;
        let out = process.unwrap().output(1_000_000).await.unwrap();
        assert_eq!(out.stdout.len(), 1_000_000);
        assert!(out.truncated);
        assert_eq!(out.stderr, "end\n");
        assert!(
            out.success(),
            "cut output must not end the command: {:?}",
            out.outcome
        );
    });
}

#[test]
fn streams_flow_while_a_command_runs() {
    shared(async |sandbox| {
        let mut process = sandbox
            .spawn(Command::new("cat").stdin(Stdin::Piped))
            .await
            .unwrap();
        let mut stdin = process.take_stdin().unwrap();
        let mut stdout = process.take_stdout().unwrap();
        let mut buffer = [0; 16];
        for word in [&b"one"[..], b"two", b"three"] {
            stdin.write_all(word).await.unwrap();
            let count = stdout.read(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..count], word);
        }
        drop(stdin);
        assert_eq!(stdout.read(&mut buffer).await.unwrap(), 0);
        assert!(process.wait().await.unwrap().success());
    });
}

#[test]
fn many_commands_run_at_once_on_one_guest() {
    shared(async |sandbox| {
        let commands = (0..20).map(|number| {
            tokio::spawn(async move {
                let out = sandbox
                    .exec(shell(&format!("sleep 0.2; echo {number}")))
                    .await;
                assert_eq!(out.unwrap().stdout, format!("{number}\n").as_str());
            })
        });
        for command in commands.collect::<Vec<_>>() {
            command.await.unwrap();
        }
    });
}

#[test]
fn a_timeout_ends_all_that_was_started_and_says_so() {
    shared(async |sandbox| {
        let begun = Instant::now();
        let command = shell("sleep 1000 & setsid sleep 1001 & echo on; sleep 1002");
        let out = sandbox
            .exec(command.timeout(Duration::from_secs(1)))
            .await
            .unwrap();
        assert!(out.outcome.timed_out(), "{out:?}");
        assert!(!out.success());
        assert_eq!(out.stdout, "on\n");
        assert!(begun.elapsed() < Duration::from_secs(30));
        let out = sandbox
            .exec(shell("ps ax | grep '[s]leep 100'"))
            .await
            .unwrap();
        assert_eq!(out.stdout, "", "still there: {out:?}");

        let code = Code::python("while True: pass").timeout(Duration::from_secs(1));
        assert!(sandbox.run(code).await.unwrap().outcome.timed_out());
    });
}

#[test]
fn a_process_is_signalled_killed_and_ended_by_dropping_it() {
    shared(async |sandbox| {
        let mut process = sandbox
            .spawn(Command::from_argv(["sleep", "2001"]))
            .await
            .unwrap();
        process.signal(15).unwrap();
        assert_eq!(process.wait().await.unwrap().status, Status::Signaled(15));
        assert_eq!(
            process.signal(0).unwrap_err().kind(),
            ErrorKind::InvalidRequest
        );

        let mut process = sandbox
            .spawn(Command::from_argv(["sleep", "2002"]))
            .await
            .unwrap();
        process.kill();
        assert_eq!(process.wait().await.unwrap().status, Status::Signaled(9));

        drop(
            sandbox
                .spawn(Command::from_argv(["sleep", "2003"]))
                .await
                .unwrap(),
        );
        let gone = shell(
            "for n in $(seq 100); do pgrep -f 'sleep 200[3]' || exit 0; sleep 0.1; \
                          done; exit 1",
        );
        let out = sandbox.exec(gone).await.unwrap();
        assert!(out.success(), "{out:?}");
    });
}

#[test]
fn what_cannot_be_run_is_refused_with_its_reason() {
    shared(async |sandbox| {
        let long = "x".repeat(200_000);
        for (command, kind, part) in [
            (
                Command::new("no-such-program"),
                ErrorKind::NotFound,
                "no-such-program",
            ),
            (
                Command::new("/etc/passwd"),
                ErrorKind::NotExecutable,
                "/etc/passwd",
            ),
            (Command::new(""), ErrorKind::InvalidRequest, "empty"),
            (
                Command::from_argv::<&str>([]),
                ErrorKind::InvalidRequest,
                "empty",
            ),
            (
                Command::new("echo").arg(long),
                ErrorKind::InvalidRequest,
                "200000",
            ),
            (
                Command::new("id").user("nobody-here"),
                ErrorKind::InvalidRequest,
                "nobody-here",
            ),
            (
                Command::new("id").current_dir("/nowhere"),
                ErrorKind::InvalidRequest,
                "/nowhere",
            ),
        ] {
            let error = sandbox.exec(command).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(error.to_string().contains(part), "{error}");
        }
        let error = sandbox.run(Code::new("cobol", "")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("python 3"), "{error}");
        // The guest is none the worse.
        sandbox.ping().await.unwrap();
    });
}

#[test]
fn a_terminal_is_one_and_can_be_resized() {
    shared(async |sandbox| {
        let size = |rows, columns| PtySize { rows, columns };
        let script = "tty; stty size; read line; stty size; echo \"got $line\"; exit 7";
        let mut process = sandbox
            .spawn(shell(script).pty(size(30, 100)))
            .await
            .unwrap();
        let mut stdin = process.take_stdin().unwrap();
        let mut stdout = process.take_stdout().unwrap();
        let mut seen = String::new();
        let mut buffer = [0; 256];
        while !seen.contains("30 100") {
            let count = stdout.read(&mut buffer).await.unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        assert!(seen.starts_with("/dev/pts/"), "{seen}");
        process.resize(size(40, 120));
        stdin.write_all(b"hello\r").await.unwrap();
        let (outcome, rest) = tokio::join!(process.wait(), async {
            let mut rest = Vec::new();
            stdout.read_to_end(&mut rest).await.unwrap();
            String::from_utf8_lossy(&rest).into_owned()
        });
        assert_eq!(outcome.unwrap().status, Status::Exited(7));
        assert!(
            rest.contains("40 120") && rest.contains("got hello"),
            "{rest}"
        );
    });
}

#[test]
fn the_usage_of_a_program_is_told() {
    shared(async |sandbox| {
        let text = "import time\nblock = bytearray(50_000_000)\nend = time.process_time() + 0.2\n\
                    while time.process_time() < end: pass";
        let out = sandbox.run(Code::python(text)).await.unwrap();
        let outcome = &out.outcome;
        assert!(outcome.peak_memory > 50_000_000, "{outcome:?}");
        assert!(
            outcome.user + outcome.system >= Duration::from_millis(200),
            "{outcome:?}"
        );
        assert!(outcome.wall >= Duration::from_millis(200), "{outcome:?}");
    });
}
