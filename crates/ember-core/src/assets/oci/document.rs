//! What registries say of images: indexes, manifests and configurations.
//!
//! Only what is used is read; the dozen fields of the OCI image specification, of which Docker's
//! formats have the same ones under other media types. It all comes from the network: documents are
//! bounded before they are read, and no field is believed before it was checked.

use serde::Deserialize;

use super::digest::Digest;
use crate::assets::ImageConfig;

/// The media types that are asked for.
pub(super) const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// Far more than any document has; registries themselves take no more than this of a manifest.
pub(super) const LARGEST: u64 = 4 << 20;
/// More layers than Docker makes (127), and than overlayfs takes (500).
const MOST_LAYERS: usize = 512;
/// What a configuration may say: it is given to every command.
const LARGEST_CONFIG: usize = 128 * 1024;

/// Why a document is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("the {what} cannot be read: {source}")]
    Syntax {
        what: &'static str,
        source: serde_json::Error,
    },
    #[error("it is {0:?}, and neither an image nor a list of images")]
    Kind(String),
    #[error("the manifest could be read as an image and as a list of images")]
    Ambiguous,
    #[error("it has the digest {0:?}, which is none that is known")]
    Digest(String),
    #[error("it has a layer of the type {0:?}, which is none that can be used")]
    Layer(String),
    #[error("it has {0} layers; the limit is {MOST_LAYERS}")]
    Layers(usize),
    #[error("there is none for {wanted}; there are: {known}")]
    Platform { wanted: String, known: String },
    #[error("it is for {found}, and {wanted} is needed")]
    OtherPlatform { wanted: String, found: String },
    #[error("its configuration says more than can be given to a command")]
    Config,
}

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Document {
    Index(Vec<Listed>),
    Manifest { config: Blob, layers: Vec<Blob> },
}

/// Content that a document names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// An image of a list.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) blob: Blob,
    pub(super) platform: Option<String>,
    /// What it is called, in a layout.
    pub(super) name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    annotations: Option<Annotations>,
}

#[derive(Debug, Deserialize)]
struct Annotations {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Platform {
    fn text(&self) -> String {
        let variant = self.variant.as_deref().filter(|it| !it.is_empty());
        match variant {
            Some(variant) => format!("{}/{}/{variant}", self.os, self.architecture),
            None => format!("{}/{}", self.os, self.architecture),
        }
    }
}

impl Descriptor {
    fn blob(&self) -> Result<Blob, DocumentError> {
        let digest = Digest::parse(&self.digest);
        Ok(Blob {
            digest: digest.ok_or_else(|| DocumentError::Digest(shortened(&self.digest)))?,
            size: self.size,
        })
    }
}

impl Document {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let written: Written =
            serde_json::from_slice(bytes).map_err(|source| DocumentError::Syntax {
                what: "manifest",
                source,
            })?;
        let kind = written.media_type.as_deref().unwrap_or_default();
        match (written.manifests, written.config, written.layers) {
            // What one reader takes for this and another for that is signed by neither.
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(DocumentError::Ambiguous),
            (Some(listed), None, None)
                if kind.is_empty() || kind.contains("index") || kind.contains("list") =>
            {
                let listed = listed.iter().map(|one| {
                    Ok(Listed {
                        blob: one.blob()?,
                        platform: one.platform.as_ref().map(Platform::text),
                        name: one.annotations.as_ref().and_then(|it| it.name.clone()),
                    })
                });
                Ok(Self::Index(listed.collect::<Result<_, DocumentError>>()?))
            }
            (None, Some(config), Some(layers))
                if kind.is_empty() || kind.contains("manifest.v") =>
            {
                if layers.len() > MOST_LAYERS {
                    return Err(DocumentError::Layers(layers.len()));
                }
                if let Some(other) = layers.iter().find(|it| !is_layer(&it.media_type)) {
                    return Err(DocumentError::Layer(shortened(&other.media_type)));
                }
                Ok(Self::Manifest {
                    config: config.blob()?,
                    layers: layers
                        .iter()
                        .map(Descriptor::blob)
                        .collect::<Result<_, _>>()?,
                })
            }
            _ => Err(DocumentError::Kind(shortened(kind))),
        }
    }
}

/// Whether it is an archive, compressed or not. How it is, is told by its first bytes.
fn is_layer(kind: &str) -> bool {
    let oci = (kind.strip_prefix("application/vnd.oci.image.layer."))
        .map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest));
    match oci {
        Some(rest) => matches!(rest, "v1.tar" | "v1.tar+gzip" | "v1.tar+zstd"),
        None => matches!(
            kind.strip_prefix("application/vnd.docker.image.rootfs."),
            Some("diff.tar" | "diff.tar.gzip" | "diff.tar.zstd" | "foreign.diff.tar.gzip")
        ),
    }
}

/// The image of a list that is for `platform`.
pub(super) fn choose(listed: &[Listed], platform: &str) -> Result<Blob, DocumentError> {
    let fitting = |one: &&Listed| fits(one.platform.as_deref(), platform);
    match listed.iter().find(fitting) {
        Some(found) => Ok(found.blob.clone()),
        None => {
            let known = listed.iter().filter_map(|one| one.platform.as_deref());
            let known: Vec<&str> = known
                .filter(|it| !it.contains("unknown"))
                .take(32)
                .collect();
            Err(DocumentError::Platform {
                wanted: platform.to_owned(),
                known: shortened(&known.join(", ")),
            })
        }
    }
}

/// Whether what is for `found` is for `platform`, whose variants are all.
pub(super) fn fits(found: Option<&str>, platform: &str) -> bool {
    let rest = found.and_then(|found| found.strip_prefix(platform));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[derive(Debug, Deserialize)]
struct Configuration {
    #[serde(flatten)]
    platform: Platform,
    config: Option<Settings>,
}

#[derive(Debug, Deserialize)]
struct OfLayers {
    rootfs: Rootfs,
}

#[derive(Debug, Deserialize)]
struct Rootfs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Settings {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

/// What an image's configuration says of how it is run. It has to be for `platform`.
pub(super) fn configuration(bytes: &[u8], platform: &str) -> Result<ImageConfig, DocumentError> {
    let written: Configuration =
        serde_json::from_slice(bytes).map_err(|source| DocumentError::Syntax {
            what: "configuration",
            source,
        })?;
    let found = written.platform.text();
    if !fits(Some(&found), platform) {
        return Err(DocumentError::OtherPlatform {
            wanted: platform.to_owned(),
            found: shortened(&found),
        });
    }
    let settings = written.config.unwrap_or_default();
    let environment = settings.env.unwrap_or_default();
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let config = ImageConfig {
        entry_point: settings.entrypoint.unwrap_or_default(),
        arguments: settings.cmd.unwrap_or_default(),
        // One without a value is one that Docker takes from its own; here nobody has it.
        environment: environment
            .iter()
            .filter_map(|it| it.split_once('='))
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        user: given(settings.user),
        directory: given(settings.working_dir),
    };
    let words = (config.entry_point.iter().chain(&config.arguments))
        .chain(config.user.iter().chain(&config.directory))
        .chain(
            config
                .environment
                .iter()
                .flat_map(|(name, value)| [name, value]),
        );
    let (mut length, mut has_zero) = (0, false);
    for word in words {
        length += word.len() + 1;
        has_zero |= word.contains('\0');
    }
    match length > LARGEST_CONFIG || has_zero {
        true => Err(DocumentError::Config),
        false => Ok(config),
    }
}

/// The digests that the layers of an image have when they are not compressed, by its configuration.
pub(super) fn layers_of(bytes: &[u8]) -> Result<Vec<Digest>, DocumentError> {
    let written: OfLayers =
        serde_json::from_slice(bytes).map_err(|source| DocumentError::Syntax {
            what: "configuration",
            source,
        })?;
    let digests = written.rootfs.diff_ids.unwrap_or_default();
    if digests.len() > MOST_LAYERS {
        return Err(DocumentError::Layers(digests.len()));
    }
    let digest =
        |text: &String| Digest::parse(text).ok_or_else(|| DocumentError::Digest(shortened(text)));
    digests.iter().map(digest).collect()
}

fn shortened(text: &str) -> String {
    text.chars().take(300).collect()
}
