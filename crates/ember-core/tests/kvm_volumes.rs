//! Volumes: what many guests read and none changes.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{builder, runtime, template, use_kernels_and_images};
use ember_core::{
    Assets, ByteSize, Code, Command, ErrorKind, Event, ForkOptions, Kernel, LoadOptions, Placement,
    Progress, Sandbox, Template, TemplateBuilder, Volume,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
/// Where the guests have one; a kernel's command line would take it for several words.
const WORDS: &str = "/opt/with \"blanks\"";

/// Files of a host, and a cache without templates.
struct Host {
    directory: TempDir,
    steps: Arc<Mutex<Vec<String>>>,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("cache")).unwrap();
        use_kernels_and_images(&at("cache"));
        fs::create_dir_all(at("data/deep/er")).unwrap();
        fs::write(at("data/a"), "one").unwrap();
        fs::write(at("data/deep/er/large"), large()).unwrap();
        fs::create_dir(at("words")).unwrap();
        fs::write(at("words/first"), "word").unwrap();
        let words = Assets::at(at("own")).volume(&Volume::directory(at("words")));
        fs::copy(words.unwrap(), at("words.squashfs")).unwrap();
        Self {
            directory,
            steps: Arc::default(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn builder(&self) -> TemplateBuilder {
        let steps = Arc::clone(&self.steps);
        let progress = Progress::new(move |event| {
            if let Event::Started { step } = event {
                steps.lock().unwrap().push((*step).to_owned());
            }
        });
        template("python")
            .memory(ByteSize::mib(192))
            .assets(Assets::at(self.at("cache")).with_progress(progress))
            .volume("/data", Volume::directory(self.at("data")))
            .volume(WORDS, Volume::file(self.at("words.squashfs")))
            .warm_up(Code::python("assert open('/data/a').read() == 'one'"))
    }
}

/// Many blocks, of a disk and of a squashfs.
fn large() -> Vec<u8> {
    let byte = |n: u32| (n.wrapping_mul(n) >> 7) as u8;
    (0..500_000).map(byte).collect()
}

/// What an unprivileged program and root each find there, and that neither can change it.
async fn shows_both(sandbox: &Sandbox) {
    let program = format!(
        "import errno, os, zlib\n\
         print(open('/data/a').read(), open('{WORDS}/first').read())\n\
         print(zlib.crc32(open('/data/deep/er/large', 'rb').read()))\n\
         for path in '/data/a', '/data/new', '{WORDS}/new':\n    \
             try:\n        open(path, 'w')\n    \
             except OSError as error:\n        print(errno.errorcode[error.errno])"
    );
    let out = sandbox.run(Code::python(program)).await.unwrap();
    let mut crc = flate2::Crc::new();
    crc.update(&large());
    let expected = format!("one word\n{}\nEROFS\nEROFS\nEROFS\n", crc.sum());
    assert_eq!(out.stdout, expected.as_str(), "{out:?}");

    let script = "touch /data/a; rm /data/a; mount -o remount,rw /data; \
                  echo x > /dev/vdb && echo /data is written to; \
                  grep -E ' /(data|opt)' /proc/mounts";
    let out = sandbox.exec(Command::from_argv(["sh", "-c", script])).await;
    let out = out.unwrap();
    let refusals = out.stderr.to_string_lossy().into_owned();
    assert!(refusals.matches("Read-only").count() >= 2, "{refusals}");
    let mounts = out.stdout.to_string_lossy().into_owned();
    assert_eq!(mounts.lines().count(), 2, "{mounts}");
    for line in mounts.lines() {
        assert!(line.contains(" squashfs ro,nosuid,nodev,"), "{line}");
    }
    assert_eq!(sandbox.files().read("/data/a").await.unwrap(), b"one");
}

/// How many of this process's descriptors are of that file.
fn opened(file: &Path) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
    all.filter(|it| fs::read_link(it.path()).is_ok_and(|it| it == file))
        .count()
}

#[test]
fn clones_share_volumes_wherever_they_are_and_come_from() {
    let host = Host::new();
    let words = host.at("words.squashfs");
    let worker = || ForkOptions::new().placement(Placement::Worker);
    runtime().block_on(async {
        let builder = || host.builder().placement(Placement::InProcess);
        let built = builder().build().await.unwrap();
        let one = built.fork().await.unwrap();
        let other = built.fork().await.unwrap();
        let remote = built.fork_with(worker()).await.unwrap();
        for sandbox in [&one, &other, &remote] {
            shows_both(sandbox).await;
        }
        // One file for the template and for the clones that are here, and soon none of those that
        // the template was made with.
        let end = Instant::now() + PATIENCE;
        while opened(&words) > 3 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(opened(&words), 3);
        remote.close().await;

        // Live clones, and their clones.
        let open = "f = open('/data/a'); import time; time.sleep(1000)";
        let reader = one.start(Code::python(open)).await.unwrap();
        let first = one.fork().await.unwrap();
        let second = first.fork_with(worker()).await.unwrap();
        let third = second.fork().await.unwrap();
        for sandbox in [&first, &second, &third] {
            shows_both(sandbox).await;
        }
        drop(reader);
        for sandbox in [one, other, first, second] {
            sandbox.close().await;
        }

        // Found in the cache, and saved as what is different from that.
        host.steps.lock().unwrap().clear();
        let found = builder().build().await.unwrap();
        assert_eq!(*host.steps.lock().unwrap(), [""; 0]);
        let clone = found.fork().await.unwrap();
        shows_both(&clone).await;
        let file = host.at("a.ember");
        clone.snapshot().await.unwrap().save(&file).await.unwrap();
        clone.close().await;
        drop((built, found));

        // Loaded from a file, and from where its volume has gone meanwhile.
        let moved = host.at("moved");
        fs::rename(&words, &moved).unwrap();
        let error = Template::load(&file).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unprepared, "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("the volume") && text.contains("words.squashfs"),
            "{text}"
        );
        let options = || LoadOptions::new().placement(Placement::Worker);
        for (place, from) in [
            ("/data", &moved),
            (WORDS, &host.at("data/a")),
            ("/x", &moved),
        ] {
            let wrong = options().volume(WORDS, &moved).volume(place, from);
            let error = Template::load_with(&file, wrong).await.unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::InvalidRequest,
                "{place}: {error:?}"
            );
        }
        let right = options().volume(WORDS, &moved);
        let loaded = Template::load_with(&file, right).await.unwrap();
        // The files are open.
        fs::remove_file(&moved).unwrap();
        let last = loaded.fork().await.unwrap();
        shows_both(&last).await;
        last.close().await;
        third.close().await;
    });
}

#[test]
fn eight_volumes_boot_in_a_worker_each_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut sandbox = builder()
        .kernel(Kernel::stock())
        .placement(Placement::Worker);
    for number in 0..8 {
        let volume = directory.path().join(number.to_string());
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("name"), number.to_string()).unwrap();
        // By the links of the image, and in what is mounted later than the image.
        let parent = ["/run", "/tmp", "/bin", "/new/one"][number % 4];
        sandbox = sandbox.volume(format!("{parent}/{number}"), Volume::at(volume));
    }
    runtime().block_on(async {
        let sandbox = sandbox.boot().await.unwrap();
        let read = "cat /run/[0-7]/name /tmp/[0-7]/name /usr/bin/[0-7]/name /new/one/[0-7]/name";
        for read in [
            sandbox.exec(Command::from_argv(["sh", "-c", read])).await,
            sandbox
                .run(Code::python(format!("import os; os.system('{read}')")))
                .await,
        ] {
            let out = read.unwrap();
            assert_eq!(out.stdout, "04152637", "{out:?}");
        }
        sandbox.close().await;
    });
}

#[test]
fn what_cannot_be_a_volume_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("text"), "text").unwrap();
    // It begins well.
    let mut garbage = vec![0xa5; 4096];
    garbage[..4].copy_from_slice(b"hsqs");
    garbage[28..32].copy_from_slice(&[4, 0, 0, 0]);
    garbage[40..48].copy_from_slice(&4096_u64.to_le_bytes());
    fs::write(at("garbage"), garbage).unwrap();
    let assets = Assets::at(at("cache"));
    runtime().block_on(async {
        let refused = async |place: &str, volume: Volume, kind: ErrorKind, why: &str| {
            let error = builder().volume(place, volume).boot().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(format!("{error:?}").contains(why), "{error:?}");
        };
        let wrong = ErrorKind::InvalidRequest;
        refused(
            "/sys/x",
            Volume::at(at("text")),
            wrong,
            "/sys is the guest's own",
        )
        .await;
        refused("/x", Volume::file(at("text")), wrong, "no squashfs file").await;
        let missing = ErrorKind::Unprepared;
        refused("/x", Volume::at(at("missing")), missing, "missing").await;
        let failed = ErrorKind::BootFailed;
        let why = "no squashfs that this kernel can read";
        refused("/x", Volume::at(at("garbage")), failed, why).await;

        fs::create_dir(at("data")).unwrap();
        let good = assets.volume(&Volume::directory(at("data"))).unwrap();
        let why = "cannot make /etc/passwd: File exists";
        refused("/etc/passwd", Volume::file(good), failed, why).await;
    });
}
