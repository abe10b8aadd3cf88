//! Images of a real registry, as far as no guest is needed for it.
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
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ember_core::{Assets, ByteSize, ErrorKind, Image, ImageKind, OciImage, Progress, Prune};
use registry::{
    DOCKER_MANIFEST, INDEX, LAYER, Made, PASSWORD, Registry, USER, digest, gzip, layer,
    token_front, zstd,
};

fn small() -> Vec<u8> {
    layer(&[
        ("etc/", Made::Directory(0o755)),
        ("etc/name", Made::File(0o644, b"small")),
    ])
}

#[test]
fn an_image_is_pulled_once_kept_and_pruned() {
    let registry = Registry::start(false);
    let cache = tempfile::tempdir().unwrap();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&steps);
    let assets = Assets::at(cache.path()).with_progress(Progress::new(move |event| {
        heard.lock().unwrap().push(format!("{event:?}"));
    }));
    let config = r#"{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=1"],"User":"7","WorkingDir":"/w"}"#;
    let layers = [
        (&*format!("{LAYER}+gzip"), gzip(&small())),
        (
            &*format!("{LAYER}+zstd"),
            zstd(&layer(&[("etc/.wh.name", Made::File(0, b""))])),
        ),
        (LAYER, layer(&[("x", Made::File(0o600, b"x"))])),
    ];
    registry.push("team/one:1", config, &layers);

    let image = Image::from(registry.image("team/one:1"));
    let ready = assets.image(&image).unwrap();
    assert!(ready.file.starts_with(cache.path()));
    assert_eq!(ready.config.entry_point, ["/e"]);
    assert_eq!(ready.config.arguments, ["c"]);
    assert_eq!(ready.config.environment, [("A".to_owned(), "1".to_owned())]);
    assert_eq!(ready.config.user.as_deref(), Some("7"));
    assert_eq!(ready.config.directory.as_deref(), Some("/w"));
    assert_eq!(&fs::read(&ready.file).unwrap()[..4], b"hsqs");
    assert!(
        steps
            .lock()
            .unwrap()
            .iter()
            .any(|step| step.contains("download layer 3 of 3"))
    );

    // Another image gets the tag: who has the old one keeps it until the new one is asked for.
    steps.lock().unwrap().clear();
    registry.push("team/one:1", "{}", &[(LAYER, small())]);
    assert_eq!(assets.image(&image).unwrap(), ready);
    assert!(steps.lock().unwrap().is_empty());
    let renewed = assets.renew_image(&image).unwrap();
    assert_ne!(renewed.file, ready.file);
    assert!(renewed.config.entry_point.is_empty());

    // By another name it is the same.
    let same = registry.push("team/other:x", "{}", &[(LAYER, small())]);
    let (_, same) = same.split_once("sha256:").unwrap();
    let by_digest = format!("team/other@sha256:{}", &same[..64]);
    let by_digest = assets.image(&registry.image(&by_digest).into()).unwrap();
    assert_eq!(by_digest.file, renewed.file);

    let listed = assets.images().unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed[0].names.is_empty() && listed[0].file == ready.file);
    assert_eq!(listed[1].names.len(), 2);
    assert_eq!(listed[1].kind, ImageKind::Registry);
    assert_eq!(listed[1].platform.as_deref(), Some("linux/amd64"));
    let removed = assets.prune_images(&Prune::unnamed()).unwrap();
    assert_eq!(removed, listed[..1]);
    assert!(!ready.file.exists() && renewed.file.exists());
    let year = Prune::unnamed().unused_for(Duration::from_secs(365 * 86_400));
    assert!(assets.prune_images(&year).unwrap().is_empty());
    assert_eq!(
        assets.prune_images(&Prune::unnamed().all()).unwrap().len(),
        1
    );
    assert!(assets.images().unwrap().is_empty() && !renewed.file.exists());
    // Nothing else is left, and what is needed again is pulled again.
    assert_eq!(assets.image(&image).unwrap().file, renewed.file);
}

#[test]
fn an_image_for_several_platforms_is_chosen_from_and_docker_has_its_own_types() {
    let registry = Registry::start(false);
    let cache = tempfile::tempdir().unwrap();
    let assets = Assets::at(cache.path());
    let kind = "application/vnd.docker.container.image.v1+json";
    let mut listed = Vec::new();
    for platform in ["amd64", "arm64"] {
        let config = format!(
            r#"{{"os":"linux","architecture":"{platform}","config":{{"Cmd":["{platform}"]}}}}"#
        );
        let config = registry.push_blob("a", kind, config.as_bytes());
        let kind = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let layer = registry.push_blob("a", kind, &gzip(&small()));
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{config},"layers":[{layer}]}}"#
        );
        let it = registry.push_manifest("a", &digest(text.as_bytes()), DOCKER_MANIFEST, &text);
        let it = it.strip_suffix('}').unwrap();
        listed.push(format!(
            r#"{it},"platform":{{"os":"linux","architecture":"{platform}"}}}}"#
        ));
    }
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#,
        listed.join(",")
    );
    registry.push_manifest("a", "all", INDEX, &text);
    let pulled = |platform: &str| assets.image(&registry.image("a:all").platform(platform).into());
    assert_eq!(pulled("linux/amd64").unwrap().config.arguments, ["amd64"]);
    assert_eq!(pulled("linux/arm64").unwrap().config.arguments, ["arm64"]);
    let error = format!("{:?}", pulled("linux/s390x").unwrap_err());
    assert!(
        error.contains("there are: linux/amd64, linux/arm64"),
        "{error}"
    );
}

#[test]
fn who_asks_has_to_say_so_where_the_registry_wants_it() {
    let registry = Registry::start(true);
    registry.push("a:1", "{}", &[(LAYER, small())]);
    let cache = tempfile::tempdir().unwrap();
    let assets = Assets::at(cache.path());
    let refused = |image: OciImage| {
        let error = assets.image(&image.into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unprepared);
        format!("{error:?}")
    };
    let error = refused(registry.image("a:1"));
    assert!(
        error.contains("give a user's name and a password"),
        "{error}"
    );
    let error = refused(registry.image("a:1").credentials(USER, "wrong"));
    assert!(error.contains("does not take"), "{error}");
    assert!(!error.contains("wrong"), "{error}");
    assets
        .image(&registry.image("a:1").credentials(USER, PASSWORD).into())
        .unwrap();
}

#[test]
fn a_token_is_asked_for_and_given_to_nobody_else() {
    let registry = Registry::start(false);
    registry.push("a:1", "{}", &[(LAYER, small())]);
    let host = token_front(registry.host());
    let cache = tempfile::tempdir().unwrap();
    let assets = Assets::at(cache.path());
    let image = |password: &str| {
        let image = OciImage::new(format!("{host}/a:1")).plain_http();
        assets.image(&image.credentials(USER, password).into())
    };
    let error = format!("{:?}", image("wrong").unwrap_err());
    assert!(error.contains("gives no token"), "{error}");
    image(PASSWORD).unwrap();
}

#[test]
fn what_is_not_there_or_not_what_it_should_be_is_refused_and_leaves_nothing() {
    let registry = Registry::start(false);
    let cache = tempfile::tempdir().unwrap();
    let assets = Assets::at(cache.path());
    let refused = |image: OciImage, why: &str| {
        let error = format!("{:?}", assets.image(&image.into()).unwrap_err());
        assert!(error.contains(why), "{error}");
        assert!(assets.images().unwrap().is_empty());
        let left = fs::read_dir(cache.path().join("images")).unwrap();
        let left: Vec<_> = left.map(|it| it.unwrap().file_name()).collect();
        let hidden = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(".locks");
        assert!(left.iter().all(hidden), "{left:?}");
    };
    refused(registry.image("nothing:1"), "has no such image");
    registry.push("a:1", "{}", &[(LAYER, small())]);
    refused(registry.image("a:2"), "manifest unknown");

    // Somebody has changed what the registry keeps; the size is as it was.
    let content = registry.content(&digest(&small()));
    let changed = String::from_utf8(small())
        .unwrap()
        .replace("small", "large");
    fs::write(&content, changed).unwrap();
    refused(registry.image("a:1"), "its digest is sha256:");
    fs::write(&content, small()).unwrap();
    assets.image(&registry.image("a:1").into()).unwrap();
    assets.prune_images(&Prune::unnamed().all()).unwrap();

    // Layers that nobody honest makes.
    let mut climbing = layer(&[("aaaaaaaaaaa", Made::File(0o644, b"x"))]);
    climbing[..11].copy_from_slice(b"../../../up");
    let sum: u32 = (0..512)
        .map(|at| {
            if (148..156).contains(&at) {
                32
            } else {
                climbing[at].into()
            }
        })
        .sum();
    climbing[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    registry.push("b:1", "{}", &[(LAYER, climbing)]);
    refused(registry.image("b:1"), "`..`");
    let through = layer(&[
        ("x", Made::Symlink("../../tmp")),
        ("x/y", Made::File(0o644, b"x")),
    ]);
    registry.push("b:2", "{}", &[(LAYER, through)]);
    refused(registry.image("b:2"), "leads out of the image");
    let bomb = gzip(&layer(&[("zeros", Made::File(0o644, &vec![0; 4 << 20]))]));
    registry.push("b:3", "{}", &[(&*format!("{LAYER}+gzip"), bomb)]);
    refused(
        registry.image("b:3").at_most(ByteSize::mib(1)),
        "more than 1048576 bytes",
    );
    registry.push(
        "b:4",
        "{}",
        &[("application/vnd.oci.image.layer.v1.tar+encrypted", small())],
    );
    refused(registry.image("b:4"), "none that can be used");

    for name in ["", "A/b", "a b", "x@sha256:1"] {
        let error = assets.image(&Image::oci(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    }
    // Nobody listens there, and nobody is believed who speaks no TLS.
    let error = assets
        .image(&Image::oci(format!("{}/a:1", registry.host())))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unprepared);
}

#[test]
fn archives_and_directories_are_images_until_they_change() {
    let cache = tempfile::tempdir().unwrap();
    let assets = Assets::at(cache.path());
    let place = tempfile::tempdir().unwrap();
    let tar = place.path().join("root.tar.gz");
    fs::write(&tar, gzip(&small())).unwrap();
    let first = assets.image(&Image::archive(&tar)).unwrap();
    assert_eq!(
        assets.image(&Image::named(tar.to_str().unwrap())).unwrap(),
        first
    );
    fs::write(&tar, zstd(&small())).unwrap();
    let second = assets.image(&Image::archive(&tar)).unwrap();
    assert_ne!(first.file, second.file);
    // What was in it is the same, and so is what came of it.
    assert_eq!(
        fs::read(&first.file).unwrap(),
        fs::read(&second.file).unwrap()
    );
    assert_eq!(
        assets.prune_images(&Prune::unnamed()).unwrap()[0].file,
        first.file
    );
    fs::write(
        &tar,
        "no archive at all, but long enough for a header".repeat(20),
    )
    .unwrap();
    let error = format!("{:?}", assets.image(&Image::archive(&tar)).unwrap_err());
    assert!(error.contains("root.tar.gz"), "{error}");

    let root = place.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), "one").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let directory = Image::directory(&root);
    let first = assets.image(&directory).unwrap();
    assert_eq!(assets.image(&directory).unwrap(), first);
    fs::write(root.join("file"), "two").unwrap();
    assert_ne!(assets.image(&directory).unwrap().file, first.file);
    // A file system is taken as it is.
    let named = Image::named(first.file.to_str().unwrap());
    assert_eq!(assets.image(&named).unwrap().file, first.file);
    for nowhere in [Image::archive("/nowhere"), Image::directory("/nowhere")] {
        assert_eq!(
            assets.image(&nowhere).unwrap_err().kind(),
            ErrorKind::Unprepared
        );
    }
    let error = assets.image(&Image::packages(["-o=x"])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}
