//! Guests of images that are not Ember's own: of a real registry, and a Debian that no one here made.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "it is a test"
)]

#[path = "common/registry.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod registry;

use std::fs;

use ember_core::{Assets, ByteSize, Command, Image, Sandbox, Template};
use registry::{LAYER, Made, Registry, layer};

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

async fn said(sandbox: &Sandbox, script: &str) -> String {
    let command = Command::from_argv(["/bin/sh", "-c", script]);
    let output = sandbox.exec(command).await.unwrap();
    assert_eq!(output.stderr, "", "{script}");
    assert!(output.success(), "{script}: {output:?}");
    output.stdout.to_string_lossy().into_owned()
}

#[test]
fn an_image_of_a_registry_runs_as_it_says_of_itself() {
    let registry = Registry::start(true);
    let busybox = fs::read("/bin/busybox").expect("install the package busybox-static");
    let below = layer(&[
        ("./", Made::Directory(0o755)),
        ("bin/", Made::Directory(0o755)),
        ("bin/busybox", Made::File(0o755, &busybox)),
        ("bin/sh", Made::HardLink("bin/busybox")),
        ("bin/stat", Made::Symlink("busybox")),
        ("sbin", Made::Symlink("bin")),
        (
            "etc/passwd",
            Made::File(
                0o644,
                b"root:x:0:0::/root:/bin/sh\nme:x:77:88::/home/me:/bin/sh\n",
            ),
        ),
        ("work/", Made::Directory(0o2775)),
        ("work/gone", Made::File(0o644, b"gone")),
        ("work/kept", Made::File(0o4711, b"kept")),
        ("old/a", Made::File(0o644, b"a")),
    ]);
    let above = layer(&[
        ("work/.wh.gone", Made::File(0, b"")),
        ("old/.wh..wh..opq", Made::File(0, b"")),
        ("old/b", Made::File(0o644, b"b")),
        (
            "sbin/greet",
            Made::File(
                0o755,
                b"#!/bin/sh\necho \"$GREETING $@ by $(id -u):$(id -g) in $(pwd)\"\n",
            ),
        ),
        ("bin/id", Made::Symlink("busybox")),
        ("bin/ls", Made::Symlink("busybox")),
    ]);
    let config = r#"{"Entrypoint":["greet"],"Cmd":["nobody"],"User":"me","WorkingDir":"/work",
        "Env":["GREETING=hello","PATH=/bin"]}"#;
    registry.push("tool:1", config, &[(LAYER, below), (LAYER, above)]);
    // Kernels and what they bring are those of the user; the image is not to stay there.
    let assets = Assets::of_user().unwrap();
    let image = registry
        .image("tool:1")
        .credentials(registry::USER, registry::PASSWORD);
    runtime().block_on(async {
        let builder = Template::builder(image.clone().into()).assets(assets.clone());
        let template = builder.memory(ByteSize::mib(128)).build().await.unwrap();
        // What the image says of itself is the clone's as well.
        let sandbox = template.fork().await.unwrap();
        let run = async |arguments: &[&str]| {
            let command = sandbox.entry_point(arguments.iter().copied()).unwrap();
            let output = sandbox.exec(command).await.unwrap();
            output.stdout.to_string_lossy().into_owned()
        };
        assert_eq!(run(&[]).await, "hello nobody by 77:88 in /work\n");
        assert_eq!(
            run(&["you", "two"]).await,
            "hello you two by 77:88 in /work\n"
        );
        let other = Command::new("greet")
            .user("root")
            .current_dir("/")
            .env("GREETING", "bye");
        let output = sandbox.exec(other).await.unwrap();
        assert_eq!(output.stdout, "bye  by 0:0 in /\n", "{output:?}");

        // As the kernel reads it.
        let seen = "cd /; ls work old; stat -c '%a %u %g %h' work work/kept bin/sh sbin/busybox; \
            stat -c '%i' bin/sh; stat -c '%i %Y' bin/busybox";
        let output = sandbox
            .exec(Command::from_argv(["/bin/sh", "-c", seen]).user("root"))
            .await;
        let output = output.unwrap().stdout.to_string_lossy().into_owned();
        let lines: Vec<&str> = output.lines().collect();
        let expected = [
            "old:",
            "b",
            "",
            "work:",
            "kept",
            "2775 1000 50 2",
            "4711 1000 50 1",
            "755 1000 50 2",
            "755 1000 50 2",
        ];
        assert_eq!(lines[..9], expected, "{output}");
        assert_eq!(
            lines[10],
            format!("{} 1600000000", lines[9]),
            "one file of two names"
        );
        sandbox.close().await;
        drop(template);
    });
    let file = assets.image(&image.into()).unwrap().file;
    assert!(file.starts_with(assets.directory()));
}

/// In the form that `docker save` had for longest. What there is of others is tested without a guest.
#[test]
fn an_image_that_was_saved_runs_as_it_says_of_itself() {
    let busybox = fs::read("/bin/busybox").expect("install the package busybox-static");
    let content = layer(&[
        ("bin/", Made::Directory(0o755)),
        ("bin/busybox", Made::File(0o755, &busybox)),
        ("bin/sh", Made::HardLink("bin/busybox")),
        ("work/", Made::Directory(0o755)),
    ]);
    let place = tempfile::tempdir().unwrap();
    let of_layer = registry::digest(&content);
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":["{of_layer}"]}},"config":{{
            "Entrypoint":["/bin/sh","-c"],"Cmd":["echo $A in $PWD by $USER_ID"],
            "Env":["A=saved","USER_ID=77"],"User":"77:88","WorkingDir":"/work"}}}}"#
    );
    fs::write(place.path().join("layer.tar"), content).unwrap();
    fs::write(place.path().join("config.json"), config).unwrap();
    let manifest = r#"[{"Config":"config.json","RepoTags":["tool:1"],"Layers":["layer.tar"]}]"#;
    fs::write(place.path().join("manifest.json"), manifest).unwrap();
    let image = Image::saved(place.path());
    runtime().block_on(async {
        let builder = Sandbox::builder(image).assets(Assets::of_user().unwrap());
        let sandbox = builder.memory(ByteSize::mib(128)).boot().await.unwrap();
        let command = sandbox.entry_point::<&str>([]).unwrap();
        let output = sandbox.exec(command).await.unwrap();
        assert_eq!(output.stdout, "saved in /work by 77\n", "{output:?}");
        let ids = sandbox
            .entry_point(["busybox id -u; busybox id -g"])
            .unwrap();
        assert_eq!(sandbox.exec(ids).await.unwrap().stdout, "77\n88\n");
        sandbox.close().await;
    });
}

/// `cargo xtask test` has the image built, which takes a network.
#[test]
fn packages_run_with_what_they_need_and_what_every_pack_has() {
    runtime().block_on(async {
        let builder = Sandbox::builder(Image::packages(["bc"]));
        let builder = builder.assets(Assets::of_user().unwrap());
        let sandbox = builder.memory(ByteSize::mib(128)).boot().await.unwrap();
        assert_eq!(said(&sandbox, "echo '6 * 7' | bc -q").await, "42\n");
        assert_eq!(said(&sandbox, "id -un").await, "root\n");
        // The account that every pack has.
        let command = Command::from_argv(["bash", "-c", "cd ~; id -un; pwd; touch x"]);
        let output = sandbox.exec(command.user("user")).await.unwrap();
        assert_eq!(output.stdout, "user\n/home/user\n", "{output:?}");
        sandbox.close().await;
    });
}

/// `cargo xtask test` has `mmdebstrap` make it, and has it imported, which takes long where there is
/// no hardware to help.
#[test]
fn a_debian_that_nobody_here_made_runs_unchanged() {
    let assets = Assets::of_user().unwrap();
    let archive = assets.directory().join("tests/debian.tar");
    assert!(
        archive.is_file(),
        "`cargo xtask test` makes {}",
        archive.display()
    );
    runtime().block_on(async {
        let builder = Sandbox::builder(Image::archive(&archive)).assets(assets);
        let builder = builder
            .memory(ByteSize::mib(256))
            .overlay(ByteSize::mib(24));
        let sandbox = builder.boot().await.unwrap();
        let release = said(&sandbox, ". /etc/os-release; echo $ID $VERSION_CODENAME").await;
        assert!(release.starts_with("debian "), "{release}");
        // Its own package manager finds all of it in its place, and works.
        assert_eq!(
            said(&sandbox, "dpkg --audit; dpkg --verify base-files coreutils").await,
            ""
        );
        let owned = said(
            &sandbox,
            "stat -c '%a %U %G' /var/mail /etc/shadow /tmp /bin/su",
        )
        .await;
        assert_eq!(
            owned,
            "2775 root mail\n640 root shadow\n1777 root root\n4755 root root\n"
        );
        said(
            &sandbox,
            "useradd -m ann && su ann -c 'cd; echo x > file' && test -O /home/ann || true",
        )
        .await;
        assert_eq!(said(&sandbox, "stat -c %U /home/ann/file").await, "ann\n");
        let perl = said(&sandbox, "perl -e 'print join \" \", map { $_ * 7 } 1..6'").await;
        assert_eq!(perl, "7 14 21 28 35 42");
        // As much can be written as was said.
        assert_eq!(
            said(&sandbox, "df --output=size / /tmp | tail -2 | sort -u")
                .await
                .trim(),
            "24576"
        );
        // Ours is nowhere in it.
        assert_eq!(
            said(&sandbox, "ls -d /ember* /usr/*/*ember* 2>/dev/null || true").await,
            ""
        );
        sandbox.close().await;
    });
}
