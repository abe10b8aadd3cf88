//! Images of registries.

mod challenge;
mod digest;
mod document;
mod reference;
mod registry;
mod saved;

use std::fmt;
use std::io::BufReader;
use std::path::Path;

use ember_guest::archive::Caps;

pub(crate) use document::DocumentError;
pub(crate) use reference::ReferenceError;
pub(crate) use registry::RegistryError;
pub(crate) use saved::SavedError;
pub use saved::SavedImage;
pub(super) use saved::{Files, Saved, is_saved};

use super::layers::{LayerError, Layers, LeftOut};
use super::tree::Entry;
use super::{ImageConfig, decompress};
use crate::ByteSize;
use crate::progress::Progress;
use document::{Blob, Document};
use reference::Reference;
use registry::Registry;

/// What an image may be at most if nothing is said: more than the largest that are in use.
pub(super) const CAPS: Caps = Caps {
    bytes: 32 << 30,
    entries: 1 << 20,
};

/// An image of a registry, described: [`Image::oci`](crate::Image::oci) is one of which nothing but
/// its name has to be said.
///
/// ```no_run
/// use ember_core::{Image, OciImage};
///
/// let image = Image::from(
///     OciImage::new("registry.example:5000/team/tool:3")
///         .credentials("reader", "a password")
///         .platform("linux/amd64"),
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciImage(pub(super) Oci);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Oci {
    pub(super) name: String,
    pub(super) credentials: Option<Credentials>,
    pub(super) plain_http: bool,
    pub(super) platform: Option<String>,
    pub(super) at_most: Option<u64>,
    pub(super) certificates: Vec<Vec<u8>>,
}

/// Who asks. Its password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    user: String,
    password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl OciImage {
    /// The image of this name: `debian:12`, `registry.example:5000/team/tool@sha256:…`. As
    /// everywhere, what is left out is Docker Hub, and the tag `latest`.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Oci {
            name: name.into(),
            credentials: None,
            plain_http: false,
            platform: None,
            at_most: None,
            certificates: Vec::new(),
        })
    }

    /// Who asks for it. The registry, and where it sends those who need a token, are told; nobody
    /// else is.
    #[must_use]
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.credentials = Some(Credentials {
            user: user.into(),
            password: password.into(),
        });
        self
    }

    /// The registry is spoken to without encryption: for one on this host, or in a network that is
    /// trusted. What comes is checked by digest all the same, but who asks can be overheard, and a
    /// tag can be anybody's.
    #[must_use]
    pub fn plain_http(mut self) -> Self {
        self.0.plain_http = true;
        self
    }

    /// The platform of which it is wanted, if it is there for several: this host's, such as
    /// `linux/amd64`, if nothing is said.
    #[must_use]
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.0.platform = Some(platform.into());
        self
    }

    /// A certificate, as PEM text, of an authority that the registry's own may be signed by,
    /// besides those that this host believes.
    #[must_use]
    pub fn certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.0.certificates.push(pem.into());
        self
    }

    /// How large its layers may be together, unpacked: 32 GiB if nothing is said.
    #[must_use]
    pub fn at_most(mut self, size: ByteSize) -> Self {
        self.0.at_most = Some(size.as_bytes());
        self
    }
}

/// Why an image of a registry is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{name} cannot be used: {source}")]
    Document { name: String, source: DocumentError },
    #[error("layer {number} of {name} cannot be used: {source}")]
    Layer {
        name: String,
        number: usize,
        source: LayerError,
    },
    #[error("the layers of {0} are more than may be loaded: {1} bytes")]
    TooLarge(String, u64),
}

impl PullError {
    /// Whether it is the request that is wrong.
    pub(super) fn is_request(&self) -> bool {
        matches!(self, Self::Reference(_))
    }
}

/// An image that its registry has told of.
#[derive(Debug)]
pub(super) struct Found {
    reference: Reference,
    pub(super) digest: String,
    /// Names it in the cache.
    pub(super) key: String,
    pub(super) platform: String,
    pub(super) config: ImageConfig,
    layers: Vec<Blob>,
}

impl Oci {
    /// Its name with nothing left out.
    pub(super) fn full_name(&self) -> Result<String, PullError> {
        Ok(Reference::parse(&self.name)?.to_string())
    }

    pub(super) fn platform(&self) -> String {
        self.platform.clone().unwrap_or_else(host_platform)
    }

    fn caps(&self) -> Caps {
        Caps {
            bytes: self.at_most.unwrap_or(CAPS.bytes),
            ..CAPS
        }
    }

    /// Asks the registry what its name stands for, with temporary files in `directory`.
    pub(super) fn find(&self, directory: &Path) -> Result<Found, PullError> {
        let reference = Reference::parse(&self.name)?;
        let registry = Registry::new(&reference, self)?;
        let platform = self.platform();
        let wrong = |source| PullError::Document {
            name: reference.to_string(),
            source,
        };
        let (bytes, mut digest) = registry.manifest(None)?;
        let mut document = Document::parse(&bytes).map_err(wrong)?;
        if let Document::Index(listed) = &document {
            let chosen = document::choose(listed, &platform).map_err(wrong)?;
            let (bytes, of_image) = registry.manifest(Some(&chosen))?;
            digest = of_image;
            document = Document::parse(&bytes).map_err(wrong)?;
        }
        let Document::Manifest { config, layers } = document else {
            return Err(wrong(DocumentError::Kind("a list in a list".to_owned())));
        };
        if config.size > document::LARGEST {
            return Err(wrong(DocumentError::Config));
        }
        // Packed, they are not larger than what they hold by more than this.
        let limit = self.caps().bytes;
        let sum = layers
            .iter()
            .try_fold(0_u64, |sum, it| sum.checked_add(it.size));
        if sum.is_none_or(|sum| sum > limit) {
            return Err(PullError::TooLarge(reference.to_string(), limit));
        }
        let mut text = Vec::new();
        let mut file = registry.blob(&config, directory)?;
        std::io::Read::read_to_end(&mut file, &mut text).map_err(|source| {
            RegistryError::Temporary {
                path: directory.to_owned(),
                source,
            }
        })?;
        let config = document::configuration(&text, &platform).map_err(wrong)?;
        Ok(Found {
            key: digest.hex().chars().take(32).collect(),
            digest: digest.to_string(),
            platform,
            config,
            layers,
            reference,
        })
    }

    /// Fetches its layers, and puts one over the other. One at a time is on disk, as it came.
    pub(super) fn layers(
        &self,
        found: &Found,
        directory: &Path,
        progress: &Progress,
    ) -> Result<(Entry, LeftOut), PullError> {
        let registry = Registry::new(&found.reference, self)?;
        let name = found.reference.to_string();
        let temporary = |source| RegistryError::Temporary {
            path: directory.to_owned(),
            source,
        };
        let mut layers = Layers::new(directory, self.caps()).map_err(temporary)?;
        let count = found.layers.len();
        for (index, blob) in found.layers.iter().enumerate() {
            let number = index + 1;
            let size = ByteSize::bytes(blob.size);
            let step = format!("download layer {number} of {count} ({size})");
            let file = progress.step(&step, || registry.blob(blob, directory))?;
            let wrong = |source| PullError::Layer {
                name: name.clone(),
                number,
                source,
            };
            progress.step(&format!("unpack layer {number} of {count}"), || {
                let reader = decompress::reader(BufReader::with_capacity(128 * 1024, file));
                let reader = reader.map_err(|error| wrong(LayerError::Spool(error)))?;
                layers.apply(reader).map_err(wrong)
            })?;
        }
        layers.finish().map_err(|source| PullError::Layer {
            name,
            number: count,
            source,
        })
    }
}

/// What this host is, as images say it.
fn host_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

#[cfg(test)]
mod tests;
