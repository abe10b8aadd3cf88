//! Guests that come up, in every shape, and guests that do not.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{builder, kernels, runtime};
use ember_core::{ByteSize, Code, Command, ErrorKind, Image, Kernel, Sandbox, Status};

/// Boots a guest and looks from the inside whether it is what was asked for.
async fn boots(kernel: Kernel, vcpus: u8) {
    let sandbox = builder().kernel(kernel).vcpus(vcpus).boot().await.unwrap();
    sandbox.ping().await.unwrap();

    let out = sandbox.run(Code::python("print(6 * 7)")).await.unwrap();
    assert_eq!(out.stdout, "42\n", "{out:?}");
    assert!(out.success(), "{out:?}");

    let inside = "import os; print(os.cpu_count(), os.getuid(), os.getcwd())";
    let out = sandbox.run(Code::python(inside)).await.unwrap();
    assert_eq!(out.stdout, format!("{vcpus} 1000 /home/user\n").as_str());

    // Every processor does work.
    let all = format!(
        "import os\nfor cpu in range({vcpus}):\n    os.sched_setaffinity(0, {{cpu}})\n    \
         print(cpu, sum(range(1000)))"
    );
    let out = sandbox.run(Code::python(all)).await.unwrap();
    assert_eq!(
        out.stdout.to_string_lossy().lines().count(),
        usize::from(vcpus),
        "{out:?}"
    );

    let out = sandbox.exec(Command::new("id").arg("-un")).await.unwrap();
    assert_eq!(out.stdout, "root\n", "{out:?}");
    commands_end_as_they_should(&sandbox).await;
    streams_are_whole(&sandbox).await;
    sandbox.close().await;
}

/// What `kvm_run` shows at length of one guest.
async fn commands_end_as_they_should(sandbox: &Sandbox) {
    let shell = |script: &str| Command::from_argv(["sh", "-c", script]);
    for (script, status) in [
        ("exit 0", Status::Exited(0)),
        ("exit 42", Status::Exited(42)),
        ("kill -9 $$; sleep 60", Status::Signaled(9)),
    ] {
        let out = sandbox.exec(shell(script)).await.unwrap();
        assert_eq!(out.outcome.status, status, "{script}");
    }
    let endless = shell("sleep 1000 & setsid sleep 1001 & sleep 1002");
    let out = sandbox
        .exec(endless.timeout(Duration::from_millis(300)))
        .await
        .unwrap();
    assert!(out.outcome.timed_out(), "{out:?}");
    let out = sandbox
        .exec(shell("ps ax | grep '[s]leep 100'"))
        .await
        .unwrap();
    assert_eq!(out.stdout, "", "still there: {out:?}");
    let error = sandbox.exec(Command::new("no-such")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// Many commands at once, which echo as many bytes as fill every buffer on the way.
async fn streams_are_whole(sandbox: &Sandbox) {
    let bytes: Vec<u8> = (0..1 << 20)
        .map(|n: u32| (n * 7 + (n >> 8)) as u8)
        .collect();
    let echo = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())";
    let echoed = sandbox.run(Code::python(echo).stdin(bytes.clone()));
    let numbers = async {
        for number in 0..4_u8 {
            let script = format!("echo {number}; exit {number}");
            let out = sandbox
                .exec(Command::from_argv(["sh", "-c", &script]))
                .await
                .unwrap();
            assert_eq!(out.stdout, format!("{number}\n").as_str());
            assert_eq!(out.outcome.status, Status::Exited(number));
        }
    };
    let (out, ()) = tokio::join!(echoed, numbers);
    let out = out.unwrap();
    assert!(out.stdout == bytes[..], "{} bytes", out.stdout.len());
}

#[test]
fn the_stock_kernel_boots_with_1_2_and_4_processors() {
    for vcpus in [1, 2, 4] {
        runtime().block_on(boots(Kernel::stock(), vcpus));
    }
}

#[test]
fn the_tuned_kernel_boots_with_1_2_and_4_processors() {
    for vcpus in [1, 2, 4] {
        runtime().block_on(boots(Kernel::tuned(), vcpus));
    }
}

#[test]
fn a_guest_has_the_memory_that_was_asked_for() {
    runtime().block_on(async {
        for size in [ByteSize::mib(128), ByteSize::mib(1024)] {
            let sandbox = builder().memory(size).boot().await.unwrap();
            let out = sandbox
                .exec(Command::from_argv([
                    "awk",
                    "/MemTotal/ { print $2 }",
                    "/proc/meminfo",
                ]))
                .await
                .unwrap();
            let kib: u64 = out.stdout.to_string_lossy().trim().parse().unwrap();
            let asked = size.as_bytes() >> 10;
            assert!(kib < asked && kib > asked * 3 / 4, "{kib} of {asked} KiB");
            sandbox.close().await;
        }
    });
}

#[test]
fn the_root_is_writable_and_what_is_written_dies_with_the_guest() {
    runtime().block_on(async {
        let shell = |script: &str| Command::from_argv(["sh", "-c", script]);
        let sandbox = builder().boot().await.unwrap();
        let out = sandbox
            .exec(shell(
                "echo new > /etc/hostname.new && rm /usr/bin/awk && cat /etc/hostname.new",
            ))
            .await
            .unwrap();
        assert_eq!(out.stdout, "new\n", "{out:?}");
        sandbox.close().await;

        let sandbox = builder().boot().await.unwrap();
        let out = sandbox
            .exec(shell("ls /etc/hostname.new; awk 'BEGIN { print 1 }'"))
            .await
            .unwrap();
        assert_eq!(out.stdout, "1\n", "{out:?}");
        sandbox.close().await;
    });
}

#[test]
fn the_console_is_handed_on_as_it_comes() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    runtime().block_on(async {
        let sandbox = builder()
            .console(move |bytes| sink.lock().unwrap().extend_from_slice(bytes))
            .boot()
            .await
            .unwrap();
        sandbox.close().await;
    });
    let seen = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    assert!(seen.contains("Linux version"), "{seen}");
}

#[test]
fn a_root_that_is_no_file_system_is_a_boot_failure_that_shows_the_console() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    fs::write(&image, vec![0x5a; 1 << 20]).unwrap();
    let error = runtime().block_on(async {
        Sandbox::builder(Image::file(&image))
            .memory(ByteSize::mib(192))
            .boot()
            .await
            .unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::BootFailed, "{error}");
    let text = error.to_string();
    assert!(text.contains("console ended with:"), "{text}");
    assert!(text.contains("ember-agent:"), "{text}");
}

#[test]
fn a_guest_that_is_late_is_given_up() {
    let error = runtime().block_on(async {
        builder()
            .boot_timeout(Duration::from_millis(1))
            .boot()
            .await
            .unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::BootFailed, "{error}");
    assert!(error.to_string().contains("0.001 s"), "{error}");
}

#[test]
fn what_cannot_be_built_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let no_kernel = directory.path().join("no-kernel");
    fs::write(&no_kernel, "#!/bin/sh\n").unwrap();
    let missing = directory.path().join("missing");
    let cases = [
        (
            builder().memory(ByteSize::mib(1)),
            ErrorKind::InvalidRequest,
            "MiB",
        ),
        (
            builder().memory(ByteSize::bytes((128 << 20) + 1)),
            ErrorKind::InvalidRequest,
            "4096",
        ),
        (builder().vcpus(0), ErrorKind::InvalidRequest, "vCPU"),
        (builder().vcpus(200), ErrorKind::InvalidRequest, "vCPU"),
        (
            builder().kernel(Kernel::file(&no_kernel)),
            ErrorKind::InvalidRequest,
            "no-kernel",
        ),
        (
            builder().kernel(Kernel::file(&missing)),
            ErrorKind::Unprepared,
            "missing",
        ),
        (
            Sandbox::builder(Image::file(&missing)),
            ErrorKind::Unprepared,
            "missing",
        ),
        (
            Sandbox::builder(Image::pack("cobol")),
            ErrorKind::InvalidRequest,
            "python",
        ),
    ];
    let runtime = runtime();
    for (builder, kind, part) in cases {
        let shown = format!("{builder:?}");
        let error = runtime.block_on(builder.boot()).unwrap_err();
        assert_eq!(error.kind(), kind, "{shown}: {error:?}");
        assert!(format!("{error:?}").contains(part), "{shown}: {error:?}");
    }
}

#[test]
fn the_two_kernels_are_two() {
    // Both are there, and neither stands in for the other.
    let runtime = runtime();
    let mut releases = Vec::new();
    for (name, kernel) in kernels() {
        let release = runtime.block_on(async {
            let sandbox = builder().kernel(kernel).boot().await.unwrap();
            let out = sandbox.exec(Command::new("uname").arg("-r")).await.unwrap();
            let modules = sandbox
                .exec(Command::from_argv(["sh", "-c", "wc -l < /proc/modules"]))
                .await
                .unwrap();
            sandbox.close().await;
            (
                name,
                out.stdout.to_string_lossy().into_owned(),
                modules.success(),
            )
        });
        releases.push(release);
    }
    assert_ne!(releases[0].1, releases[1].1, "{releases:?}");
}
