//! Names of images: `debian:12`, `registry.example:5000/team/tool@sha256:…`.

use std::fmt;

use super::digest::Digest;

/// Where names without a registry are, as everywhere.
const USUAL_REGISTRY: &str = "docker.io";
/// The host that serves it.
const USUAL_HOST: &str = "registry-1.docker.io";
/// Where names of one word are there.
const USUAL_DIRECTORY: &str = "library";
const USUAL_TAG: &str = "latest";

/// An image's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) tag: Option<String>,
    pub(super) digest: Option<Digest>,
}

/// Why a name is none.
#[derive(Debug, thiserror::Error)]
#[error("{name:?} is no name of an image, such as `debian:12` or `host:5000/path@sha256:…`: {why}")]
pub(crate) struct ReferenceError {
    name: String,
    why: &'static str,
}

impl Reference {
    /// Reads a name by the grammar of the OCI distribution specification, with Docker's rules for
    /// what is left out.
    pub(super) fn parse(name: &str) -> Result<Self, ReferenceError> {
        let wrong = |why| ReferenceError {
            name: name.chars().take(300).collect(),
            why,
        };
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => {
                let digest = Digest::parse(digest);
                (
                    rest,
                    Some(digest.ok_or_else(|| wrong("its digest is none"))?),
                )
            }
            None => (name, None),
        };
        // A colon behind the last slash begins a tag; another is a port's.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("its tag is none"));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => {
                (host.to_owned(), rest.to_owned())
            }
            _ => (USUAL_REGISTRY.to_owned(), path.to_owned()),
        };
        if !is_host(&registry) {
            return Err(wrong("its registry is no host"));
        }
        let repository = match registry.as_str() {
            USUAL_REGISTRY if !repository.contains('/') => {
                format!("{USUAL_DIRECTORY}/{repository}")
            }
            _ => repository,
        };
        if repository.len() > 255 || !repository.split('/').all(is_part) {
            return Err(wrong(
                "a path is small letters, digits, dots, hyphens and slashes",
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(USUAL_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// The host, with its port if it has one, that has it.
    pub(super) fn host(&self) -> &str {
        match self.registry.as_str() {
            USUAL_REGISTRY => USUAL_HOST,
            host => host,
        }
    }

    /// What it is asked for by. A digest says more than a tag.
    pub(super) fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => USUAL_TAG.to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    /// With nothing left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => write!(f, ":{}", self.version()),
        }
    }
}

fn is_tag(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=128).contains(&text.len()) && !text.starts_with(['.', '-']) && text.chars().all(plain)
}

fn is_part(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let edge = ['.', '_', '-'];
    !text.is_empty()
        && text.chars().all(plain)
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("..")
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let named = !name.is_empty()
        && name.len() <= 253
        && name.chars().all(plain)
        && !name.starts_with(['-', '.']);
    named && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}
