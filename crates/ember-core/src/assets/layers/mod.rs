//! Puts the layers of an image one over the other, as a tree.
//!
//! The rules are those of the OCI image specification (`layer.md`): what a layer has replaces what
//! is below, but for directories, which are merged; `.wh.NAME` hides what the layers below have
//! under this name, and `.wh..wh..opq` all that they have in its directory. Neither hides anything
//! of the layer that it is in, wherever in the layer it stands.
//!
//! Layers come from anybody. Nothing of them becomes a file of this host: entries are kept in
//! memory, contents in a [spool](super::spool). Links on the way to an entry are followed within
//! the tree, as the kernel would in a guest (`lib/x` is put into `usr/lib` where `lib` is a link
//! to it), and one that climbs over the root is refused.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use ember_guest::archive::{self, Caps, SystemEntry, SystemKind, read_system};

use super::spool::Spool;
use super::tree::{Entry, Node};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are of the union file system that the form comes from.
const RESERVED: &[u8] = b".wh..wh.";
/// Links on the way to one entry: Linux's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Directories in directories. All that walks a tree does so by calling itself.
const MAX_DEPTH: usize = 128;
/// Entries that whiteouts may look at, for each entry that there may be.
const LOOKS: u64 = 64;

/// Why a layer was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error("the archive is refused: its entry {path:?} {why}")]
    Refused { path: String, why: Refusal },
    #[error("the archive is refused: it hides the same files again and again")]
    Whiteouts,
    #[error("cannot keep the contents of files for as long as the image is made")]
    Spool(#[source] io::Error),
}

/// What is wrong with an entry, beyond what is wrong in any archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("is below something that is no directory")]
    NotADirectory,
    #[error("is below a link that leads out of the image")]
    LeadsOut,
    #[error("is below too many links")]
    Links,
    #[error("is too deep")]
    Depth,
    #[error("is a hard link to what is no file of the image")]
    HardLink,
    #[error("hides nothing that has a name")]
    Whiteout,
}

/// What was not taken over: it is told, and no error.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// Devices and pipes: the guest has devices of its own.
    pub(crate) special: u64,
    /// Files whose extended attributes were dropped.
    pub(crate) attributes: u64,
}

/// The layers so far.
#[derive(Debug)]
pub(crate) struct Layers {
    root: Entry,
    /// The layer that is being put on, from 1.
    layer: u32,
    spool: Spool,
    /// What may still come.
    left: Caps,
    /// What all of them may be together.
    caps: Caps,
    looks: u64,
    left_out: LeftOut,
}

impl Layers {
    /// None, of which all together may be as much as `caps`. Contents are kept on the disk of
    /// `directory`.
    pub(crate) fn new(directory: &Path, caps: Caps) -> io::Result<Self> {
        Ok(Self {
            root: Entry::directory(0o755),
            layer: 0,
            spool: Spool::new(directory)?,
            left: caps,
            caps,
            looks: caps.entries.saturating_mul(LOOKS),
            left_out: LeftOut::default(),
        })
    }

    /// Puts a layer on: an archive, already decompressed.
    pub(crate) fn apply(&mut self, input: impl io::Read) -> Result<(), LayerError> {
        self.layer += 1;
        let (left, caps) = (self.left, self.caps);
        let mut counted = Counted { input, bytes: 0 };
        let mut entries = 0;
        let result = read_system(&mut counted, left, |entry, contents| {
            entries += 1;
            self.entry(&entry, contents)
        });
        self.left = Caps {
            bytes: left.bytes.saturating_sub(counted.bytes),
            entries: left.entries.saturating_sub(entries),
        };
        // Of all of them together.
        result.map_err(|error| match error {
            LayerError::Archive(archive::Error::TooManyBytes { .. }) => {
                archive::Error::TooManyBytes { most: caps.bytes }.into()
            }
            LayerError::Archive(archive::Error::TooManyEntries { .. }) => {
                archive::Error::TooManyEntries { most: caps.entries }.into()
            }
            error => error,
        })
    }

    /// The whole tree, and what it lacks.
    pub(crate) fn finish(self) -> Result<(Entry, LeftOut), LayerError> {
        self.spool.finish().map_err(LayerError::Spool)?;
        Ok((self.root, self.left_out))
    }

    fn entry(
        &mut self,
        entry: &SystemEntry,
        contents: &mut dyn io::Read,
    ) -> Result<(), LayerError> {
        let refuse = |why| LayerError::Refused {
            path: String::from_utf8_lossy(entry.path.get(..256).unwrap_or(&entry.path))
                .into_owned(),
            why,
        };
        self.left_out.attributes += u64::from(entry.has_attributes);
        let names: Vec<&[u8]> = names(&entry.path).collect();
        let Some((name, parents)) = names.split_last() else {
            // The root itself, of which an archive that is refused for less has only directories.
            let told = self.made(entry, Node::Directory(BTreeMap::new()));
            self.root = Entry {
                node: std::mem::replace(&mut self.root.node, Node::Bytes(Vec::new())),
                ..told
            };
            return Ok(());
        };
        let parent = self.resolve(parents).map_err(refuse)?;
        if *name == OPAQUE {
            return self.hide(&parent, None).map_err(|why| why.of(refuse));
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(refuse(Refusal::Whiteout));
            }
            return self
                .hide(&parent, Some(hidden))
                .map_err(|why| why.of(refuse));
        }

        let made = match &entry.kind {
            SystemKind::Directory => self.made(entry, Node::Directory(BTreeMap::new())),
            SystemKind::Symlink(target) => self.made(entry, Node::Link(target.clone())),
            SystemKind::File => {
                let spooled = self.spool.take(contents).map_err(LayerError::Spool)?;
                self.made(entry, Node::Spooled(Arc::new(spooled)))
            }
            SystemKind::HardLink(target) => self.linked(target).map_err(refuse)?,
            _ => {
                self.left_out.special += 1;
                // What is below is replaced all the same.
                let here = self.directory(&parent).map_err(refuse)?;
                here.remove(*name);
                return Ok(());
            }
        };
        let here = self.directory(&parent).map_err(refuse)?;
        let mut made = made;
        if let Node::Directory(new) = &mut made.node
            && let Some(Entry {
                node: Node::Directory(old),
                ..
            }) = here.get_mut(*name)
        {
            std::mem::swap(new, old);
        }
        here.insert(name.to_vec(), made);
        Ok(())
    }

    fn made(&self, entry: &SystemEntry, node: Node) -> Entry {
        Entry {
            mode: entry.mode,
            user: entry.user,
            group: entry.group,
            // Times after 2106 are none that the image can hold.
            modified: u32::try_from(entry.modified).unwrap_or(0),
            layer: self.layer,
            node,
        }
    }

    /// Another name of the file at `target`.
    fn linked(&self, target: &[u8]) -> Result<Entry, Refusal> {
        let names: Vec<&[u8]> = names(target).collect();
        let (name, parents) = names.split_last().ok_or(Refusal::HardLink)?;
        let parent = self.resolve(parents)?;
        let found = (parent.iter().chain(std::iter::once(&name.to_vec())))
            .try_fold(&self.root, |here, name| child(here, name))
            .ok_or(Refusal::HardLink)?;
        let node = match &found.node {
            Node::Spooled(file) => Node::Spooled(Arc::clone(file)),
            // One of its own says the same.
            Node::Link(target) => Node::Link(target.clone()),
            _ => return Err(Refusal::HardLink),
        };
        Ok(Entry {
            layer: self.layer,
            node,
            ..*found
        })
    }

    /// The directory that `path` leads to through the links on the way, as names without links. It
    /// need not be there.
    fn resolve(&self, path: &[&[u8]]) -> Result<Vec<Vec<u8>>, Refusal> {
        let mut pending: Vec<&[u8]> = path.iter().rev().copied().collect();
        let mut at: Vec<Vec<u8>> = Vec::new();
        // What is at each of them, for as long as there is anything.
        let mut found = vec![Some(&self.root)];
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    at.pop().ok_or(Refusal::LeadsOut)?;
                    found.pop();
                    continue;
                }
                _ => {}
            }
            let next = found
                .last()
                .copied()
                .flatten()
                .and_then(|here| child(here, name));
            match next.map(|entry| &entry.node) {
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Refusal::Links);
                    }
                    if target.first() == Some(&b'/') {
                        at.clear();
                        found.truncate(1);
                    }
                    pending.extend(target.rsplit(|&byte| byte == b'/'));
                }
                Some(Node::Directory(_)) | None => {
                    if at.len() >= MAX_DEPTH || name.len() > 255 {
                        return Err(Refusal::Depth);
                    }
                    at.push(name.to_vec());
                    found.push(next);
                }
                Some(_) => return Err(Refusal::NotADirectory),
            }
        }
        Ok(at)
    }

    /// What is in the directory at `path`, which has no links on it. It is made if it is not there.
    fn directory(&mut self, path: &[Vec<u8>]) -> Result<&mut BTreeMap<Vec<u8>, Entry>, Refusal> {
        let layer = self.layer;
        let mut here = &mut self.root;
        for name in path {
            let Node::Directory(children) = &mut here.node else {
                return Err(Refusal::NotADirectory);
            };
            here = children.entry(name.clone()).or_insert_with(|| Entry {
                layer,
                ..Entry::directory(0o755)
            });
        }
        match &mut here.node {
            Node::Directory(children) => Ok(children),
            _ => Err(Refusal::NotADirectory),
        }
    }

    /// Hides what the layers below have in the directory `path`: all, or what has this name.
    fn hide(&mut self, path: &[Vec<u8>], name: Option<&[u8]>) -> Result<(), Hiding> {
        let (layer, mut looks) = (self.layer, self.looks);
        // Nothing there, nothing to hide: no directory is made for it.
        let mut here = &mut self.root;
        for part in path {
            let Node::Directory(children) = &mut here.node else {
                return Err(Hiding::Refused(Refusal::NotADirectory));
            };
            match children.get_mut(part) {
                Some(child) => here = child,
                None => return Ok(()),
            }
        }
        let Node::Directory(children) = &mut here.node else {
            return Err(Hiding::Refused(Refusal::NotADirectory));
        };
        match name {
            Some(name) => {
                if let Some(child) = children.get_mut(name)
                    && !stays(child, layer, &mut looks)
                {
                    children.remove(name);
                }
            }
            None => children.retain(|_, child| stays(child, layer, &mut looks)),
        }
        self.looks = looks;
        match looks {
            0 => Err(Hiding::TooMuch),
            _ => Ok(()),
        }
    }
}

/// Why nothing could be hidden.
enum Hiding {
    Refused(Refusal),
    TooMuch,
}

impl Hiding {
    fn of(self, refuse: impl FnOnce(Refusal) -> LayerError) -> LayerError {
        match self {
            Self::Refused(why) => refuse(why),
            Self::TooMuch => LayerError::Whiteouts,
        }
    }
}

/// Takes from `entry` what is of layers below `layer`, and says whether anything is left.
fn stays(entry: &mut Entry, layer: u32, looks: &mut u64) -> bool {
    *looks = looks.saturating_sub(1);
    let mut has_any = false;
    if let Node::Directory(children) = &mut entry.node {
        if *looks > 0 {
            children.retain(|_, child| stays(child, layer, looks));
        }
        has_any = !children.is_empty();
    }
    entry.layer == layer || has_any
}

fn child<'a>(here: &'a Entry, name: &[u8]) -> Option<&'a Entry> {
    match &here.node {
        Node::Directory(children) => children.get(name),
        _ => None,
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
}

/// Counts what is read.
struct Counted<R> {
    input: R,
    bytes: u64,
}

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
