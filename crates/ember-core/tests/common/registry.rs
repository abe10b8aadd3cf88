//! A registry of one's own: Debian's `docker-registry` on a loopback port, filled through its API.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ember_core::OciImage;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub(crate) const USER: &str = "reader";
pub(crate) const PASSWORD: &str = "open sesame";
/// As `htpasswd -nB` writes it, of the above.
const HTPASSWD: &str = "reader:$2y$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy\n";

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What layers may be packed by.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    ruzstd::encoding::compress_to_vec(bytes, level)
}

/// Ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    process: Child,
    port: u16,
    has_password: bool,
    directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Starts one. With a password, it tells nobody anything without.
    pub(crate) fn start(has_password: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| directory.path().join(name);
        let (root, passwords) = (path("root"), path("htpasswd"));
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n",
            root.display()
        );
        if has_password {
            fs::write(&passwords, HTPASSWD).unwrap();
            let file = passwords.display();
            config += &format!("auth: {{htpasswd: {{realm: test, path: '{file}'}}}}\n");
        }
        fs::write(path("config.yml"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("install the package docker-registry; `cargo xtask test` does");
        let registry = Self {
            process,
            port,
            has_password,
            directory,
        };
        let end = Instant::now() + Duration::from_secs(60);
        while !answers(port) {
            let log = || fs::read_to_string(registry.directory.path().join("log"));
            assert!(Instant::now() < end, "{:?}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The image `name` of it.
    pub(crate) fn image(&self, name: &str) -> OciImage {
        OciImage::new(format!("{}/{name}", self.host())).plain_http()
    }

    fn send(
        &self,
        method: &str,
        url: &str,
        kind: &str,
        body: &[u8],
    ) -> ureq::http::Response<ureq::Body> {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.proxy(None).build().new_agent();
        let url = match url.starts_with('/') {
            true => format!("http://{}{url}", self.host()),
            false => url.to_owned(),
        };
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(url)
            .header("Content-Type", kind);
        if self.has_password {
            use base64::Engine as _;
            let pair = format!("{USER}:{PASSWORD}");
            let pair = base64::engine::general_purpose::STANDARD.encode(pair);
            request = request.header("Authorization", format!("Basic {pair}"));
        }
        let response = agent.run(request.body(body).unwrap()).unwrap();
        let status = response.status().as_u16();
        assert!((200..300).contains(&status), "{method}: {status}");
        response
    }

    /// Pushes content and says its descriptor, of this type.
    pub(crate) fn push_blob(&self, repository: &str, kind: &str, bytes: &[u8]) -> String {
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
        let place = begun.headers()["location"].to_str().unwrap().to_owned();
        let digest = digest(bytes);
        let mark = if place.contains('?') { '&' } else { '?' };
        let url = format!("{place}{mark}digest={digest}");
        self.send("PUT", &url, "application/octet-stream", bytes);
        descriptor(kind, &digest, bytes.len())
    }

    /// Pushes a manifest under a tag, or its digest, and says its descriptor.
    pub(crate) fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        kind: &str,
        text: &str,
    ) -> String {
        let url = format!("/v2/{repository}/manifests/{tag}");
        self.send("PUT", &url, kind, text.as_bytes());
        descriptor(kind, &digest(text.as_bytes()), text.len())
    }

    /// Pushes an image of these layers (their media type, and what they are) and this configuration.
    pub(crate) fn push(&self, name: &str, config: &str, layers: &[(&str, Vec<u8>)]) -> String {
        let (repository, tag) = name.split_once(':').unwrap();
        let config = format!(r#"{{"os":"linux","architecture":"amd64","config":{config}}}"#);
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = self.push_blob(repository, kind, config.as_bytes());
        let layers = layers.iter();
        let layers = layers.map(|(kind, bytes)| self.push_blob(repository, kind, bytes));
        let layers = layers.collect::<Vec<_>>().join(",");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{layers}]}}"#
        );
        self.push_manifest(repository, tag, MANIFEST, &text)
    }

    /// Where it keeps the content of this digest.
    pub(crate) fn content(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = "root/docker/registry/v2/blobs/sha256";
        let place = self.directory.path().join(blobs);
        place.join(&hex[..2]).join(hex).join("data")
    }
}

/// A port that nobody listens on. Not one of those that the kernel gives to who connects: who waits
/// for a listener there would sooner or later be given the same one, and find itself.
fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (std::process::id() as u16 % 1000) * 10 + next;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Whether a server answers there.
fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return false;
    };
    let mut begin = [0; 4];
    stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_exact(&mut begin).is_ok()
        && begin == *b"HTTP"
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn descriptor(kind: &str, digest: &str, size: usize) -> String {
    format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#)
}

/// What a layer has at a path.
#[derive(Debug)]
pub(crate) enum Made<'a> {
    Directory(u32),
    File(u32, &'a [u8]),
    Symlink(&'a str),
    HardLink(&'a str),
}

/// A layer of these, which belong to the user 1000 and the group 50.
pub(crate) fn layer(entries: &[(&str, Made<'_>)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (path, made) in entries {
        let mut header = Header::new_gnu();
        header.set_uid(1000);
        header.set_gid(50);
        header.set_mtime(1_600_000_000);
        header.set_size(0);
        match made {
            Made::Directory(mode) => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
                archive.append_data(&mut header, path, &b""[..]).unwrap();
            }
            Made::File(mode, bytes) => {
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, path, *bytes).unwrap();
            }
            Made::Symlink(target) | Made::HardLink(target) => {
                header.set_entry_type(match made {
                    Made::Symlink(_) => EntryType::Symlink,
                    _ => EntryType::Link,
                });
                header.set_mode(0o777);
                archive.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    archive.into_inner().unwrap()
}

/// A place before a registry, as large ones have: it gives a token to who has the password, and
/// sends who has a token on to where the content is, which must not see the token.
pub(crate) fn token_front(behind: String) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    let own = host.clone();
    // It ends with the process of the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap();
            // `reader:open sesame`.
            let basic = request.contains("Basic cmVhZGVyOm9wZW4gc2VzYW1l\r\n");
            let asked =
                path.contains("service=here") && path.contains("scope=repository%3Aa%3Apull");
            let (head, body) = match path.starts_with("/token") {
                true if basic && asked => ("200 OK".to_owned(), r#"{"token":"the-token"}"#),
                true => ("401 Unauthorized".to_owned(), ""),
                false if request.contains("Bearer the-token\r\n") => (
                    format!("307 Temporary Redirect\r\nLocation: http://{behind}{path}"),
                    "",
                ),
                false => (
                    format!(
                        "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{own}/token\",\
                         service=\"here\",scope=\"repository:a:pull\""
                    ),
                    "",
                ),
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    host
}
