//! Clones that copy more memory than their host lets them.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::Duration;

use common::{runtime, template};
use ember_core::{ByteSize, Command, ErrorKind, ForkOptions, Placement, Sandbox};
use ember_leak::LeakGate;

const CAP: ByteSize = ByteSize::mib(48);

/// Writes to so many MiB, as root and beside all that the guest bounds, and keeps them.
fn greedy(mib: u64) -> Command {
    let code = format!(
        "import time\nall = []\nfor _ in range({mib}): all.append(bytearray(b'x' * (1 << 20)))\n\
         time.sleep(1)\nprint('kept')"
    );
    Command::from_argv(["/usr/bin/python3", "-c", &code])
}

fn in_place(placement: Placement) -> ForkOptions {
    ForkOptions::new().placement(placement)
}

/// It is over for `sandbox`, and every call says why.
async fn was_ended(sandbox: &Sandbox) {
    assert!(!sandbox.is_alive());
    let errors = [
        sandbox.ping().await.unwrap_err(),
        sandbox.exec(Command::new("true")).await.unwrap_err(),
        sandbox.pause().await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::MemoryExceeded, "{error:?}");
    }
}

#[test]
fn a_clone_that_copies_more_than_it_may_is_ended() {
    // What the first of all leaves is the process's own: where signals arrive.
    drop(runtime());
    let gate = LeakGate::arm().unwrap();
    let runtime = runtime();
    runtime.block_on(async {
        let template = template("python")
            .memory(ByteSize::mib(160))
            .memory_cap(CAP)
            .cached(false)
            .build()
            .await
            .unwrap();
        for placement in [Placement::InProcess, Placement::Worker] {
            let sandbox = template.fork_with(in_place(placement)).await.unwrap();
            // Who keeps to it lives.
            let out = sandbox.exec(greedy(4)).await.unwrap();
            assert_eq!(out.stdout, "kept\n", "{out:?}");
            let copied = sandbox.copied_bytes().await.unwrap();
            assert!(copied < CAP.as_bytes(), "{copied}");
            // A clone of it may copy as much, for itself.
            let branch = sandbox.fork().await.unwrap();

            let error = sandbox.exec(greedy(64)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MemoryExceeded, "{error:?}");
            let text = error.to_string();
            assert!(text.contains("may copy 48 MiB"), "{text}");
            was_ended(&sandbox).await;
            sandbox.close().await;

            let out = branch.exec(greedy(4)).await.unwrap();
            assert_eq!(out.stdout, "kept\n", "{out:?}");
            let error = branch.exec(greedy(64)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MemoryExceeded, "{error:?}");
            was_ended(&branch).await;
            branch.close().await;

            // Another may more, if that is said.
            let options = in_place(placement).memory_cap(ByteSize::gib(1));
            let free = template.fork_with(options).await.unwrap();
            let out = free.exec(greedy(64)).await.unwrap();
            assert_eq!(out.stdout, "kept\n", "{out:?}");
            assert!(free.copied_bytes().await.unwrap() > CAP.as_bytes());
            free.close().await;
        }
        // One whose guest's kernel has stopped to answer is ended just so, though nothing waits
        // for it.
        let sandbox = template.fork().await.unwrap();
        let begun = sandbox.spawn(greedy(64)).await.unwrap();
        for _ in 0..600 {
            if !sandbox.is_alive() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        was_ended(&sandbox).await;
        drop(begun);
        drop(sandbox);
    });
    drop(runtime);
    gate.check().unwrap();
}
