//! Commands that cannot be: each gets its own error, and the agent is as well as before.

use std::error::Error as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use ember_guest::host::{Agent, Command, ErrorKind};
use ember_guest::protocol::{ErrorCode, MAX_REQUESTS, PtySize};

use crate::common::{TestAgent, sh, spawn, text};

/// The error of a command, with the message of its cause.
async fn refused(agent: &Agent, command: Command) -> (ErrorCode, String) {
    let error = agent.spawn(command).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot run "), "{error}");
    let ErrorKind::Refused(code) = error.kind() else {
        panic!("{error:?}")
    };
    let source = error.source().unwrap().to_string();
    assert_eq!(
        text(agent, Command::from_argv(["echo", "well"])).await,
        "well\n"
    );
    (code, source)
}

#[tokio::test]
async fn an_empty_command() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    for command in [Command::from_argv(Vec::<String>::new()), Command::new("")] {
        let (code, message) = refused(&agent, command).await;
        assert_eq!(code, ErrorCode::EmptyCommand);
        assert_eq!(
            message,
            "the command is empty: its first argument must name a program"
        );
    }
}

#[tokio::test]
async fn programs_that_are_not_there() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let (code, message) = refused(&agent, Command::new("no-such-program")).await;
    assert_eq!(code, ErrorCode::NotFound);
    assert_eq!(
        message,
        "there is no program \"no-such-program\" in the PATH of the command"
    );
    for path in ["/no/such/program", "./no-such-program", "/bin/sh/no"] {
        let (code, message) = refused(&agent, Command::new(path)).await;
        assert_eq!(code, ErrorCode::NotFound);
        assert_eq!(message, format!("there is no program {path:?}"));
    }
    let elsewhere = Command::new("sh").env("PATH", "/no/such:/directory");
    assert_eq!(refused(&agent, elsewhere).await.0, ErrorCode::NotFound);
}

#[tokio::test]
async fn files_that_are_not_programs() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let (code, message) = refused(&agent, Command::new(&plain)).await;
    assert_eq!(code, ErrorCode::PermissionDenied);
    assert!(
        message.contains("cannot be executed by the user"),
        "{message}"
    );
    let search = Command::new("plain").env("PATH", directory.path());
    assert_eq!(refused(&agent, search).await.0, ErrorCode::PermissionDenied);

    let (code, _) = refused(&agent, Command::new(directory.path())).await;
    assert_eq!(code, ErrorCode::PermissionDenied);

    let (code, message) = refused(&agent, Command::new(file("text", "hello\n", 0o755))).await;
    assert_eq!(code, ErrorCode::NotExecutable);
    assert!(message.contains("#! line"), "{message}");

    let script = file("script", "#!/no/such/interpreter\n", 0o755);
    let (code, message) = refused(&agent, Command::new(script)).await;
    assert_eq!(code, ErrorCode::NotExecutable);
    assert!(
        message.contains("interpreter or loader that is not there"),
        "{message}"
    );
}

#[tokio::test]
async fn arguments_that_are_too_long() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let (code, message) = refused(&agent, sh(":").arg("x".repeat(1_000_000))).await;
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert!(
        message.starts_with("argument 3 has 1000000 bytes; Linux takes 131071"),
        "{message}"
    );
    let (code, message) = refused(&agent, sh(":").args(vec!["x".repeat(100_000); 30])).await;
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert!(message.contains("the limit is 2097152"), "{message}");
    // Within the protocol's limit, and over the kernel's, which counts the pointers too.
    let (code, message) = refused(&agent, sh(":").args(vec!["x".repeat(30); 61_000])).await;
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert!(message.contains("ARG_MAX"), "{message}");
}

#[tokio::test]
async fn directories_and_users_that_are_not_there() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    for directory in ["/no/such", "/bin/sh"] {
        let (code, message) = refused(&agent, Command::new("true").current_dir(directory)).await;
        assert_eq!(code, ErrorCode::NoSuchDirectory);
        assert!(message.contains(directory), "{message}");
    }
    for user in ["no-such-user", "root:no-such-group", "4294967295"] {
        let (code, message) = refused(&agent, Command::new("true").user(user)).await;
        assert_eq!(code, ErrorCode::NoSuchUser);
        assert!(message.contains("is not in the guest's /etc/"), "{message}");
    }
}

#[tokio::test]
async fn what_no_command_can_have() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    for command in [
        sh("a\0b"),
        sh(":").env("A=B", "c"),
        sh(":").env("A", "\0"),
        sh(":").current_dir("x".repeat(5000)),
        sh(":").pty(PtySize {
            rows: 0,
            columns: 0,
        }),
    ] {
        assert_eq!(refused(&agent, command).await.0, ErrorCode::InvalidRequest);
    }
}

#[tokio::test]
async fn more_commands_than_the_agent_takes() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    let mut running = Vec::new();
    for _ in 0..MAX_REQUESTS {
        running.push(spawn(&agent, Command::from_argv(["sleep", "1000"])).await);
    }
    let error = agent.spawn(Command::new("true")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TooManyRequests));
    agent.ping().await.unwrap();
    let mut last = running.pop().unwrap();
    last.kill();
    last.wait().await.unwrap();
    spawn(&agent, Command::new("true"))
        .await
        .wait()
        .await
        .unwrap();
}
