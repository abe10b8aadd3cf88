//! How sandboxes end: closed, dropped, died, hung.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::{Duration, Instant};

use common::{builder, runtime};
use ember_core::{Code, Command, ErrorKind};
use ember_leak::LeakGate;
use tokio::io::AsyncReadExt;

/// Calls `reboot(2)` with `command`, as root, which a program may not.
fn reboot(command: u32) -> Command {
    let code =
        format!("import ctypes, time; ctypes.CDLL(None).reboot({command:#x}); time.sleep(600)");
    Command::from_argv(["/usr/bin/python3", "-c", &code])
}

const POWER_OFF: u32 = 0x4321_fedc;
const RESTART: u32 = 0x0123_4567;
const HALT: u32 = 0xcdef_0123;

#[test]
fn a_guest_that_dies_in_a_call_is_an_error_that_says_how() {
    runtime().block_on(async {
        for (command, how) in [(POWER_OFF, "powered off"), (RESTART, "reset")] {
            let sandbox = builder().boot().await.unwrap();
            let mut other = sandbox
                .spawn(Command::from_argv(["sleep", "600"]))
                .await
                .unwrap();
            let mut output = other.take_stdout().unwrap();

            let error = sandbox.exec(reboot(command)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::GuestDied, "{error:?}");
            assert!(error.to_string().contains(how), "{error}");

            // Whatever else was under way ends too, and so does whatever is asked from now on.
            assert!(output.read(&mut [0; 16]).await.is_err());
            assert_eq!(other.wait().await.unwrap_err().kind(), ErrorKind::GuestDied);
            let error = sandbox.ping().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::GuestDied);
            let error = sandbox.exec(Command::new("true")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::GuestDied);
            sandbox.close().await;
        }
    });
}

#[test]
fn a_guest_that_hangs_is_stopped_from_outside() {
    runtime().block_on(async {
        let sandbox = builder().boot().await.unwrap();
        let begun = Instant::now();
        // Long enough to get to the halt.
        let limit = Duration::from_secs(10);
        let halt = reboot(HALT).timeout(limit);
        let error = sandbox.exec(halt).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GuestDied, "{error:?}");
        assert!(begun.elapsed() >= limit);
        let error = sandbox.ping().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GuestDied, "{error:?}");
        sandbox.close().await;
    });
}

#[test]
fn a_closed_sandbox_says_so_to_its_processes() {
    runtime().block_on(async {
        let sandbox = builder().boot().await.unwrap();
        let mut process = sandbox
            .spawn(Command::from_argv(["sleep", "600"]))
            .await
            .unwrap();
        sandbox.close().await;
        let error = process.wait().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "{error:?}");
    });
}

#[test]
fn closing_leaves_nothing_behind() {
    ember_leak::isolated!(|| {
        let once = || {
            let runtime = runtime();
            runtime.block_on(async {
                let sandbox = builder().vcpus(2).boot().await.unwrap();
                let out = sandbox.run(Code::python("print(1)")).await.unwrap();
                assert_eq!(out.stdout, "1\n");
                sandbox.close().await;
            });
        };
        // What the first of all leaves is the process's own: a signal handler, an allocator's arenas.
        once();
        let gate = LeakGate::arm().unwrap();
        once();
        gate.check().unwrap();
    });
}

#[test]
fn dropping_without_closing_leaves_nothing_behind() {
    ember_leak::isolated!(|| {
        runtime().block_on(async { builder().boot().await.unwrap().close().await });
        let gate = LeakGate::arm().unwrap();
        let runtime = runtime();
        runtime.block_on(async {
            // With everything under way that can be.
            let sandbox = builder().vcpus(2).boot().await.unwrap();
            let process = sandbox.spawn(Command::new("yes")).await.unwrap();
            let running = tokio::spawn(process.output(1 << 20));
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(sandbox);
            assert_eq!(
                running.await.unwrap().unwrap_err().kind(),
                ErrorKind::Closed
            );

            // In the middle of booting.
            let booting = tokio::spawn(builder().boot());
            tokio::time::sleep(Duration::from_millis(300)).await;
            booting.abort();
            let _ = booting.await;
        });
        drop(runtime);
        gate.check().unwrap();
    });
}

#[test]
fn a_failed_boot_leaves_nothing_behind() {
    ember_leak::isolated!(|| {
        runtime().block_on(async { builder().boot().await.unwrap().close().await });
        let gate = LeakGate::arm().unwrap();
        let once = || {
            runtime().block_on(async {
                let late = builder().boot_timeout(Duration::from_millis(100));
                assert_eq!(late.boot().await.unwrap_err().kind(), ErrorKind::BootFailed);
            });
        };
        once();
        gate.check().unwrap();
    });
}
