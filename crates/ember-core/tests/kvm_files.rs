//! Files of a guest: in and out, with a program's rights and no more, and what programs leave behind.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use common::{builder, runtime, template};
use ember_core::{
    Code, Command, Error, ErrorKind, FileChange, FileKind, Placement, Sandbox, Template, Verdict,
};
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;

/// Does `test` in a clone whose interpreter is warm. All share a template.
fn shared(test: impl AsyncFnOnce(&Sandbox)) {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(runtime);
    RUNTIME.block_on(async {
        if TEMPLATE.get().is_none() {
            let built = template("python").warm_up(Code::python("")).build().await;
            let _ = TEMPLATE.set(built.unwrap());
        }
        let sandbox = TEMPLATE.get().unwrap().fork().await.unwrap();
        let start = Instant::now();
        test(&sandbox).await;
        println!("{:.1?}", start.elapsed());
        sandbox.close().await;
    });
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

async fn python(sandbox: &Sandbox, code: &str) -> String {
    let out = sandbox.run(Code::python(code)).await.unwrap();
    assert!(out.success(), "{out:?}");
    out.stdout.to_string()
}

#[test]
fn files_are_read_written_listed_moved_and_removed() {
    shared(async |sandbox| {
        let files = sandbox.files();
        files.create_dir("plain/a/b").await.unwrap();
        let contents: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
        files.write("plain/file", &contents).await.unwrap();
        assert!(files.read("plain/file").await.unwrap() == contents);
        files.append("plain/file", "more").await.unwrap();
        let mut read = Vec::new();
        let count = files.read_to("plain/file", &mut read).await.unwrap();
        assert_eq!(count, contents.len() as u64 + 4);
        assert!(read.ends_with(b"more"));
        let count = files
            .write_from("plain/second", &b"from a reader"[..])
            .await;
        assert_eq!(count.unwrap(), 13);

        // A program sees the same, and owns it.
        let seen = python(
            sandbox,
            "import os; print(open('plain/second').read(), os.getuid())",
        )
        .await;
        let stat = files.stat("plain/second").await.unwrap();
        assert_eq!(seen, format!("from a reader {}\n", stat.user));
        assert!(stat.user != 0 && stat.size == 13 && stat.kind == FileKind::File);
        assert_eq!(stat.mode, 0o644);

        python(sandbox, "import os; os.symlink('/etc', 'plain/link')").await;
        let list = files.list("plain").await.unwrap();
        let names: Vec<_> = list
            .iter()
            .map(|it| (it.name.to_str().unwrap(), it.kind))
            .collect();
        assert_eq!(
            names,
            [
                ("a", FileKind::Directory),
                ("file", FileKind::File),
                ("link", FileKind::Symlink),
                ("second", FileKind::File)
            ]
        );
        assert_eq!(list[2].target.as_deref(), Some(Path::new("/etc")));

        files.rename("plain/second", "plain/a/third").await.unwrap();
        assert_eq!(kind(files.read("plain/second").await), ErrorKind::NotFound);
        assert_eq!(kind(files.read("plain/a").await), ErrorKind::InvalidRequest);
        assert_eq!(kind(files.write("none/x", "").await), ErrorKind::NotFound);
        assert_eq!(
            kind(files.create_dir("plain/file").await),
            ErrorKind::InvalidRequest
        );
        assert_eq!(kind(files.read("").await), ErrorKind::NotFound);
        assert_eq!(kind(files.read("a\0b").await), ErrorKind::InvalidRequest);
        assert_eq!(kind(files.remove(".").await), ErrorKind::InvalidRequest);
        let few = files.clone().max_bytes(100);
        assert_eq!(kind(few.read("plain/file").await), ErrorKind::TooLarge);
        assert_eq!(
            kind(few.write("plain/big", [0; 101]).await),
            ErrorKind::TooLarge
        );
        assert_eq!(few.read("plain/a/third").await.unwrap().len(), 13);
        let few = files.clone().max_entries(2);
        assert_eq!(kind(few.list("plain").await), ErrorKind::TooLarge);

        let error = files.read("none\u{1b}[2J").await.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read \"none[2J\" in the guest: "),
            "{error}"
        );
        files.remove("plain").await.unwrap();
        assert_eq!(kind(files.stat("plain").await), ErrorKind::NotFound);
        assert!(files.stat("/etc/passwd").await.is_ok());
    });
}

#[test]
fn a_request_may_what_a_program_may() {
    shared(async |sandbox| {
        let files = sandbox.files();
        let seal = "umask 077; mkdir /sealed; echo x > /sealed/in; echo x > /etc/secret";
        let seal = Command::from_argv(["sh", "-c", seal]);
        assert!(sandbox.exec(seal).await.unwrap().success());
        for result in [
            files.write("/etc/mine", "x").await,
            files.append("/etc/passwd", "x").await,
            files.read("/etc/secret").await.map(drop),
            files.create_dir("/mine").await,
            files.remove("/etc/passwd").await,
            files.rename("/etc/passwd", "passwd").await,
            files.list("/sealed").await.map(drop),
        ] {
            assert_eq!(kind(result), ErrorKind::PermissionDenied);
        }
        // In a room of its own: the agent is not there to be seen.
        let status = files.read("/proc/self/status").await.unwrap();
        let status = String::from_utf8(status).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000") && status.contains("Seccomp:\t2"));
        assert_eq!(files.read("/proc/1/comm").await.unwrap(), b"room\n");
        assert_eq!(
            kind(files.read("/dev/zero").await),
            ErrorKind::InvalidRequest
        );

        let root = sandbox.files().as_root();
        root.write("/etc/mine", "root's").await.unwrap();
        assert_eq!(root.stat("/etc/mine").await.unwrap().user, 0);
        assert_eq!(files.read("/etc/mine").await.unwrap(), b"root's");
        // Root of the guest, without what makes it root.
        let confined = sandbox.files().as_user("root");
        let status = String::from_utf8(confined.read("/proc/self/status").await.unwrap()).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");

        // What a program has planted does not lead root astray.
        let plant = "import os\n\
            os.mkdir('trap'); os.chdir('trap')\n\
            os.symlink('/etc/mine', 'link'); os.symlink('/etc', 'door'); os.symlink('/etc/new', 'new')\n\
            try: os.link('/etc/mine', 'hard')\n\
            except PermissionError: print('no hard links')\n";
        let said = python(sandbox, plant).await;
        for path in ["trap/link", "trap/door/mine", "trap/new"] {
            assert_eq!(
                kind(root.write(path, "changed").await),
                ErrorKind::InvalidRequest,
                "{path}"
            );
            assert_eq!(
                kind(root.append(path, "changed").await),
                ErrorKind::InvalidRequest
            );
        }
        assert_eq!(
            kind(root.create_dir("trap/door/more").await),
            ErrorKind::InvalidRequest
        );
        assert_eq!(
            kind(root.tar_in("trap/door", &[0; 1024][..]).await),
            ErrorKind::InvalidRequest
        );
        if said.is_empty() {
            assert_eq!(
                kind(root.write("trap/hard", "x").await),
                ErrorKind::InvalidRequest
            );
        }
        assert_eq!(files.read("/etc/mine").await.unwrap(), b"root's");
        assert_eq!(kind(files.stat("/etc/new").await), ErrorKind::NotFound);
        // The system's own links are not in its way: `/bin` is one.
        assert!(
            root.read("/bin/true")
                .await
                .unwrap()
                .starts_with(b"\x7fELF")
        );
        root.remove("trap").await.unwrap();
        root.remove("/etc/mine").await.unwrap();
        assert!(files.stat("/etc").await.is_ok());
    });
}

#[test]
fn trees_are_copied_in_and_out() {
    shared(async |sandbox| {
        let files = sandbox.files();
        let host = tempfile::tempdir().unwrap();
        let one = host.path().join("one");
        fs::create_dir_all(one.join("d/e")).unwrap();
        fs::write(one.join("d/e/run.sh"), "#!/bin/sh\necho ran").unwrap();
        fs::set_permissions(one.join("d/e/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(one.join("numbers"), vec![7; 300_000]).unwrap();
        symlink("numbers", one.join("link")).unwrap();
        let copied = files.copy_in(&one, "trees/in").await.unwrap();
        assert_eq!(copied.entries, 5);
        let ran = python(
            sandbox,
            "import os; print(os.popen('trees/in/d/e/run.sh').read(), end='')",
        )
        .await;
        assert_eq!(ran, "ran\n");

        let plant = "import os; os.chdir('trees/in')\n\
            os.symlink('/etc/passwd', 'away'); os.symlink('../../..', 'd/up'); os.mkfifo('pipe')\n";
        python(sandbox, plant).await;
        let two = host.path().join("new/two");
        let copied = files.copy_out("trees/in", &two).await.unwrap();
        let mut left_out = copied.left_out.clone();
        left_out.sort();
        assert_eq!(left_out, ["away", "d/up", "pipe"]);
        assert_eq!(fs::read(two.join("numbers")).unwrap(), vec![7; 300_000]);
        assert_eq!(
            fs::read_link(two.join("link")).unwrap(),
            Path::new("numbers")
        );
        assert!(fs::symlink_metadata(two.join("away")).is_err());
        let mode = fs::metadata(two.join("d/e/run.sh"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);

        // Single files, with directories made where they are missing.
        files
            .copy_in(one.join("numbers"), "trees/far/away/")
            .await
            .unwrap();
        assert_eq!(
            files.stat("trees/far/away/numbers").await.unwrap().size,
            300_000
        );
        files
            .copy_out("trees/in/link", host.path().join("three"))
            .await
            .unwrap();
        assert_eq!(fs::read(host.path().join("three")).unwrap().len(), 300_000);
        files
            .copy_out("trees/in/numbers", host.path())
            .await
            .unwrap();
        assert!(host.path().join("numbers").is_file());

        let few = files.clone().max_entries(3);
        let error = few.copy_out("trees/in", host.path().join("few")).await;
        assert_eq!(kind(error), ErrorKind::TooLarge);
        assert_eq!(
            kind(few.copy_in(&one, "trees/few").await),
            ErrorKind::TooLarge
        );
        let small = files.clone().max_bytes(10_000);
        let error = small.copy_out("trees/in", host.path().join("few")).await;
        assert_eq!(kind(error), ErrorKind::TooLarge);
        assert_eq!(
            kind(small.copy_in(&one, "trees/few").await),
            ErrorKind::TooLarge
        );
        assert_eq!(
            kind(files.copy_in(host.path().join("no"), "x").await),
            ErrorKind::InvalidRequest
        );
        assert_eq!(
            kind(files.copy_out("no", host.path()).await),
            ErrorKind::NotFound
        );
        assert_eq!(
            kind(files.copy_in(&one, "/etc/x").await),
            ErrorKind::PermissionDenied
        );

        // A copy that silently has less than there is would be none.
        let seal = "mkdir /open; cd /open; echo x > one; umask 077; echo x > two";
        let seal = Command::from_argv(["sh", "-c", seal]);
        assert!(sandbox.exec(seal).await.unwrap().success());
        let error = files.copy_out("/open", host.path().join("open")).await;
        assert_eq!(kind(error), ErrorKind::PermissionDenied);

        // As streams.
        let mut tar = Vec::new();
        let size = files.tar_out("trees/in/d", &mut tar).await.unwrap();
        assert_eq!(size, tar.len() as u64);
        files.tar_in("trees/again", tar.as_slice()).await.unwrap();
        let found = files.stat("trees/again/e/run.sh").await.unwrap();
        assert_eq!(found.mode, 0o755);
        assert_eq!(
            kind(files.tar_in("trees/bad", &[7; 5000][..]).await),
            ErrorKind::InvalidRequest
        );
        files.remove("trees").await.unwrap();
    });
}

#[test]
fn changes_are_told() {
    shared(async |sandbox| {
        let files = sandbox.files();
        files.create_dir("watched").await.unwrap();
        let mut watch = files.watch("watched").await.unwrap();
        python(sandbox, "open('watched/new', 'w').write('x')").await;
        let mut next = async || {
            let event = watch.next().await.unwrap().unwrap();
            (event.change, event.name.into_string().unwrap())
        };
        assert_eq!(next().await, (FileChange::Created, "new".into()));
        assert_eq!(next().await, (FileChange::Written, "new".into()));
        files.remove("watched").await.unwrap();
        assert_eq!(next().await, (FileChange::Removed, "new".into()));
        assert_eq!(next().await, (FileChange::Removed, String::new()));
        assert_eq!(watch.next().await.unwrap(), None);
        assert_eq!(watch.next().await.unwrap(), None);
        assert_eq!(kind(files.watch("watched").await), ErrorKind::NotFound);
    });
}

#[test]
fn artifacts_come_however_a_program_ends() {
    shared(async |sandbox| {
        let write = "import os; os.makedirs('out', exist_ok=True)\n\
            open('out/a.txt', 'w').write('A'); open('out/b.bin', 'wb').write(bytes(100000))\n";
        for (end, verdict) in [
            ("", Verdict::Success),
            ("raise SystemExit(3)", Verdict::RuntimeError(3)),
            ("1 / 0", Verdict::RuntimeError(1)),
            ("while True: pass", Verdict::Timeout),
            ("os.kill(os.getpid(), 9)", Verdict::Killed(9)),
        ] {
            let code = Code::python(format!("{write}{end}"))
                .timeout(Duration::from_secs(if verdict == Verdict::Timeout {
                    2
                } else {
                    60
                }))
                .artifact("out/*")
                .artifact("none");
            let out = sandbox.run(code).await.unwrap();
            assert_eq!(out.verdict(), verdict, "{out:?}");
            let artifacts = out.artifacts.unwrap();
            assert_eq!(artifacts.problem(), None);
            let names: Vec<_> = artifacts
                .list()
                .unwrap()
                .into_iter()
                .map(|it| it.name)
                .collect();
            assert_eq!(names, ["out/a.txt", "out/b.bin"]);
            assert_eq!(artifacts.read("out/a.txt").unwrap().unwrap(), b"A");
            let left_out = &artifacts.left_out()[0];
            assert_eq!(
                (&left_out.path[..], &left_out.reason[..]),
                ("none", "not found")
            );
            sandbox.files().remove("out").await.unwrap();
        }
        // What does not fit is left out, and a pattern that is none takes no outcome away.
        let code = Code::python(write)
            .artifact("out")
            .artifacts_at_most(10_000);
        let artifacts = sandbox.run(code).await.unwrap().artifacts.unwrap();
        assert!(artifacts.tar().len() <= 10_000);
        assert!(artifacts.read("out/a.txt").unwrap().is_some());
        assert_eq!(artifacts.left_out()[0].reason, "too large");
        let out = sandbox
            .run(Code::python(write).artifact("../x"))
            .await
            .unwrap();
        assert!(out.success());
        let artifacts = out.artifacts.unwrap();
        assert!(
            artifacts.problem().is_some_and(|it| it.contains("..")),
            "{artifacts:?}"
        );
        // None were asked for.
        let out = sandbox.run(Code::python("")).await.unwrap();
        assert!(out.artifacts.is_none());
        // What only root may read is not a program's to leave.
        let seal = Command::from_argv(["sh", "-c", "umask 077; echo x > /etc/secret"]);
        assert!(sandbox.exec(seal).await.unwrap().success());
        let code = Code::python("").artifact("/etc/secret");
        let artifacts = sandbox.run(code).await.unwrap().artifacts.unwrap();
        assert_eq!(artifacts.left_out()[0].reason, "unreadable");
        sandbox.files().remove("out").await.unwrap();
    });
}

/// A file system that is full is told, and the sandbox goes on.
#[test]
fn a_full_disk_is_told() {
    shared(async |sandbox| {
        // Where little fits.
        let files = sandbox.files().as_root();
        let endless = tokio::io::repeat(7).take(400 << 20);
        let result = files.write_from("/run/full", endless).await;
        assert_eq!(kind(result), ErrorKind::Exhausted);
        files.remove("/run/full").await.unwrap();
        files.write("/run/fits", "again").await.unwrap();
    });
}

/// Who gives a request up, or waits for a guest that does nothing, leaves nothing of it behind.
/// Waits for what comes soon.
async fn until(mut there: impl AsyncFnMut() -> bool) {
    while !there().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_request_ends_with_who_made_it() {
    shared(async |sandbox| {
        let files = sandbox.files();
        sandbox.pause().await.unwrap();
        let hasty = files.clone().patience(Duration::from_millis(300));
        assert_eq!(kind(hasty.read("/etc/passwd").await), ErrorKind::GuestDied);
        sandbox.resume().await.unwrap();
        assert!(files.read("/etc/passwd").await.is_ok());

        // In the middle of a copy, in either direction.
        files.write("large", vec![7; 8 << 20]).await.unwrap();
        let place = tempfile::tempdir().unwrap();
        let copy = files.copy_out("/usr/lib", place.path());
        tokio::select! {
            done = copy => panic!("{done:?}"),
            () = until(async || fs::read_dir(place.path()).unwrap().next().is_some()) => {}
        }
        let endless = files.write_from("endless", tokio::io::repeat(7));
        tokio::select! {
            done = endless => panic!("{done:?}"),
            () = until(async || files.stat("endless").await.is_ok_and(|it| it.size > 0)) => {}
        }
        let running = "ps -o args= -A | grep '[e]mber-files'; true";
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let out = sandbox
                .exec(Command::from_argv(["sh", "-c", running]))
                .await
                .unwrap();
            if out.stdout.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "{out:?}");
        }
        let size = files.stat("endless").await.unwrap().size;
        assert!(size < 256 << 20, "{size}");
    });
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The same channel, from a process of its own; and what is moved is not kept in ours.
#[test]
fn files_go_through_a_worker_and_through_little_memory() {
    runtime().block_on(async {
        let sandbox = builder().placement(Placement::Worker).boot().await.unwrap();
        let files = sandbox.files();
        files.write("small", "x").await.unwrap();
        // The peak begins anew here (proc(5)): other tests have had guests in this process.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = resident_kib();
        let size: u64 = 24 << 20;
        let written = files
            .write_from("large", tokio::io::repeat(7).take(size))
            .await;
        assert_eq!(written.unwrap(), size);
        let read = files.read_to("large", tokio::io::sink()).await.unwrap();
        assert_eq!(read, size);
        let grown = resident_kib() - before;
        assert!(grown < 8 * 1024, "this process has grown by {grown} KiB");
        let code = Code::python("open('a', 'w').write('1')").artifact("a");
        let artifacts = sandbox.run(code).await.unwrap().artifacts.unwrap();
        assert_eq!(artifacts.read("a").unwrap().unwrap(), b"1");
        let mut watch = files.watch(".").await.unwrap();
        let place = tempfile::tempdir().unwrap();
        files.copy_out(".", place.path()).await.unwrap();
        assert_eq!(
            fs::metadata(place.path().join("large")).unwrap().len(),
            size
        );
        sandbox.close().await;
        assert!(watch.next().await.is_err());
    });
}
