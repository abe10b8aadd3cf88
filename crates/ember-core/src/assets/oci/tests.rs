use super::challenge::{Challenge, parse};
use super::digest::Digest;
use super::*;

fn digest(byte: char) -> String {
    format!("sha256:{}", byte.to_string().repeat(64))
}

#[test]
fn names_are_taken_apart_as_everywhere() {
    let d = digest('a');
    for (name, full) in [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("team/tool", "docker.io/team/tool:latest"),
        ("localhost/tool", "localhost/tool:latest"),
        ("localhost:5000/tool:x", "localhost:5000/tool:x"),
        ("r.example/a/b-c/d_e:V1.2", "r.example/a/b-c/d_e:V1.2"),
        (
            &format!("r.example:5000/a:1@{d}"),
            &format!("r.example:5000/a@{d}"),
        ),
    ] {
        assert_eq!(Reference::parse(name).unwrap().to_string(), full);
    }
    assert_eq!(
        Reference::parse("debian").unwrap().host(),
        "registry-1.docker.io"
    );
    for name in [
        "",
        ":",
        "@",
        "a:",
        "a@sha256:00",
        "A",
        "a//b",
        "/a",
        "a/../b",
        "r.example:x/a",
        "r.example:0/a",
        "r.example:99999/a",
        "-r.example/a",
        "a b",
        "a:b c",
        "r.example/",
        "a@md5:d41d8cd98f00b204e9800998ecf8427e",
        "a\n",
        "a?b",
        "user@host/a",
        ".",
    ] {
        assert!(Reference::parse(name).is_err(), "{name:?}");
    }
}

#[test]
fn digests_are_those_that_can_be_checked() {
    assert!(Digest::parse(&digest('A')).is_none());
    assert!(Digest::parse(&digest('g')).is_none());
    assert!(Digest::parse("sha256:").is_none());
    let of_nothing = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
        47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";
    assert!(Digest::parse(of_nothing).unwrap().names(b""));
    assert!(!Digest::parse(of_nothing).unwrap().names(b"x"));
}

#[test]
fn content_that_is_other_than_stated_is_refused() {
    let digest = Digest::of(b"text");
    let copied = |bytes: &[u8], size| {
        let mut to = Vec::new();
        digest::copy(&mut &bytes[..], &mut to, &digest, size)
            .map(|()| to)
            .map_err(|it| it.to_string())
    };
    assert_eq!(copied(b"text", 4).unwrap(), b"text");
    for (bytes, size, why) in [
        (&b"texts"[..], 4, "more than the 4 bytes"),
        (b"text", 5, "after 4 of 5"),
        (b"test", 4, "its digest is"),
    ] {
        let said = copied(bytes, size).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn documents_of_both_families_are_read_and_others_refused() {
    let blob = |kind: &str| {
        format!(
            r#"{{"mediaType":"{kind}","digest":"{}","size":7}}"#,
            digest('b')
        )
    };
    let image = |kind: &str, layer: &str| {
        let (config, layer) = (blob("x"), blob(layer));
        format!(r#"{{"mediaType":"{kind}","config":{config},"layers":[{layer}]}}"#)
    };
    for (kind, layer) in [
        (
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
        (
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ] {
        let found = Document::parse(image(kind, layer).as_bytes()).unwrap();
        assert!(matches!(found, Document::Manifest { layers, .. } if layers[0].size == 7));
    }
    let list = format!(
        r#"{{"manifests":[{{"digest":"{0}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
            {{"digest":"{1}","size":2,"platform":{{"os":"linux","architecture":"amd64"}}}},
            {{"digest":"{0}","size":3,"platform":{{"os":"unknown","architecture":"unknown"}}}}]}}"#,
        digest('a'),
        digest('b'),
    );
    let Document::Index(listed) = Document::parse(list.as_bytes()).unwrap() else {
        panic!("no list");
    };
    assert_eq!(document::choose(&listed, "linux/amd64").unwrap().size, 2);
    assert_eq!(document::choose(&listed, "linux/arm64").unwrap().size, 1);
    let said = document::choose(&listed, "linux/arm")
        .unwrap_err()
        .to_string();
    assert!(said.ends_with("linux/arm64/v8, linux/amd64"), "{said}");

    let oci = "application/vnd.oci.image.manifest.v1+json";
    let both =
        image(oci, "application/vnd.oci.image.layer.v1.tar").replace('{', "{\"manifests\":[],");
    for text in [
        "",
        "[]",
        "{}",
        "null",
        &both,
        &image(oci, "application/vnd.oci.image.layer.v1.tar+encrypted"),
        &image(
            "application/vnd.cncf.helm.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar",
        ),
        &image(oci, "application/vnd.oci.image.layer.v1.tar").replace("sha256", "sha1"),
        r#"{"schemaVersion":1,"fsLayers":[]}"#,
    ] {
        assert!(Document::parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_configuration_says_how_an_image_is_run() {
    let text = r#"{"os":"linux","architecture":"amd64","config":{"User":"1:2","Env":["A=b=c","X","=y"],
        "Entrypoint":["/e","f"],"Cmd":["g"],"WorkingDir":"/d","Labels":null,"ExposedPorts":{"1/tcp":{}}},
        "rootfs":{"type":"layers","diff_ids":[]},"history":[{}]}"#;
    let config = document::configuration(text.as_bytes(), "linux/amd64").unwrap();
    assert_eq!(config.environment, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!(config.user.as_deref(), Some("1:2"));
    let line = |given: &[&str]| {
        let given: Vec<String> = given.iter().map(|&it| it.to_owned()).collect();
        config.command_line(&given).unwrap()
    };
    assert_eq!(line(&[]), ["/e", "f", "g"]);
    assert_eq!(line(&["x"]), ["/e", "f", "x"]);

    let empty =
        r#"{"os":"linux","architecture":"amd64","config":{"Env":null,"Cmd":null,"User":""}}"#;
    let config = document::configuration(empty.as_bytes(), "linux/amd64").unwrap();
    assert_eq!(config, ImageConfig::default());
    assert_eq!(config.command_line(&[]), None);
    let large = text.replace("/d", &"x".repeat(200_000));
    for (text, platform) in [
        (text, "linux/arm64"),
        (&large, "linux/amd64"),
        ("{}", "linux/amd64"),
        (&text.replace("\"/d\"", "\"\\u0000\""), "linux/amd64"),
    ] {
        assert!(document::configuration(text.as_bytes(), platform).is_err());
    }
}

#[test]
fn challenges_are_read_as_they_are_written() {
    let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    };
    let usual = r#"Bearer realm="https://a.example/t",service="r.example",scope="repository:a/b:pull,push""#;
    let expected = bearer(
        "https://a.example/t",
        Some("r.example"),
        Some("repository:a/b:pull,push"),
    );
    assert_eq!(parse(usual), expected);
    assert_eq!(
        parse(r#"Basic realm="Registry Realm""#),
        Some(Challenge::Basic)
    );
    assert_eq!(parse(&format!("Basic realm=\"x\", {usual}")), expected);
    assert_eq!(
        parse("bearer  realm=plain , error=x"),
        bearer("plain", None, None)
    );
    assert_eq!(parse(r#"Bearer realm="a\"b"#), bearer("a\"b", None, None));
    for none in [
        "",
        "Digest realm=\"x\"",
        "Bearer service=\"x\"",
        "=,=,",
        "\"\"\"",
        "Bearer \u{e9}",
    ] {
        assert_eq!(parse(none), None, "{none}");
    }
}

#[test]
fn a_password_is_not_shown() {
    let image = OciImage::new("a").credentials("me", "hunter2");
    let shown = format!("{image:?}");
    assert!(
        shown.contains("me") && !shown.contains("hunter2"),
        "{shown}"
    );
}

proptest::proptest! {
    /// What a registry says is understood or refused.
    #[test]
    fn nothing_that_a_registry_says_is_more_than_an_error(
        text in "\\PC{0,200}",
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
    ) {
        let _ = parse(&text);
        let _ = parse(&format!("Bearer realm=\"{text}"));
        let _ = Reference::parse(&text);
        let _ = Digest::parse(&text);
        let _ = Document::parse(&bytes);
        let _ = document::configuration(&bytes, "linux/amd64");
    }
}
