//! What a command sees and how it ends.

use std::time::Duration;

use ember_guest::host::{Command, Stdin};
use ember_guest::protocol::{ErrorCode, Limits, Status};
use nix::unistd::Uid;

use crate::common::{TestAgent, output, sh, spawn, text};

#[tokio::test]
async fn every_exit_code_is_exact() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    for code in 0..=255 {
        let outcome = output(&agent, sh(format!("exit {code}"))).await.outcome;
        assert_eq!(outcome.status, Status::Exited(code));
        assert_eq!(outcome.success(), code == 0);
        assert!(!outcome.timed_out() && !outcome.out_of_memory());
    }
}

#[tokio::test]
async fn every_signal_is_exact() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    // Those that end a process unless it says otherwise (signal(7)): all but those that stop it,
    // those that do nothing, and the two that the C library keeps for itself.
    let deadly =
        (1..=64).filter(|number| ![17, 18, 19, 20, 21, 22, 23, 28, 32, 33].contains(number));
    for number in deadly {
        let outcome = output(&agent, sh(format!("ulimit -c 0; kill -{number} $$")))
            .await
            .outcome;
        assert_eq!(outcome.status, Status::Signaled(number));
        assert_eq!(outcome.status.shell_code(), 128 + i32::from(number));
    }
}

#[tokio::test]
async fn what_a_command_uses_is_told_until_it_ends() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let mut process = spawn(&agent, sh("echo 12345; read -r line").stdin(Stdin::Piped)).await;
        let control = process.control();
        let mut usage = control.usage().await.unwrap().unwrap();
        while usage.output < 6 {
            let next = control.usage().await.unwrap().unwrap();
            assert!(next.wall >= usage.wall && next.user >= usage.user);
            usage = next;
        }
        assert_eq!(usage.output, 6, "{}", test.name());
        // Many at once have an answer each, and none after its end.
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let control = control.clone();
            waiting.spawn(async move { control.usage().await.unwrap().is_some() });
        }
        assert!(waiting.join_all().await.into_iter().all(|told| told));
        let outcome = process.wait().await.unwrap();
        assert!(outcome.wall >= usage.wall);
        assert_eq!(control.usage().await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_signal_reaches_the_whole_process_group() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    for number in [2, 15, 9, 34, 64] {
        let mut process = spawn(&agent, sh("sleep 1000 | sleep 1000")).await;
        // Not before the shell has started them.
        crate::common::eventually("the pipeline runs", || {
            crate::common::children(process.pid()).len() == 2
        })
        .await;
        process.signal(number).unwrap();
        let outcome = process.wait().await.unwrap();
        assert_eq!(outcome.status, Status::Signaled(number as u8));
    }
    let process = spawn(&agent, sh("sleep 1000")).await;
    for number in [0, -1, 65, 300] {
        assert_eq!(
            process.signal(number).unwrap_err().code(),
            Some(ErrorCode::InvalidRequest)
        );
    }
}

/// No signal is ignored or blocked in a command, whatever the agent does with its own.
#[tokio::test]
async fn commands_start_with_default_signals() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let status = text(&agent, Command::from_argv(["cat", "/proc/self/status"])).await;
    for field in ["SigBlk", "SigIgn", "SigCgt", "SigPnd"] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
}

/// Nothing of the agent's leaks into commands.
#[tokio::test]
async fn commands_inherit_three_descriptors() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let _other = spawn(&agent, sh("sleep 1000")).await;
    let list = text(&agent, Command::from_argv(["ls", "/proc/self/fd"])).await;
    // The fourth is the directory that `ls` reads.
    assert_eq!(list, "0\n1\n2\n3\n");
}

#[tokio::test]
async fn usage_is_measured() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let idle = output(&agent, sh("sleep 0.2")).await.outcome;
    assert!(idle.wall >= Duration::from_millis(200), "{idle:?}");
    assert!(
        idle.user + idle.system < Duration::from_millis(200),
        "{idle:?}"
    );
    assert!(
        idle.peak_memory > 100 * 1024 && idle.peak_memory < 1 << 30,
        "{idle:?}"
    );
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    let busy = output(&agent, sh(script)).await.outcome;
    assert!(busy.user > Duration::from_millis(20), "{busy:?}");
    assert!(busy.wall >= Duration::from_millis(20), "{busy:?}");
}

#[tokio::test]
async fn the_environment_is_what_was_asked_for() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let env = Command::new("env")
        .env("B", "2")
        .env("B", "3")
        .env("PATH", "/usr/bin:/bin");
    let names = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split('=').next().unwrap().to_owned())
            .collect()
    };
    let all = text(&agent, env.clone()).await;
    assert_eq!(names(&all), ["B", "HOME", "LOGNAME", "PATH", "USER"]);
    assert!(
        all.contains("B=3\n") && all.contains("PATH=/usr/bin:/bin\n"),
        "{all}"
    );
    // Without a PATH the default one finds the program.
    let cleared = Command::new("env").env_clear().env("A", "x=y\nz");
    assert_eq!(text(&agent, cleared).await, "A=x=y\nz\n");
}

#[tokio::test]
async fn the_directory_is_what_was_asked_for() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    assert_eq!(text(&agent, Command::new("pwd")).await, "/\n");
    assert_eq!(
        text(&agent, Command::new("pwd").current_dir("/usr/bin")).await,
        "/usr/bin\n"
    );
    // A relative program is relative to it.
    let relative = Command::new("bin/env").arg("pwd").current_dir("/usr");
    assert_eq!(text(&agent, relative).await, "/usr\n");
}

/// All that Linux takes by default, which is a quarter of eight MiB of stack, less the pointers.
#[tokio::test]
async fn long_arguments_arrive() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let command = sh("echo $# ${#1}")
        .arg("sh")
        .args(vec!["x".repeat(100_000); 18]);
    assert_eq!(text(&agent, command).await, "18 100000\n");
    let longest = sh("echo ${#1}").arg("sh").arg("x".repeat(131_071));
    assert_eq!(text(&agent, longest).await, "131071\n");
    let many = sh("echo $#").arg("sh").args(vec![""; 60_000]);
    assert_eq!(text(&agent, many).await, "60000\n");
}

#[tokio::test]
async fn commands_run_as_their_user() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let id = |user: &str| sh("echo $(id -u):$(id -g):$(id -G) $HOME $USER").user(user);
    if Uid::effective().is_root() {
        assert_eq!(text(&agent, id("")).await, "0:0:0 /root root\n");
        assert_eq!(text(&agent, id("daemon")).await, "1:1:1 /usr/sbin daemon\n");
        assert_eq!(text(&agent, id("1")).await, "1:1:1 /usr/sbin daemon\n");
        assert_eq!(
            text(&agent, id("daemon:tty")).await,
            "1:5:5 /usr/sbin daemon\n"
        );
        assert_eq!(
            text(&agent, id("54321")).await,
            "54321:54321:54321 / 54321\n"
        );
        assert_eq!(text(&agent, id("54321:0")).await, "54321:0:0 / 54321\n");
        // A directory or program that is root's alone.
        let error = agent
            .spawn(id("daemon").current_dir("/root"))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PermissionDenied));
    } else {
        let error = agent.spawn(id("daemon")).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::PermissionDenied));
    }
}

#[tokio::test]
async fn resource_limits_hold() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let none = Limits::default();

    let files = Limits {
        open_files: Some(50),
        ..none
    };
    assert_eq!(
        text(&agent, sh("ulimit -Sn; ulimit -Hn").limits(files)).await,
        "50\n50\n"
    );

    let size = Limits {
        file_size: Some(1000),
        ..none
    };
    let directory = tempfile::tempdir().unwrap();
    let write = sh("exec head -c 5000 /dev/zero > big")
        .current_dir(directory.path())
        .limits(size);
    let outcome = output(&agent, write).await.outcome;
    assert_eq!(outcome.status, Status::Signaled(25), "SIGXFSZ");
    assert_eq!(
        std::fs::metadata(directory.path().join("big"))
            .unwrap()
            .len(),
        1000
    );

    let cpu = Limits {
        cpu_time: Some(Duration::from_secs(1)),
        ..none
    };
    let outcome = output(&agent, sh("while :; do :; done").limits(cpu))
        .await
        .outcome;
    assert_eq!(
        outcome.status,
        Status::Signaled(9),
        "soft and hard limit are one"
    );
    assert!(!outcome.timed_out());

    let memory = Limits {
        address_space: Some(64 << 20),
        ..none
    };
    let outcome = output(
        &agent,
        sh("x=$(head -c 200000000 /dev/zero | tr '\\0' x)").limits(memory),
    )
    .await
    .outcome;
    assert!(!outcome.success());
}

/// With the controllers of cgroup2, as in a guest and in the lab.
#[tokio::test]
async fn limits_of_a_whole_tree_hold_or_are_refused() {
    for test in TestAgent::every_kind() {
        let agent = test.connect().await;
        let memory = Limits {
            memory: Some(32 << 20),
            ..Limits::default()
        };
        // The shell holds what the pipeline writes.
        let hungry = sh("x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo alive");
        match agent.spawn(hungry.limits(memory)).await {
            Err(error) => {
                assert_eq!(error.code(), Some(ErrorCode::Unsupported), "{error:?}");
                eprintln!("no limits for memory and processes {}", test.name());
            }
            Ok(mut process) => {
                let outcome = process.wait().await.unwrap();
                assert!(outcome.out_of_memory(), "{outcome:?}");
                assert_eq!(outcome.status, Status::Signaled(9));
                assert!(!outcome.timed_out());
                let modest = output(&agent, sh("echo alive").limits(memory)).await;
                assert!(modest.outcome.success() && !modest.outcome.out_of_memory());

                let processes = Limits {
                    processes: Some(8),
                    ..Limits::default()
                };
                let bomb = "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.1 & done; wait; echo all";
                let result = output(&agent, sh(bomb).limits(processes)).await;
                assert!(!result.outcome.success(), "{result:?}");
                let few = "for i in 1 2 3 4 5 6; do sleep 0.1 & done; wait; echo all";
                let result = output(&agent, sh(few).limits(processes)).await;
                assert_eq!(result.stdout, b"all\n");
            }
        }
    }
}

#[tokio::test]
async fn power_off_ends_the_agent() {
    let mut test = TestAgent::start();
    let agent = test.connect().await;
    let mark = crate::common::unique_sleep();
    let _process = spawn(&agent, sh(format!("sleep {mark}"))).await;
    agent.power_off().await.unwrap();
    let closed = agent.closed().await;
    assert!(
        matches!(closed, ember_guest::host::Closed::PoweredOff),
        "{closed:?}"
    );
    assert!(test.wait().success());
    assert!(crate::common::processes_with(&mark).is_empty());
    assert!(!test.socket().exists());
}
