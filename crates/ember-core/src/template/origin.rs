//! What a guest was made from, for the manifest of what is saved of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ember_snapshot::format::Artefact;

use crate::assets::Stamp;

/// What a guest was made from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// Its kernel, if that is known.
    pub(crate) kernel: Option<Source>,
    /// What is on its disk.
    pub(crate) image: Source,
    /// What is on those of its volumes, in their order.
    pub(crate) volumes: Vec<Source>,
    /// All else, for people.
    pub(crate) built_from: BTreeMap<String, String>,
}

/// A file that a guest was made from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// One that is there. Its content is looked at when a snapshot is saved.
    File {
        /// What people call it.
        name: String,
        /// Where it is.
        path: PathBuf,
        /// What it was when the guest was made.
        stamp: Stamp,
    },
    /// One that a snapshot says it was made from.
    Known(Artefact),
}

impl Source {
    pub(crate) fn file(name: String, path: &Path, stamp: Stamp) -> Self {
        let path = path.to_owned();
        Self::File { name, path, stamp }
    }

    /// The artefact, if the file that has its path is still the one that it was.
    pub(crate) fn artefact(&self) -> Option<Artefact> {
        let (name, path, stamp) = match self {
            Self::Known(artefact) => return Some(artefact.clone()),
            Self::File { name, path, stamp } => (name, path, stamp),
        };
        let file = File::open(path).ok()?;
        let digest = digest(&file).ok()?;
        stamp.holds_for(path, &file).then(|| Artefact {
            name: name.clone(),
            digest,
        })
    }

    /// The artefact, whose file is `file`.
    pub(crate) fn artefact_of(&self, file: &File) -> io::Result<Artefact> {
        match self {
            Self::Known(artefact) => Ok(artefact.clone()),
            Self::File { name, .. } => Ok(Artefact {
                name: name.clone(),
                digest: digest(file)?,
            }),
        }
    }
}

/// The digest of a file's content, with the name of the function.
pub(crate) fn digest(file: &File) -> io::Result<String> {
    const CHUNK: usize = 1 << 20;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        // Not at the file's own position, which others share.
        let count = file.read_at(&mut buffer, offset)?;
        if count == 0 {
            return Ok(format!("blake3:{}", hasher.finalize().to_hex()));
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        offset += count as u64;
    }
}
