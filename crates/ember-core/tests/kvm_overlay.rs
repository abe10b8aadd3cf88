//! What guests write to a file of this host.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{kernels, runtime, template, use_kernels_and_images};
use ember_core::{
    Assets, ByteSize, Code, Command, ErrorKind, ForkOptions, Image, LimitHit, Limits, LoadOptions,
    Overlay, Placement, Sandbox, Template, Verdict,
};
use ember_leak::LeakGate;
use tokio::time::timeout;

const MIB: u64 = 1 << 20;
/// The smallest there is: 126 MiB for the guest.
const SMALLEST: ByteSize = ByteSize::mib(128);

/// What a script of root's writes; it has to succeed.
async fn sh(sandbox: &Sandbox, script: &str) -> String {
    let command = Command::from_argv(["sh", "-ec", script]);
    let output = sandbox.exec(command).await.unwrap();
    assert!(output.success(), "{script}: {output:?}");
    output.stdout.to_string_lossy().trim().to_owned()
}

fn stored(sandbox: &Sandbox) -> u64 {
    sandbox.overlay_bytes().unwrap().unwrap()
}

/// Nothing with a name is ever there.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn more_is_written_than_there_is_memory_and_no_more_than_was_said() {
    let directory = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        for (name, kernel) in kernels() {
            let sandbox = Sandbox::builder(Image::pack("bash"))
                .kernel(kernel)
                .memory(ByteSize::mib(80))
                .overlay(Overlay::file(ByteSize::mib(100)).within(directory.path()))
                .boot()
                .await
                .unwrap();
            // Rounded up to 128 MiB; what is written is on the disk, what is shared is not.
            let kilobytes: u64 = sh(&sandbox, "df -k --output=size / | tail -n 1")
                .await
                .parse()
                .unwrap();
            assert!(
                (118..128).contains(&(kilobytes / 1024)),
                "{name}: {kilobytes}"
            );
            let types = sh(&sandbox, "stat -f -c %T /tmp /dev/shm").await;
            assert_eq!(types, "ext2/ext3\ntmpfs", "{name}");
            let before = stored(&sandbox);
            assert!(before < 2 * MIB, "{name}: {before}");

            let sums = sh(
                &sandbox,
                "mkdir /srv; yes ember | head -c 90M > /srv/large; cksum < /srv/large; sync; \
                 echo 3 > /proc/sys/vm/drop_caches; cksum < /srv/large",
            )
            .await;
            let (one, other) = sums.split_once('\n').unwrap();
            assert_eq!(one, other, "{name}");
            let written = stored(&sandbox);
            assert!(written > 90 * MIB, "{name}: {written}");

            let full = sh(
                &sandbox,
                "! head -c 64M /dev/zero > /tmp/full; rm /tmp/full; echo again > /tmp/again; \
                 sync; cat /tmp/again",
            )
            .await;
            assert_eq!(full, "again", "{name}");
            // What was removed is given back.
            sh(&sandbox, "rm /srv/large; sync").await;
            let left = stored(&sandbox);
            assert!(left < 16 * MIB, "{name}: {left}");

            // Whoever has no rights in the guest can write where everybody can.
            let code = Code::new(
                "bash",
                "echo mine > /tmp/mine && cat /tmp/mine && pwd > here",
            );
            let output = sandbox.run(code).await.unwrap();
            assert_eq!(output.stdout, "mine\n", "{name}: {output:?}");
            // And no more than its limit.
            let limits = Limits {
                disk: Some(4 * MIB),
                ..Limits::default()
            };
            let flood = Code::new("bash", "head -c 64M /dev/zero > /tmp/flood; sleep 60");
            let output = sandbox.run(flood.limits(limits)).await.unwrap();
            assert_eq!(
                output.verdict(),
                Verdict::LimitExceeded(LimitHit::Disk),
                "{name}: {output:?}"
            );
            assert!(output.outcome.disk > 4 * MIB, "{name}: {output:?}");
            sandbox.close().await;
        }
    });
    assert!(is_empty(directory.path()));
}

#[test]
fn clones_begin_with_what_was_written_and_go_their_own_ways() {
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    for name in ["cache", "overlays", "others", "saved"] {
        fs::create_dir(at(name)).unwrap();
    }
    use_kernels_and_images(&at("cache"));
    let write = "mkdir /srv; yes warm | head -c 10M > /srv/warm; cksum < /srv/warm > /srv/sum";
    let check =
        "echo 3 > /proc/sys/vm/drop_caches; test \"$(cksum < /srv/warm)\" = \"$(cat /srv/sum)\"";
    let builder = || {
        template("bash")
            .memory(ByteSize::mib(128))
            .assets(Assets::at(at("cache")))
            .overlay(Overlay::file(SMALLEST).within(at("overlays")))
            .prepare(Command::from_argv(["sh", "-ec", write]))
    };
    let shows = async |sandbox: &Sandbox| sh(sandbox, "sync; cat /srv/who").await;
    runtime().block_on(async {
        let mut template = builder().build().await.unwrap();
        for placement in [Placement::InProcess, Placement::Worker] {
            let options = || ForkOptions::new().placement(placement);
            let one = template.fork_with(options()).await.unwrap();
            let other = template.fork_with(options()).await.unwrap();
            for sandbox in [&one, &other] {
                sh(sandbox, check).await;
                assert_eq!(sh(sandbox, "ls /srv").await, "sum\nwarm");
            }
            // Half of it is not on the disk yet.
            sh(
                &one,
                "yes one | head -c 3M > /srv/own; sync; echo one > /srv/who",
            )
            .await;
            sh(&other, "echo other > /srv/who; rm /srv/warm; sync").await;
            let child = one.fork().await.unwrap();
            assert_eq!(shows(&child).await, "one");
            sh(
                &child,
                &format!("{check}; echo child > /srv/who; yes child | head -c 3M > /srv/own"),
            )
            .await;
            let grandchild = child.fork().await.unwrap();
            sh(
                &grandchild,
                "test \"$(yes child | head -c 3M | cksum)\" = \"$(cksum < /srv/own)\"; echo grandchild > /srv/who",
            )
            .await;
            for (sandbox, name) in [
                (&one, "one"),
                (&other, "other"),
                (&child, "child"),
                (&grandchild, "grandchild"),
            ] {
                assert_eq!(shows(sandbox).await, name);
            }
            sh(&one, "test \"$(yes one | head -c 3M | cksum)\" = \"$(cksum < /srv/own)\"").await;

            // In a file, as what is different in memory; and then in one that needs no other.
            let path = at("saved/it.ember");
            child.snapshot().await.unwrap().save(&path).await.unwrap();
            for sandbox in [one, other, child, grandchild] {
                sandbox.close().await;
            }
            for round in ["as it was saved", "compacted"] {
                let load = || LoadOptions::new().overlay_directory(at("others"));
                let loaded = Template::load_with(&path, load()).await.unwrap();
                let clone = loaded.fork_with(options()).await.unwrap();
                assert_eq!(shows(&clone).await, "child", "{round}");
                sh(&clone, check).await;
                sh(&clone, "test \"$(yes child | head -c 3M | cksum)\" = \"$(cksum < /srv/own)\"").await;
                clone.close().await;
                Template::compact(&path).await.unwrap();
            }
            let little = LoadOptions::new().overlay_limit(ByteSize::mib(127));
            let error = Template::load_with(&path, little).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
            // The template is what it was; next time it comes from the cache.
            drop(template);
            template = builder().build().await.unwrap();
        }
        // Another size is another template; so is none.
        let plain = builder().overlay(ByteSize::mib(32)).build().await.unwrap();
        let clone = plain.fork().await.unwrap();
        assert_eq!(
            sh(&clone, "stat -f -c %T /srv /tmp | tail -n 1").await,
            "tmpfs"
        );
        assert_eq!(clone.overlay_bytes().unwrap(), None);
        clone.close().await;

        let nowhere = builder().overlay(Overlay::file(SMALLEST).within(at("missing")));
        let error = nowhere.build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unprepared, "{error}");
        assert!(error.to_string().contains("missing"), "{error}");
    });
    assert!(is_empty(&at("overlays")) && is_empty(&at("others")));
}

#[test]
fn a_guest_that_writes_is_cloned_as_it_is_at_one_moment() {
    let directory = tempfile::tempdir().unwrap();
    // Each file is complete when it has its name, and goes again.
    let busy = "mkdir -p /srv; n=0; while :; do n=$((n + 1)); \
                yes $n | head -n 40000 > /srv/new; mv /srv/new /srv/busy$n; \
                rm -f /srv/busy$((n - 12)); done";
    let check = "sync; echo 3 > /proc/sys/vm/drop_caches; count=0; \
                 for file in /srv/busy*; do \
                 found=\"$(uniq $file 2> /dev/null || true)\"; test -e $file || continue; \
                 count=$((count + 1)); \
                 test \"$found\" = ${file#/srv/busy}; done; \
                 test $(cat /sys/fs/ext4/vdb/errors_count) = 0; echo $count";
    runtime().block_on(async {
        let sandbox = template("bash")
            .memory(ByteSize::mib(128))
            .vcpus(2)
            .overlay(Overlay::file(SMALLEST).within(directory.path()))
            .build()
            .await
            .unwrap()
            .fork()
            .await
            .unwrap();
        let writer = sandbox.spawn(Command::from_argv(["sh", "-c", busy]));
        let _writer = writer.await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        for round in 0..3 {
            let clone = sandbox.fork().await.unwrap();
            let count: u32 = sh(&clone, check).await.parse().unwrap();
            assert!(count > 2, "{round}: {count}");
            clone.close().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        sh(&sandbox, check).await;

        // Whoever does not wait for a clone leaves the guest as it was.
        for milliseconds in [1, 5, 20, 60] {
            let patience = Duration::from_millis(milliseconds);
            let _ = timeout(patience, sandbox.fork()).await;
            sh(&sandbox, "true").await;
        }
        // Whoever wants it to stand still meanwhile has that.
        for milliseconds in [0, 10, 40] {
            let (clone, ()) = tokio::join!(sandbox.fork(), async {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                sandbox.pause().await.unwrap();
                let still = timeout(Duration::from_millis(500), sandbox.ping());
                assert!(still.await.is_err(), "{milliseconds}");
                sandbox.resume().await.unwrap();
            });
            sh(&clone.unwrap(), "true").await;
            sh(&sandbox, "true").await;
        }
        sandbox.close().await;
    });
    assert!(is_empty(directory.path()));
}

#[test]
fn a_fork_that_nobody_waits_for_keeps_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_owned();
    ember_leak::isolated!(|| runtime().block_on(async {
        let template = template("bash")
            .memory(ByteSize::mib(128))
            .overlay(Overlay::file(SMALLEST).within(&at))
            .placement(Placement::InProcess)
            .build()
            .await
            .unwrap();
        let round = async || {
            // Its agent does not answer, and it is ended all the same.
            let sandbox = template.fork().await.unwrap();
            sandbox.pause().await.unwrap();
            let fork = timeout(Duration::from_millis(200), sandbox.fork());
            assert!(fork.await.is_err());
            let again = timeout(Duration::from_millis(200), sandbox.fork());
            assert!(again.await.is_err());
            sandbox.close().await;
            // It answers, and its disk may be being copied.
            let sandbox = template.fork().await.unwrap();
            sh(&sandbox, "yes | head -c 2M > /large; sync").await;
            let _ = timeout(Duration::from_millis(20), sandbox.fork()).await;
            // Whoever tries again waits for who was before.
            sandbox.fork().await.unwrap().close().await;
            let _ = timeout(Duration::from_millis(20), sandbox.fork()).await;
            sandbox.close().await;
        };
        round().await;
        // The runtime's idle threads end after ten seconds.
        let settle = Duration::from_secs(20);
        let gate = LeakGate::builder().settle(settle).arm().unwrap();
        round().await;
        gate.check().unwrap();
    }));
    assert!(is_empty(directory.path()));
}
