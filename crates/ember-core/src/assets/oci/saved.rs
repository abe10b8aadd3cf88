//! Images in files: OCI layouts, and what `docker save` writes.
//!
//! A layout (OCI image specification, `image-layout.md`) names all that it has by its digest. What
//! Docker's own form has is a `manifest.json`, which says in which files configuration and layers
//! are; the configuration has the digests of the layers. Both come as directories, and as archives
//! of them; newer archives are both at once, and are read as layouts.
//!
//! They come from anybody, as layers do. An archive is read by the rules for layers into memory and
//! a file without a name; links in it are followed within it. Nothing looks into content before it
//! was copied to where nobody else can change it, and has the right size and digest there.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ember_guest::archive::{self, Caps, read_system};
use serde::Deserialize;

use super::digest::{self, ContentError, Digest};
use super::document::{self, Blob, Document, DocumentError, Listed};
use super::{CAPS, host_platform};
use crate::ByteSize;
use crate::assets::layers::{LayerError, Layers, LeftOut};
use crate::assets::tree::{Entry, Node};
use crate::assets::{ImageConfig, decompress};
use crate::progress::Progress;

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const DOCKER: &str = "manifest.json";
/// Links on the way to a file: Linux's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Images that an archive may hold, and be asked for by their names.
const MOST_IMAGES: usize = 4096;

/// An image in files, described: [`Image::saved`](crate::Image::saved) is one of which nothing but
/// its path has to be said.
///
/// ```no_run
/// use ember_core::{Image, SavedImage};
///
/// let image = Image::from(SavedImage::new("tools.tar").tag("3").platform("linux/amd64"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedImage(pub(in crate::assets) Saved);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::assets) struct Saved {
    pub(in crate::assets) path: PathBuf,
    pub(in crate::assets) tag: Option<String>,
    platform: Option<String>,
    at_most: Option<u64>,
}

impl SavedImage {
    /// The image at `path`: an OCI layout, or what `docker save` writes, as a directory or an
    /// archive, which may be compressed by gzip or Zstandard.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(Saved {
            path: path.into(),
            tag: None,
            platform: None,
            at_most: None,
        })
    }

    /// Which of them, where there are several: the name that the layout gives it
    /// (`org.opencontainers.image.ref.name`), or Docker's name of it, or the tag of that alone.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.0.tag = Some(tag.into());
        self
    }

    /// The platform of which it is wanted, if it is there for several: this host's, such as
    /// `linux/amd64`, if nothing is said.
    #[must_use]
    pub fn platform(mut self, platform: impl Into<String>) -> Self {
        self.0.platform = Some(platform.into());
        self
    }

    /// How large its layers may be together, unpacked: 32 GiB if nothing is said.
    #[must_use]
    pub fn at_most(mut self, size: ByteSize) -> Self {
        self.0.at_most = Some(size.as_bytes());
        self
    }
}

impl Saved {
    pub(in crate::assets) fn platform(&self) -> String {
        self.platform.clone().unwrap_or_else(host_platform)
    }

    /// Its path, with the tag behind it if there is one.
    pub(in crate::assets) fn name(&self, path: &Path) -> String {
        match &self.tag {
            Some(tag) => format!("{}:{tag}", path.display()),
            None => path.display().to_string(),
        }
    }

    fn caps(&self) -> Caps {
        Caps {
            bytes: self.at_most.unwrap_or(CAPS.bytes),
            ..CAPS
        }
    }
}

/// Why an image in files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedError {
    #[error(
        "it is neither an OCI layout, which has the files `oci-layout` and `index.json`, nor what \
         `docker save` writes, which has `manifest.json`"
    )]
    Neither,
    #[error("it has the version {0:?} of the layout; 1.0.0 is known")]
    Version(String),
    #[error(transparent)]
    Archive(LayerError),
    #[error("its {file} cannot be used")]
    Document { file: String, source: DocumentError },
    #[error("it lacks {0:?}, which it says it has")]
    Missing(String),
    #[error("its {file} is not what it should be")]
    Content { file: String, source: ContentError },
    #[error("its {file} has more than {limit} bytes")]
    Long { file: String, limit: u64 },
    #[error("its {file} cannot be read")]
    Read { file: String, source: io::Error },
    #[error("{problem}: {known}")]
    Which { problem: String, known: String },
    #[error("it has {layers} layers, and its configuration is of {digests}")]
    Digests { layers: usize, digests: usize },
    #[error("its layers are more than may be loaded: {0} bytes")]
    TooLarge(u64),
    #[error("its layer {number} cannot be used")]
    Layer { number: usize, source: LayerError },
    #[error("cannot make a temporary file in {}", path.display())]
    Temporary { path: PathBuf, source: io::Error },
}

impl SavedError {
    fn document(file: &str) -> impl Fn(DocumentError) -> Self + '_ {
        |source| Self::Document {
            file: file.to_owned(),
            source,
        }
    }

    fn read(file: &str) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Read {
            file: shown(file),
            source,
        }
    }
}

/// Whether what is at `path` is an image that was saved, rather than a root file system: of a
/// directory told by what is in it, of an archive by the name that it begins with.
pub(in crate::assets) fn is_saved(path: &Path) -> bool {
    if path.is_dir() {
        let has = |name: &str| path.join(name).is_file();
        let names = || fs::read_dir(path).into_iter().flatten().flatten();
        return (has(LAYOUT) && has(INDEX))
            || (has(DOCKER) && names().all(|it| is_of_saved(it.file_name().as_encoded_bytes())));
    }
    struct First(Option<bool>);
    impl From<archive::Error> for First {
        fn from(_: archive::Error) -> Self {
            Self(None)
        }
    }
    let told = File::open(path).and_then(|file| {
        let mut reader = decompress::reader(BufReader::new(file))?;
        // Ends at the first entry that is more than the directory itself.
        Ok(read_system(&mut reader, CAPS, |entry, _| {
            let name = entry.path.split(|&byte| byte == b'/').next();
            match name {
                None | Some(b"") => Ok(()),
                Some(name) => Err(First(Some(is_of_saved(name)))),
            }
        }))
    });
    matches!(told, Ok(Err(First(Some(true)))))
}

/// Whether only what was saved has something of this name at its top: names of the two forms, and
/// digests, with what follows a dot.
fn is_of_saved(name: &[u8]) -> bool {
    let digest = name.strip_prefix(b"sha256:").unwrap_or(name);
    let stem = digest.split(|&byte| byte == b'.').next().unwrap_or(digest);
    matches!(
        name,
        b"oci-layout" | b"index.json" | b"blobs" | b"manifest.json" | b"repositories"
    ) || (stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit))
}

/// The files that an image was saved in.
#[derive(Debug)]
pub(in crate::assets) struct Files(Entry);

impl Files {
    /// Those in a directory, which was read.
    pub(in crate::assets) fn of_directory(root: Entry) -> Self {
        Self(root)
    }

    /// Those in an archive, of which a copy is kept on the disk of `directory`.
    pub(in crate::assets) fn of_archive(file: File, directory: &Path) -> Result<Self, SavedError> {
        let spool = |error| SavedError::Archive(LayerError::Spool(error));
        let mut files = Layers::new(directory, CAPS).map_err(spool)?;
        let reader = decompress::reader(BufReader::with_capacity(128 * 1024, file));
        files
            .apply(reader.map_err(spool)?)
            .map_err(SavedError::Archive)?;
        let (root, _) = files.finish().map_err(SavedError::Archive)?;
        Ok(Self(root))
    }

    /// The image that `wanted` describes, with temporary files in `directory`.
    pub(in crate::assets) fn find(
        &self,
        wanted: &Saved,
        directory: &Path,
    ) -> Result<Found, SavedError> {
        if let Some(text) = self.document(LAYOUT)? {
            let syntax = SavedError::document(LAYOUT);
            let layout: Layout = json("layout", &text).map_err(syntax)?;
            if !layout.image_layout_version.starts_with("1.") {
                return Err(SavedError::Version(shown(&layout.image_layout_version)));
            }
            return self.in_layout(wanted, directory);
        }
        match self.document(DOCKER)? {
            Some(text) => self.of_docker(wanted, &text),
            None => Err(SavedError::Neither),
        }
    }

    fn in_layout(&self, wanted: &Saved, directory: &Path) -> Result<Found, SavedError> {
        let missing = || SavedError::Missing(INDEX.to_owned());
        let text = self.document(INDEX)?.ok_or_else(missing)?;
        let wrong = SavedError::document(INDEX);
        let Document::Index(listed) = Document::parse(&text).map_err(&wrong)? else {
            return Err(wrong(DocumentError::Kind("an image".to_owned())));
        };
        let platform = wanted.platform();
        let mut blob = choose(&listed, wanted.tag.as_deref(), &platform)?;
        let mut document = self.parsed(&blob, directory)?;
        if let Document::Index(listed) = &document {
            blob = document::choose(listed, &platform).map_err(&wrong)?;
            document = self.parsed(&blob, directory)?;
        }
        let file = place(&blob.digest);
        let Document::Manifest { config, layers } = document else {
            let kind = DocumentError::Kind("a list in a list".to_owned());
            return Err(SavedError::document(&file)(kind));
        };
        let limit = wanted.caps().bytes;
        let sum = layers
            .iter()
            .try_fold(0_u64, |sum, it| sum.checked_add(it.size));
        if sum.is_none_or(|sum| sum > limit) {
            return Err(SavedError::TooLarge(limit));
        }
        let file = place(&config.digest);
        let text = self.small(&config, directory)?;
        let config = document::configuration(&text, &platform);
        Ok(Found {
            digest: Some(blob.digest.to_string()),
            platform,
            config: config.map_err(SavedError::document(&file))?,
            layers: layers.into_iter().map(Layer::Blob).collect(),
            caps: wanted.caps(),
        })
    }

    fn of_docker(&self, wanted: &Saved, text: &[u8]) -> Result<Found, SavedError> {
        let syntax = SavedError::document(DOCKER);
        let images: Vec<Docker> = json("list of images", text).map_err(&syntax)?;
        let image = choose_docker(&images, wanted.tag.as_deref())?;
        let missing = || SavedError::Missing(shown(&image.config));
        let text = self.document(&image.config)?.ok_or_else(missing)?;
        if let Some(digest) = named_digest(&image.config)
            && !digest.names(&text)
        {
            return Err(SavedError::Content {
                file: shown(&image.config),
                source: ContentError::Digest {
                    wanted: digest.to_string(),
                    found: Digest::of(&text).to_string(),
                },
            });
        }
        let platform = wanted.platform();
        let shown_name = shown(&image.config);
        let wrong = SavedError::document(&shown_name);
        let config = document::configuration(&text, &platform).map_err(&wrong)?;
        let digests = document::layers_of(&text).map_err(&wrong)?;
        if digests.len() != image.layers.len() {
            return Err(SavedError::Digests {
                layers: image.layers.len(),
                digests: digests.len(),
            });
        }
        let layers = image.layers.iter().cloned().zip(digests);
        Ok(Found {
            digest: None,
            platform,
            config,
            layers: layers
                .map(|(name, unpacked)| Layer::File { name, unpacked })
                .collect(),
            caps: wanted.caps(),
        })
    }

    /// Puts the layers of an image one over the other.
    pub(in crate::assets) fn layers(
        &self,
        found: &Found,
        directory: &Path,
        progress: &Progress,
    ) -> Result<(Entry, LeftOut), SavedError> {
        let mut layers = Layers::new(directory, found.caps).map_err(temporary(directory))?;
        let count = found.layers.len();
        for (index, layer) in found.layers.iter().enumerate() {
            let number = index + 1;
            let wrong = |source| SavedError::Layer { number, source };
            progress.step(&format!("unpack layer {number} of {count}"), || {
                let file = match layer {
                    Layer::Blob(blob) => self.blob(blob, directory)?,
                    Layer::File { name, unpacked } => {
                        self.unpacked(name, unpacked, found.caps.bytes, directory)?
                    }
                };
                let reader = decompress::reader(BufReader::with_capacity(128 * 1024, file));
                let reader = reader.map_err(|error| wrong(LayerError::Spool(error)))?;
                layers.apply(reader).map_err(wrong)
            })?;
        }
        layers.finish().map_err(|source| SavedError::Layer {
            number: count,
            source,
        })
    }

    fn parsed(&self, blob: &Blob, directory: &Path) -> Result<Document, SavedError> {
        let text = self.small(blob, directory)?;
        Document::parse(&text).map_err(SavedError::document(&place(&blob.digest)))
    }

    /// A document that is named by its digest.
    fn small(&self, blob: &Blob, directory: &Path) -> Result<Vec<u8>, SavedError> {
        let file = place(&blob.digest);
        if blob.size > document::LARGEST {
            let limit = document::LARGEST;
            return Err(SavedError::Long { file, limit });
        }
        let mut text = Vec::new();
        let mut content = self.blob(blob, directory)?;
        content
            .read_to_end(&mut text)
            .map_err(SavedError::read(&file))?;
        Ok(text)
    }

    /// Content of a layout, checked, in a temporary file without a name.
    fn blob(&self, blob: &Blob, directory: &Path) -> Result<File, SavedError> {
        let file = place(&blob.digest);
        let mut from = self.open_named(&file)?;
        into_temporary(&file, directory, |to| {
            digest::copy(&mut from, to, &blob.digest, blob.size)
        })
    }

    /// A layer of Docker's form, checked and no longer compressed, likewise.
    fn unpacked(
        &self,
        name: &str,
        wanted: &Digest,
        limit: u64,
        directory: &Path,
    ) -> Result<File, SavedError> {
        let from = self.open_named(name)?;
        let mut from = decompress::reader(BufReader::with_capacity(128 * 1024, from))
            .map_err(SavedError::read(name))?;
        into_temporary(name, directory, |to| {
            digest::copy_at_most(&mut from, to, wanted, limit)
        })
    }

    /// A document by its name, if it is there.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>, SavedError> {
        let Some(from) = self.open(name)? else {
            return Ok(None);
        };
        let (mut text, limit) = (Vec::new(), document::LARGEST);
        from.take(limit + 1)
            .read_to_end(&mut text)
            .map_err(SavedError::read(name))?;
        match text.len() as u64 > limit {
            true => Err(SavedError::Long {
                file: shown(name),
                limit,
            }),
            false => Ok(Some(text)),
        }
    }

    fn open_named(&self, name: &str) -> Result<Box<dyn Read + '_>, SavedError> {
        self.open(name)?
            .ok_or_else(|| SavedError::Missing(shown(name)))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + '_>>, SavedError> {
        Ok(match self.look_up(name).map(|entry| &entry.node) {
            Some(Node::Spooled(content)) => Some(Box::new(content.reader())),
            Some(Node::File(path)) => {
                // What was a file when the directory was read may be a link or a pipe by now.
                let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
                let file = File::options()
                    .read(true)
                    .custom_flags(flags.bits().cast_signed())
                    .open(path);
                Some(Box::new(file.map_err(SavedError::read(name))?))
            }
            _ => None,
        })
    }

    /// What is at `name`, through the links on the way, none of which leads out.
    fn look_up(&self, name: &str) -> Option<&Entry> {
        let mut pending: Vec<&[u8]> = name.as_bytes().rsplit(|&byte| byte == b'/').collect();
        let mut at = vec![&self.0];
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    at.last()?;
                    continue;
                }
                _ => {}
            }
            let Node::Directory(children) = &at.last()?.node else {
                return None;
            };
            let found = children.get(name)?;
            match &found.node {
                Node::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS || target.first() == Some(&b'/') {
                        return None;
                    }
                    pending.extend(target.rsplit(|&byte| byte == b'/'));
                }
                _ => at.push(found),
            }
        }
        at.pop()
    }
}

/// An image that was found in its files.
#[derive(Debug)]
pub(in crate::assets) struct Found {
    /// That of its manifest, if it has one.
    pub(in crate::assets) digest: Option<String>,
    pub(in crate::assets) platform: String,
    pub(in crate::assets) config: ImageConfig,
    layers: Vec<Layer>,
    caps: Caps,
}

#[derive(Debug)]
enum Layer {
    /// Named by its digest, as it is stored.
    Blob(Blob),
    /// Named in any way, with the digest that it has when it is not compressed.
    File { name: String, unpacked: Digest },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

/// An image of Docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Docker {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn json<'a, T: Deserialize<'a>>(what: &'static str, text: &'a [u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(text).map_err(|source| DocumentError::Syntax { what, source })
}

/// The image of a layout's index that is asked for: by its name, or the only one, or the only one for
/// this platform.
fn choose(listed: &[Listed], tag: Option<&str>, platform: &str) -> Result<Blob, SavedError> {
    let of_name: Vec<&Listed> = listed
        .iter()
        .filter(|it| tag.is_none_or(|tag| is_called(it.name.as_deref(), tag)))
        .collect();
    let for_platform: Vec<&Listed> = of_name
        .iter()
        .copied()
        .filter(|it| document::fits(it.platform.as_deref(), platform))
        .collect();
    match (of_name.as_slice(), for_platform.as_slice()) {
        // Of an image that says of no platform what it is, its configuration does.
        ([one], _) | (_, [one]) => Ok(one.blob.clone()),
        _ => {
            let names = listed.iter().map(|it| it.name.as_deref());
            Err(which(of_name.len(), tag, names))
        }
    }
}

fn choose_docker<'a>(images: &'a [Docker], tag: Option<&str>) -> Result<&'a Docker, SavedError> {
    let names = |image: &'a Docker| image.repo_tags.iter().flatten().map(String::as_str);
    let mut fitting = images
        .iter()
        .filter(|image| tag.is_none_or(|tag| names(image).any(|name| is_called(Some(name), tag))));
    match (fitting.next(), fitting.count()) {
        (Some(one), 0) => Ok(one),
        (found, more) => {
            let count = usize::from(found.is_some()) + more;
            let known = images.iter().flat_map(|image| {
                let mut names: Vec<_> = names(image).map(Some).collect();
                if names.is_empty() {
                    names.push(None);
                }
                names
            });
            Err(which(count, tag, known))
        }
    }
}

/// Whether an image of this name is the one that is called `tag`.
fn is_called(name: Option<&str>, tag: &str) -> bool {
    name.is_some_and(|name| name == tag || name.rsplit_once(':').is_some_and(|(_, its)| its == tag))
}

/// That there is not one image, but another number of them.
fn which<'a>(
    count: usize,
    tag: Option<&str>,
    names: impl Iterator<Item = Option<&'a str>>,
) -> SavedError {
    let names: Vec<&str> = names
        .map(|it| it.unwrap_or("one without a name"))
        .take(MOST_IMAGES)
        .collect();
    let problem = match (count, tag) {
        (0, Some(tag)) => format!("it has no image {:?}; there are", shown(tag)),
        (0, None) => "it has no image".to_owned(),
        _ => "it has several images, one of which has to be named".to_owned(),
    };
    SavedError::Which {
        problem,
        known: shown(&names.join(", ")),
    }
}

/// Where a layout keeps content.
fn place(digest: &Digest) -> String {
    format!("blobs/{}", digest.to_string().replacen(':', "/", 1))
}

/// The digest that a file's name in Docker's form is, if it is one: `DIGEST.json`, as Docker calls a
/// configuration, `sha256:DIGEST`, or the place that it has in a layout.
fn named_digest(name: &str) -> Option<Digest> {
    let hex = name
        .strip_prefix("blobs/sha256/")
        .or_else(|| name.strip_prefix("sha256:"))
        .or_else(|| name.strip_suffix(".json"))
        .unwrap_or(name);
    Digest::parse(&format!("sha256:{hex}"))
}

fn into_temporary(
    name: &str,
    directory: &Path,
    copy: impl FnOnce(&mut File) -> Result<(), ContentError>,
) -> Result<File, SavedError> {
    let mut file = tempfile::tempfile_in(directory).map_err(temporary(directory))?;
    copy(&mut file).map_err(|source| SavedError::Content {
        file: shown(name),
        source,
    })?;
    file.rewind().map_err(temporary(directory))?;
    Ok(file)
}

fn temporary(path: &Path) -> impl Fn(io::Error) -> SavedError + '_ {
    |source| SavedError::Temporary {
        path: path.to_owned(),
        source,
    }
}

fn shown(text: &str) -> String {
    text.chars().take(300).collect()
}
