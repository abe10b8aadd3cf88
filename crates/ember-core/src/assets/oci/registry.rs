//! A registry, spoken to by the OCI distribution specification.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::challenge::{self, Challenge};
use super::digest::{ContentError, Digest, copy};
use super::document::{self, Blob};
use super::reference::Reference;
use super::{Credentials, Oci};

const CONNECT: Duration = Duration::from_secs(20);
/// How long it may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// Between a registry and where it keeps its content there are one or two.
const REDIRECTS: u32 = 5;
/// How often a download is begun. Each time from the front: what was not checked is not built on.
const ATTEMPTS: u32 = 3;
/// As much as is read of what a registry says of an error.
const LARGEST_ERROR: u64 = 4096;
/// Far more than any token.
const LARGEST_TOKEN: u64 = 256 * 1024;

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("cannot reach {url}: {source}")]
    Request {
        url: String,
        source: Box<ureq::Error>,
    },
    #[error("{host} asks who wants {what}; {advice}")]
    Refused {
        host: String,
        what: String,
        advice: &'static str,
    },
    #[error("{host} has no {what}{said}")]
    NotFound {
        host: String,
        what: String,
        said: String,
    },
    #[error("{url} answered with status {status}{said}")]
    Status {
        url: String,
        status: u16,
        said: String,
    },
    #[error("{url} answered with more than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("{host} asks for a proof of who wants it that is not understood: {challenge:?}")]
    Challenge { host: String, challenge: String },
    #[error("the token that {realm} gave cannot be used")]
    Token { realm: String },
    #[error("{host} sends who asks to {realm}, where a password would be read by others")]
    OpenRealm { host: String, realm: String },
    #[error("the content {digest} is not what it should be: {source}")]
    Content {
        digest: String,
        source: ContentError,
    },
    #[error("cannot make a temporary file in {}: {source}", path.display())]
    Temporary {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("a certificate that was given cannot be read: {0}")]
    Certificate(Box<ureq::Error>),
    #[error("this host has no certificates of authorities: install `ca-certificates`")]
    NoCertificates,
}

/// One repository of a registry.
#[derive(Debug)]
pub(super) struct Registry<'a> {
    agent: Agent,
    reference: &'a Reference,
    base: String,
    credentials: Option<&'a Credentials>,
    plain: bool,
    /// The header that it wants to see, once that is known.
    authorization: RefCell<Option<String>>,
}

#[derive(Debug, Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Complaints {
    #[serde(default)]
    errors: Vec<Complaint>,
}

#[derive(Debug, Deserialize)]
struct Complaint {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl<'a> Registry<'a> {
    pub(super) fn new(reference: &'a Reference, oci: &'a Oci) -> Result<Self, RegistryError> {
        let scheme = match oci.plain_http {
            true => "http",
            false => "https",
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // What a registry redirects to is another's: it is not told who asks.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .max_redirects(REDIRECTS)
            .https_only(!oci.plain_http)
            .user_agent(concat!("ember/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        if !oci.plain_http {
            config = config.tls_config(tls(&oci.certificates)?);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            base: format!(
                "{scheme}://{}/v2/{}",
                reference.host(),
                reference.repository
            ),
            reference,
            credentials: oci.credentials.as_ref(),
            plain: oci.plain_http,
            authorization: RefCell::new(None),
        })
    }

    /// The document of this digest, or that the reference's own version stands for, and its digest.
    pub(super) fn manifest(
        &self,
        digest: Option<&Blob>,
    ) -> Result<(Vec<u8>, Digest), RegistryError> {
        let wanted = digest.map(|blob| &blob.digest);
        let wanted = wanted.or(self.reference.digest.as_ref());
        let version = match wanted {
            Some(digest) => digest.to_string(),
            None => self.reference.version(),
        };
        let url = format!("{}/manifests/{version}", self.base);
        let response = self.get(&url, document::ACCEPTED, "such image")?;
        let bytes = bounded(response, &url, document::LARGEST)?;
        match wanted {
            Some(wanted) if !wanted.names(&bytes) => Err(RegistryError::Content {
                digest: wanted.to_string(),
                source: ContentError::Digest {
                    wanted: wanted.to_string(),
                    found: Digest::of(&bytes).to_string(),
                },
            }),
            Some(wanted) => Ok((bytes, wanted.clone())),
            None => {
                let found = Digest::of(&bytes);
                Ok((bytes, found))
            }
        }
    }

    /// Content, into a temporary file without a name in `directory`, checked.
    pub(super) fn blob(&self, blob: &Blob, directory: &Path) -> Result<File, RegistryError> {
        let url = format!("{}/blobs/{}", self.base, blob.digest);
        let mut attempt = 1;
        loop {
            match self.download(&url, blob, directory) {
                Ok(file) => return Ok(file),
                Err(error) if attempt < ATTEMPTS && error.may_pass() => {
                    tracing::info!("{error}; trying again");
                    std::thread::sleep(Duration::from_secs(1 << attempt));
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn download(&self, url: &str, blob: &Blob, directory: &Path) -> Result<File, RegistryError> {
        let response = self.get(url, "*/*", "such content")?;
        let temporary = |source| RegistryError::Temporary {
            path: directory.to_owned(),
            source,
        };
        let mut file = tempfile::tempfile_in(directory).map_err(temporary)?;
        let mut body = response.into_body().into_reader();
        copy(&mut body, &mut file, &blob.digest, blob.size).map_err(|source| {
            RegistryError::Content {
                digest: blob.digest.to_string(),
                source,
            }
        })?;
        file.rewind().map_err(temporary)?;
        Ok(file)
    }

    /// Asks once, and a second time with what the registry wants to see.
    fn get(&self, url: &str, accept: &str, what: &str) -> Result<Response<Body>, RegistryError> {
        let what = format!("{what} ({})", self.reference);
        let host = || self.reference.registry.clone();
        let ask = || {
            let mut request = self.agent.get(url).header("Accept", accept);
            if let Some(authorization) = &*self.authorization.borrow() {
                request = request.header("Authorization", authorization);
            }
            request.call().map_err(|source| RegistryError::Request {
                url: url.to_owned(),
                source: Box::new(source),
            })
        };
        let mut response = ask()?;
        if response.status() == 401 {
            self.authorize(&response, &what)?;
            response = ask()?;
        }
        match response.status().as_u16() {
            200 => Ok(response),
            401 | 403 => Err(RegistryError::Refused {
                host: host(),
                what,
                advice: match self.credentials {
                    Some(_) => "it does not take the user's name and password that were given",
                    None => {
                        "give a user's name and a password, or the image's right name: many \
                         registries ask so of what they do not have"
                    }
                },
            }),
            404 => Err(RegistryError::NotFound {
                host: host(),
                what,
                said: said(response),
            }),
            status => Err(RegistryError::Status {
                url: url.to_owned(),
                status,
                said: said(response),
            }),
        }
    }

    /// Gets what answers the registry's challenge.
    fn authorize(&self, response: &Response<Body>, what: &str) -> Result<(), RegistryError> {
        let host = || self.reference.registry.clone();
        let headers = response.headers().get_all("www-authenticate");
        let headers: Vec<&str> = headers.iter().filter_map(|it| it.to_str().ok()).collect();
        let header = headers.join(", ");
        let authorization = match challenge::parse(&header) {
            Some(Challenge::Basic) => match self.credentials {
                Some(credentials) => credentials.basic(),
                None => {
                    return Err(RegistryError::Refused {
                        host: host(),
                        what: what.to_owned(),
                        advice: "give a user's name and a password",
                    });
                }
            },
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                let token = self.token(&realm, service.as_deref(), scope.as_deref(), what)?;
                format!("Bearer {token}")
            }
            None => {
                return Err(RegistryError::Challenge {
                    host: host(),
                    challenge: header.chars().take(300).collect(),
                });
            }
        };
        self.authorization.replace(Some(authorization));
        Ok(())
    }

    /// A token for reading, with the user's name and password if there are any.
    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        what: &str,
    ) -> Result<String, RegistryError> {
        if !self.plain && !realm.starts_with("https://") {
            return Err(RegistryError::OpenRealm {
                host: self.reference.registry.clone(),
                realm: realm.to_owned(),
            });
        }
        let usual = format!("repository:{}:pull", self.reference.repository);
        let mut request = self.agent.get(realm);
        if let Some(service) = service {
            request = request.query("service", service);
        }
        request = request.query("scope", scope.unwrap_or(&usual));
        if let Some(credentials) = self.credentials {
            request = request.header("Authorization", credentials.basic());
        }
        let response = request.call().map_err(|source| RegistryError::Request {
            url: realm.to_owned(),
            source: Box::new(source),
        })?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => {
                return Err(RegistryError::Refused {
                    host: realm.to_owned(),
                    what: what.to_owned(),
                    advice: "it gives no token to this user",
                });
            }
            status => {
                return Err(RegistryError::Status {
                    url: realm.to_owned(),
                    status,
                    said: said(response),
                });
            }
        }
        let bytes = bounded(response, realm, LARGEST_TOKEN)?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        let token = token.and_then(|it| it.token.or(it.access_token));
        // It becomes a header's value.
        let usable = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        token.filter(usable).ok_or_else(|| RegistryError::Token {
            realm: realm.to_owned(),
        })
    }
}

impl RegistryError {
    /// Whether it may go better another time.
    fn may_pass(&self) -> bool {
        match self {
            Self::Request { source, .. } => {
                matches!(**source, ureq::Error::Io(_) | ureq::Error::Timeout(_))
            }
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            Self::Content { source, .. } => {
                matches!(source, ContentError::Read(_) | ContentError::Shorter { .. })
            }
            _ => false,
        }
    }
}

impl Credentials {
    fn basic(&self) -> String {
        let pair = format!("{}:{}", self.user, self.password);
        format!("Basic {}", BASE64.encode(pair))
    }
}

/// Whom a registry is believed by: the host's authorities, and those that were given.
fn tls(given: &[Vec<u8>]) -> Result<TlsConfig, RegistryError> {
    let mut certificates = Vec::new();
    for pem in given {
        let certificate = Certificate::from_pem(pem);
        certificates
            .push(certificate.map_err(|error| RegistryError::Certificate(Box::new(error)))?);
    }
    let native = rustls_native_certs::load_native_certs().certs;
    certificates.extend(native.iter().map(|it| Certificate::from_der(it).to_owned()));
    if certificates.is_empty() {
        return Err(RegistryError::NoCertificates);
    }
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        // Named here, so that nothing has to be set for the whole process.
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

fn bounded(response: Response<Body>, url: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_reader().take(limit + 1);
    reader
        .read_to_end(&mut bytes)
        .map_err(|source| RegistryError::Request {
            url: url.to_owned(),
            source: Box::new(source.into()),
        })?;
    if bytes.len() as u64 > limit {
        return Err(RegistryError::TooLarge {
            url: url.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

/// What it says of an error, for people.
fn said(response: Response<Body>) -> String {
    let mut bytes = Vec::new();
    let reader = response.into_body().into_reader();
    let _ = reader.take(LARGEST_ERROR).read_to_end(&mut bytes);
    let complaints: Option<Complaints> = serde_json::from_slice(&bytes).ok();
    let first = complaints.and_then(|it| it.errors.into_iter().next());
    match first {
        Some(it) => format!(
            ": {} ({})",
            it.message.escape_default(),
            it.code.escape_default()
        ),
        None => String::new(),
    }
}
