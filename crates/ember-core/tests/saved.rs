//! Images in files: OCI layouts, and what `docker save` writes. No guest is needed for them.
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
use std::path::{Path, PathBuf};
use std::process::Command;

use ember_core::{Assets, ByteSize, ErrorKind, Image, ImageKind, Prune, SavedImage};
use registry::{INDEX, LAYER, MANIFEST, Made, descriptor, digest, gzip, layer, zstd};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn below() -> Vec<u8> {
    layer(&[
        ("etc/", Made::Directory(0o755)),
        ("etc/name", Made::File(0o644, b"below")),
        ("etc/gone", Made::File(0o644, b"x")),
    ])
}

fn above() -> Vec<u8> {
    layer(&[
        ("etc/.wh.gone", Made::File(0, b"")),
        ("etc/name", Made::File(0o600, b"above")),
    ])
}

/// A configuration of an image of these layers for `architecture`.
fn config(architecture: &str, layers: &[Vec<u8>]) -> String {
    let digests: Vec<String> = layers
        .iter()
        .map(|it| format!("{:?}", digest(it)))
        .collect();
    let digests = digests.join(",");
    format!(
        r#"{{"os":"linux","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[{digests}]}},
            "config":{{"Entrypoint":["/e"],"Cmd":["{architecture}"],"Env":["A=1"],"User":"7","WorkingDir":"/w"}}}}"#
    )
}

/// A layout that is being made.
struct Layout(PathBuf);

impl Layout {
    fn new(path: PathBuf) -> Self {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        fs::write(path.join("oci-layout"), version).unwrap();
        Self(path)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.0.join("blobs").join(digest.replace(':', "/"))
    }

    fn put(&self, kind: &str, bytes: &[u8]) -> String {
        fs::write(self.blob(&digest(bytes)), bytes).unwrap();
        descriptor(kind, &digest(bytes), bytes.len())
    }

    /// An image of the layers above, and its descriptor.
    fn image(&self, architecture: &str) -> String {
        let config = config(architecture, &[below(), above()]);
        let config = self.put(CONFIG, config.as_bytes());
        let layers = [
            self.put(&format!("{LAYER}+gzip"), &gzip(&below())),
            self.put(LAYER, &above()),
        ];
        self.manifest(&config, &layers.join(","))
    }

    fn manifest(&self, config: &str, layers: &str) -> String {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{layers}]}}"#
        );
        self.put(MANIFEST, text.as_bytes())
    }

    fn index(&self, listed: &[String]) -> &Self {
        let listed = listed.join(",");
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{listed}]}}"#);
        fs::write(self.0.join("index.json"), text).unwrap();
        self
    }
}

/// A descriptor with more in it.
fn with(descriptor: &str, more: &str) -> String {
    format!("{},{more}}}", descriptor.strip_suffix('}').unwrap())
}

fn called(descriptor: &str, name: &str) -> String {
    let name = format!(r#""annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#);
    with(descriptor, &name)
}

fn for_platform(descriptor: &str, architecture: &str) -> String {
    let platform = format!(r#""platform":{{"os":"linux","architecture":"{architecture}"}}"#);
    with(descriptor, &platform)
}

/// The archive of a directory, by tar(1).
fn tar(directory: &Path, to: &Path, arguments: &[&str]) {
    let mut command = Command::new("tar");
    command.arg("-C").arg(directory).arg("-cf").arg(to);
    assert!(command.args(arguments).status().unwrap().success());
}

struct Place {
    directory: tempfile::TempDir,
    assets: Assets,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let assets = Assets::at(directory.path().join("cache"));
        Self { directory, assets }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn named(&self, name: &str) -> Image {
        Image::named(self.path(name).to_str().unwrap())
    }

    fn refused(&self, image: impl Into<Image>, why: &str) {
        let error = self.assets.image(&image.into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unprepared);
        let error = format!("{error:?}");
        assert!(error.contains(why), "{why}: {error}");
        assert!(self.assets.images().unwrap().is_empty());
    }
}

#[test]
fn a_layout_is_an_image_as_a_directory_and_as_an_archive() {
    let place = Place::new();
    let layout = Layout::new(place.path("layout"));
    let image = layout.image("amd64");
    layout.index(&[image]);
    assert_eq!(place.named("layout"), Image::saved(place.path("layout")));
    let first = place.assets.image(&place.named("layout")).unwrap();
    assert_eq!(first.config.entry_point, ["/e"]);
    assert_eq!(first.config.arguments, ["amd64"]);
    assert_eq!(first.config.environment, [("A".to_owned(), "1".to_owned())]);
    assert_eq!(first.config.user.as_deref(), Some("7"));
    assert_eq!(first.config.directory.as_deref(), Some("/w"));
    // It is kept.
    assert_eq!(place.assets.image(&place.named("layout")).unwrap(), first);
    let listed = place.assets.images().unwrap();
    assert_eq!(listed[0].kind, ImageKind::Saved);
    assert_eq!(listed[0].platform.as_deref(), Some("linux/amd64"));
    assert!(listed[0].digest.as_ref().unwrap().starts_with("sha256:"));
    assert_eq!(listed[0].names, [place.path("layout").to_str().unwrap()]);

    // Archives of it, as they are made by one and another, plain and compressed.
    let parts = ["blobs", "index.json", "oci-layout"];
    tar(&place.path("layout"), &place.path("a.tar"), &parts);
    tar(&place.path("layout"), &place.path("b.tar"), &["."]);
    let bytes = fs::read(place.path("a.tar")).unwrap();
    fs::write(place.path("c.tar.gz"), gzip(&bytes)).unwrap();
    fs::write(place.path("d"), zstd(&bytes)).unwrap();
    let expected = fs::read(&first.file).unwrap();
    for name in ["a.tar", "b.tar", "c.tar.gz", "d"] {
        assert_eq!(place.named(name), Image::saved(place.path(name)), "{name}");
        let image = place.assets.image(&place.named(name)).unwrap();
        assert_ne!(image.file, first.file);
        assert!(fs::read(&image.file).unwrap() == expected, "{name}");
        assert_eq!(image.config, first.config);
    }

    // Another image comes in its place.
    let other = config("amd64", &[above()]);
    let other = layout.put(CONFIG, other.as_bytes());
    let other = layout.manifest(&other, &layout.put(LAYER, &above()));
    layout.index(&[other]);
    let second = place.assets.image(&place.named("layout")).unwrap();
    assert_ne!(second.file, first.file);
    let pruned = place.assets.prune_images(&Prune::unnamed()).unwrap();
    assert_eq!(pruned[0].file, first.file);
}

#[test]
fn one_of_several_images_is_asked_for_by_its_name_or_its_platform() {
    let place = Place::new();
    let layout = Layout::new(place.path("l"));
    let (amd, arm) = (layout.image("amd64"), layout.image("arm64"));
    let arguments = |image: SavedImage| place.assets.image(&image.into()).unwrap().config.arguments;
    let saved = || SavedImage::new(place.path("l"));

    // By its platform, in the index or in one that the index names.
    let (amd_listed, arm_listed) = (for_platform(&amd, "amd64"), for_platform(&arm, "arm64"));
    layout.index(&[arm_listed.clone(), amd_listed.clone()]);
    assert_eq!(arguments(saved()), ["amd64"]);
    assert_eq!(arguments(saved().platform("linux/arm64")), ["arm64"]);
    let inner = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{arm_listed},{amd_listed}]}}"#
    );
    let inner = layout.put(INDEX, inner.as_bytes());
    layout.index(&[inner]);
    assert_eq!(arguments(saved()), ["amd64"]);
    assert_eq!(arguments(saved().platform("linux/arm64")), ["arm64"]);
    let error = place.assets.image(&saved().platform("linux/s390x").into());
    let error = format!("{:?}", error.unwrap_err());
    assert!(error.contains("linux/arm64, linux/amd64"), "{error}");

    // By its name, also behind its path.
    layout.index(&[
        called(&arm, "one"),
        called(&amd, "docker.io/library/two:2.0"),
    ]);
    assert_eq!(arguments(saved().tag("2.0")), ["amd64"]);
    assert_eq!(
        arguments(saved().tag("docker.io/library/two:2.0")),
        ["amd64"]
    );
    let named = place.named("l:2.0");
    assert_eq!(named, Image::from(saved().tag("2.0")));
    assert_eq!(named.to_string(), place.path("l:2.0").to_str().unwrap());
    let wrong = |image: SavedImage, why: &str| {
        let error = format!("{:?}", place.assets.image(&image.into()).unwrap_err());
        assert!(error.contains(why), "{error}");
    };
    wrong(
        saved(),
        "several images, one of which has to be named: one, ",
    );
    wrong(
        saved().tag("three"),
        r#"no image "three"; there are: one, "#,
    );
    // What is for another processor is not run by mistake.
    wrong(saved().tag("one"), "it is for linux/arm64");
}

/// What `docker save` writes, in the form that it had before layouts.
fn docker(place: &Place, name: &str, tags: &str) -> PathBuf {
    let directory = place.path(name);
    let text = config("amd64", &[below(), above()]);
    let of_config = digest(text.as_bytes()).replace("sha256:", "");
    for (at, content) in [("a", below()), ("b", gzip(&above()))] {
        fs::create_dir_all(directory.join(at)).unwrap();
        fs::write(directory.join(at).join("real.tar"), content).unwrap();
        let link = directory.join(at).join("layer.tar");
        std::os::unix::fs::symlink(format!("../{at}/real.tar"), link).unwrap();
    }
    fs::write(directory.join(format!("{of_config}.json")), text).unwrap();
    let manifest = format!(
        r#"[{{"Config":"{of_config}.json","RepoTags":{tags},"Layers":["a/layer.tar","b/layer.tar"]}}]"#
    );
    fs::write(directory.join("manifest.json"), manifest).unwrap();
    fs::write(directory.join("repositories"), "{}").unwrap();
    directory
}

#[test]
fn what_docker_saves_is_an_image() {
    let place = Place::new();
    let directory = docker(&place, "saved", r#"["team/tool:3","team/tool:latest"]"#);
    let archive = place.path("saved.tar");
    tar(&directory, &archive, &["manifest.json", "."]);
    assert_eq!(place.named("saved.tar"), Image::saved(&archive));
    let image = place.assets.image(&Image::saved(&archive)).unwrap();
    assert_eq!(image.config.entry_point, ["/e"]);
    assert_eq!(image.config.user.as_deref(), Some("7"));
    let of_directory = place.assets.image(&Image::saved(&directory)).unwrap();
    let expected = fs::read(&image.file).unwrap();
    assert!(fs::read(&of_directory.file).unwrap() == expected);
    for tag in ["3", "latest", "team/tool:3"] {
        let image = SavedImage::new(&archive).tag(tag);
        place.assets.image(&image.into()).unwrap();
    }
    let error = place
        .assets
        .image(&SavedImage::new(&archive).tag("4").into());
    let error = format!("{:?}", error.unwrap_err());
    assert!(error.contains("team/tool:3, team/tool:latest"), "{error}");

    // Two images in one archive.
    let text = fs::read_to_string(directory.join("manifest.json")).unwrap();
    let one = text.trim_matches(['[', ']']);
    let other = one.replace("team/tool", "team/other").replace(":3", ":5");
    fs::write(directory.join("manifest.json"), format!("[{one},{other}]")).unwrap();
    let both = SavedImage::new(&directory);
    let error = place.assets.image(&both.clone().into()).unwrap_err();
    assert!(format!("{error:?}").contains("several images"), "{error:?}");
    place.assets.image(&both.tag("5").into()).unwrap();
}

#[test]
fn a_root_file_system_is_not_taken_for_an_image_that_was_saved() {
    let place = Place::new();
    let root = place.path("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("manifest.json"), "{}").unwrap();
    assert_eq!(place.named("root"), Image::directory(&root));
    for (name, first) in [("a.tar", "etc"), ("b.tar", "./etc")] {
        tar(&root, &place.path(name), &[first, "manifest.json"]);
        assert_eq!(place.named(name), Image::archive(place.path(name)));
    }
    fs::write(place.path("empty"), "").unwrap();
    assert_eq!(place.named("empty"), Image::archive(place.path("empty")));
    fs::create_dir(place.path("nothing")).unwrap();
    place.refused(Image::saved(place.path("nothing")), "neither an OCI layout");
    place.refused(Image::saved(place.path("empty")), "neither an OCI layout");
    place.refused(Image::saved(place.path("nowhere")), "nowhere");
}

#[test]
fn a_layout_that_is_not_what_it_should_be_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let layout = Layout::new(place.path("l"));
    let image = layout.image("amd64");
    layout.index(std::slice::from_ref(&image));
    let saved = || Image::saved(place.path("l"));
    let refused = |why: &str| place.refused(saved(), why);

    // Content that was changed, cut off, made longer, exchanged for something else, or removed.
    let plain = layout.blob(&digest(&above()));
    let changed = String::from_utf8(above())
        .unwrap()
        .replace("above", "other");
    fs::write(&plain, changed).unwrap();
    refused("its digest is sha256:");
    fs::write(&plain, &above()[..1024]).unwrap();
    refused("it ended after 1024 of");
    fs::write(&plain, [above(), vec![0; 512]].concat()).unwrap();
    refused("it has more than the");
    fs::remove_file(&plain).unwrap();
    refused("which it says it has");
    std::os::unix::fs::symlink("/etc/passwd", &plain).unwrap();
    refused("which it says it has");
    fs::remove_file(&plain).unwrap();
    fs::create_dir(&plain).unwrap();
    refused("which it says it has");
    fs::remove_dir(&plain).unwrap();
    fs::write(&plain, above()).unwrap();

    // Documents.
    let index = fs::read(place.path("l/index.json")).unwrap();
    for (text, why) in [
        ("", "cannot be read"),
        ("{}", "neither an image nor a list"),
        (r#"{"manifests":[]}"#, "it has no image"),
        (
            r#"{"manifests":[{"digest":"sha256:../../../../etc/passwd","size":1}]}"#,
            "none that is known",
        ),
        (
            r#"{"manifests":[],"config":{"digest":"x","size":1}}"#,
            "could be read as an image and as a list",
        ),
    ] {
        fs::write(place.path("l/index.json"), text).unwrap();
        refused(why);
    }
    let large = format!("{}{}", " ".repeat(5 << 20), "{}");
    fs::write(place.path("l/index.json"), &large).unwrap();
    refused("more than 4194304 bytes");
    layout.index(&[descriptor(MANIFEST, &digest(b"x"), 5 << 20)]);
    refused("more than 4194304 bytes");
    fs::write(place.path("l/index.json"), &index).unwrap();
    let version = r#"{"imageLayoutVersion":"2.0.0"}"#;
    fs::write(place.path("l/oci-layout"), version).unwrap();
    refused(r#"the version "2.0.0""#);
    Layout::new(place.path("l"));

    // Layers that nobody honest makes.
    let hostile = |bytes: &[u8], kind: &str| {
        let config = layout.put(CONFIG, config("amd64", &[]).as_bytes());
        let image = layout.manifest(&config, &layout.put(kind, bytes));
        layout.index(&[image]);
    };
    let through = layer(&[
        ("x", Made::Symlink("../../tmp")),
        ("x/y", Made::File(0o644, b"x")),
    ]);
    hostile(&through, LAYER);
    refused("leads out of the image");
    hostile(b"no archive", &format!("{LAYER}+encrypted"));
    refused("none that can be used");
    let bomb = gzip(&layer(&[("zeros", Made::File(0o644, &vec![0; 4 << 20]))]));
    hostile(&bomb, &format!("{LAYER}+gzip"));
    let bounded = SavedImage::new(place.path("l")).at_most(ByteSize::mib(1));
    place.refused(bounded, "more than 1048576 bytes");

    layout.index(&[image]);
    place.assets.image(&saved()).unwrap();
}

#[test]
fn what_docker_saves_is_checked_by_the_digests_that_it_has() {
    let place = Place::new();
    let refuse = |change: &dyn Fn(&Path), why: &str| {
        let directory = docker(&place, "d", "null");
        change(&directory);
        let archive = place.path("d.tar");
        tar(&directory, &archive, &["manifest.json", "."]);
        place.refused(Image::saved(&archive), why);
        place.refused(Image::saved(&directory), why);
        fs::remove_dir_all(directory).unwrap();
    };
    let edit = |directory: &Path, from: &str, to: &str| {
        let path = directory.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    refuse(
        &|it| fs::write(it.join("a/real.tar"), above()).unwrap(),
        "its digest is sha256:",
    );
    refuse(
        &|it| fs::write(it.join("b/real.tar"), gzip(&below())).unwrap(),
        "its digest is sha256:",
    );
    refuse(
        &|it| {
            let text = config("amd64", &[below(), above()]);
            let name = digest(text.as_bytes()).replace("sha256:", "");
            let changed = text.replace("/w", "/v");
            fs::write(it.join(format!("{name}.json")), changed).unwrap();
        },
        "its digest is sha256:",
    );
    refuse(
        &|it| edit(it, r#","b/layer.tar""#, ""),
        "it has 1 layers, and its configuration is of 2",
    );
    // Files that it does not have, and such as are not its.
    for name in [
        "c/layer.tar",
        "/etc/passwd",
        "../d.tar",
        "a/../../d.tar",
        "a",
        "",
    ] {
        refuse(&|it| edit(it, "a/layer.tar", name), "which it says it has");
    }
    for target in ["/etc/passwd", "../../../../etc/passwd", "layer.tar"] {
        refuse(
            &|it| {
                fs::remove_file(it.join("a/layer.tar")).unwrap();
                std::os::unix::fs::symlink(target, it.join("a/layer.tar")).unwrap();
            },
            "which it says it has",
        );
    }
    refuse(
        &|it| fs::write(it.join("manifest.json"), "{}").unwrap(),
        "list of images",
    );
    refuse(
        &|it| fs::write(it.join("manifest.json"), "[]").unwrap(),
        "it has no image",
    );
}

fn run(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|_| panic!("install the package {program}; `cargo xtask test` does"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

#[test]
fn what_other_tools_make_and_save_is_the_same_image_in_each_form() {
    let place = Place::new();
    let here = place.directory.path();
    fs::create_dir_all(here.join("tree/sub")).unwrap();
    fs::write(here.join("tree/sub/file"), "content").unwrap();
    std::os::unix::fs::symlink("sub/file", here.join("tree/link")).unwrap();
    let umoci = |arguments: &[&str]| run("umoci", arguments, here);
    umoci(&["init", "--layout", "made"]);
    umoci(&["new", "--image", "made:one"]);
    umoci(&[
        "insert",
        "--rootless",
        "--image",
        "made:one",
        "tree",
        "/opt",
    ]);
    umoci(&[
        "insert",
        "--rootless",
        "--image",
        "made:one",
        "--whiteout",
        "/opt/link",
    ]);
    umoci(&[
        "config",
        "--image",
        "made:one",
        "--config.entrypoint",
        "/opt/x",
        "--config.cmd",
        "y",
        "--config.env",
        "A=b",
        "--config.workingdir",
        "/opt",
        "--config.user",
        "5:6",
    ]);
    let skopeo = |from: &str, to: &str| {
        run(
            "skopeo",
            &["--insecure-policy", "copy", "--quiet", from, to],
            here,
        );
    };
    skopeo("oci:made:one", "oci-archive:oci.tar:two");
    skopeo("oci:made:one", "docker-archive:docker.tar:team/tool:1");
    skopeo("oci:made:one", "docker-archive:plain.tar");

    let made = place.assets.image(&place.named("made:one")).unwrap();
    assert_eq!(made.config.entry_point, ["/opt/x"]);
    assert_eq!(made.config.arguments, ["y"]);
    assert_eq!(made.config.user.as_deref(), Some("5:6"));
    assert_eq!(made.config.directory.as_deref(), Some("/opt"));
    assert!(
        made.config
            .environment
            .contains(&("A".to_owned(), "b".to_owned()))
    );
    let expected = fs::read(&made.file).unwrap();
    for name in [
        "made",
        "oci.tar",
        "oci.tar:two",
        "docker.tar",
        "docker.tar:1",
        "plain.tar",
    ] {
        let image = place.named(name);
        assert_ne!(image, Image::archive(place.path(name)), "{name}");
        let image = place.assets.image(&image).unwrap();
        assert_eq!(image.config, made.config, "{name}");
        assert!(fs::read(&image.file).unwrap() == expected, "{name}");
    }
}
