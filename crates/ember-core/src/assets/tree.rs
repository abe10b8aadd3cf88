//! A root file system as a value: what becomes an image, before it is written.
//!
//! A tree is read from a directory, where everything belongs to whoever unpacked it, and is then
//! corrected: owners, modes and additions are stated here, not on disk, so that building an image
//! needs no privilege.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::spool::Spooled;

/// One file, directory or link, with who may use it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub(crate) mode: u16,
    pub(crate) user: u32,
    pub(crate) group: u32,
    /// When it was changed, in seconds since 1970.
    pub(crate) modified: u32,
    /// Which layer of an image it came with, of one that has layers.
    pub(crate) layer: u32,
    pub(crate) node: Node,
}

/// What an entry is.
#[derive(Debug)]
pub(crate) enum Node {
    /// Names in byte order, the order that image formats want.
    Directory(BTreeMap<Vec<u8>, Entry>),
    /// A file whose bytes are on disk.
    File(PathBuf),
    /// A file whose bytes are here.
    Bytes(Vec<u8>),
    /// A file whose bytes are in a spool. Entries that share one are names of one file.
    Spooled(Arc<Spooled>),
    Link(Vec<u8>),
}

/// Why a tree could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is a socket, pipe or device: an image has files, directories and links", .0.display())]
    Special(PathBuf),
    #[error(
        "{0:?} is not a path that an image can hold: it must be absolute, without `.` and `..`"
    )]
    Path(String),
    #[error("{0:?} cannot be put into the image: a part of its path is not a directory")]
    NotADirectory(String),
}

impl Entry {
    /// A directory of root's with nothing in it.
    pub(crate) fn directory(mode: u16) -> Self {
        Self::of_root(mode, Node::Directory(BTreeMap::new()))
    }

    pub(crate) fn of_root(mode: u16, node: Node) -> Self {
        Self {
            mode,
            user: 0,
            group: 0,
            modified: 0,
            layer: 0,
            node,
        }
    }

    /// Reads the directory `path`, as if root owned all of it.
    pub(crate) fn read(path: &Path) -> Result<Self, TreeError> {
        let failed = |source| TreeError::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let kind = metadata.file_type();
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the mask leaves twelve bits"
        )]
        let mode = (metadata.permissions().mode() & 0o7777) as u16;
        let node = if kind.is_dir() {
            let mut children = BTreeMap::new();
            for entry in fs::read_dir(path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                children.insert(
                    entry.file_name().as_bytes().to_vec(),
                    Self::read(&entry.path())?,
                );
            }
            Node::Directory(children)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            Node::Link(target.as_os_str().as_bytes().to_vec())
        } else if kind.is_file() {
            Node::File(path.to_owned())
        } else {
            return Err(TreeError::Special(path.to_owned()));
        };
        Ok(Self::of_root(mode, node))
    }

    /// Reads the directory `path`, which holds a system: devices and pipes are left out, and so is
    /// what is mounted in it.
    pub(crate) fn read_system(path: &Path, owners: Owners) -> Result<SystemRead, TreeError> {
        let mut reading = Reading {
            owners,
            device: None,
            hash: Sha256::new(),
            special: 0,
        };
        let root = reading.entry(path, 0)?;
        let root = root.ok_or_else(|| TreeError::Special(path.to_owned()))?;
        let hash = reading.hash.finalize();
        Ok(SystemRead {
            root,
            stamp: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            special: reading.special,
        })
    }

    /// Puts `entry` at the absolute path `path`, in place of what is there. Directories on the way
    /// are created; a directory in place of a directory keeps what is in it.
    pub(crate) fn insert(&mut self, path: &str, entry: Entry) -> Result<(), TreeError> {
        let names = names(path)?;
        let Some((last, parents)) = names.split_last() else {
            return Err(TreeError::Path(path.to_owned()));
        };
        let mut here = self;
        for name in parents {
            let Node::Directory(children) = &mut here.node else {
                return Err(TreeError::NotADirectory(path.to_owned()));
            };
            here = children
                .entry(name.as_bytes().to_vec())
                .or_insert_with(|| Entry::directory(0o755));
        }
        let Node::Directory(children) = &mut here.node else {
            return Err(TreeError::NotADirectory(path.to_owned()));
        };
        let name = last.as_bytes().to_vec();
        let mut entry = entry;
        if let Node::Directory(new) = &mut entry.node
            && let Some(Node::Directory(old)) = children.remove(&name).map(|entry| entry.node)
        {
            for (name, child) in old {
                new.entry(name).or_insert(child);
            }
        }
        children.insert(name, entry);
        Ok(())
    }

    /// Removes everything whose path matches `pattern`: an absolute path in which `*` stands for
    /// any part of one name. Says how many entries that were.
    pub(crate) fn remove(&mut self, pattern: &str) -> Result<usize, TreeError> {
        fn matching(here: &mut Entry, names: &[&str]) -> usize {
            let (Node::Directory(children), Some((first, rest))) =
                (&mut here.node, names.split_first())
            else {
                return 0;
            };
            let mut count = 0;
            if rest.is_empty() {
                let before = children.len();
                children.retain(|name, _| !matches(first.as_bytes(), name));
                count += before - children.len();
            } else {
                for (name, child) in children {
                    if matches(first.as_bytes(), name) {
                        count += matching(child, rest);
                    }
                }
            }
            count
        }
        let names = names(pattern)?;
        Ok(matching(self, &names))
    }

    /// What is at `path`, without following links.
    pub(crate) fn get(&self, path: &str) -> Option<&Entry> {
        let mut here = self;
        for name in names(path).ok()? {
            let Node::Directory(children) = &here.node else {
                return None;
            };
            here = children.get(name.as_bytes())?;
        }
        Some(here)
    }
}

/// Whose the files of a directory are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    Kept,
    Root,
}

/// What was read of a directory.
#[derive(Debug)]
pub(crate) struct SystemRead {
    pub(crate) root: Entry,
    /// Changes when anything in it does.
    pub(crate) stamp: String,
    /// How many devices and pipes were left out.
    pub(crate) special: u64,
}

/// A directory that is being read.
struct Reading {
    owners: Owners,
    device: Option<u64>,
    hash: Sha256,
    special: u64,
}

/// Directories in directories. All that walks a tree does so by calling itself.
const MAX_DEPTH: u32 = 128;

impl Reading {
    fn entry(&mut self, path: &Path, depth: u32) -> Result<Option<Entry>, TreeError> {
        let failed = |source| TreeError::Read {
            path: path.to_owned(),
            source,
        };
        if depth > MAX_DEPTH {
            return Err(failed(io::ErrorKind::InvalidFilename.into()));
        }
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let kind = metadata.file_type();
        let is_mount = *self.device.get_or_insert(metadata.dev()) != metadata.dev();
        let node = if kind.is_dir() {
            Node::Directory(BTreeMap::new())
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            Node::Link(target.into_os_string().into_vec())
        } else if kind.is_file() {
            Node::File(path.to_owned())
        } else {
            self.special += 1;
            return Ok(None);
        };
        let (user, group) = match self.owners {
            Owners::Kept => (metadata.uid(), metadata.gid()),
            Owners::Root => (0, 0),
        };
        let mode = metadata.mode();
        self.stamp(path.as_os_str().as_bytes());
        if let Node::Link(target) = &node {
            self.stamp(target);
        }
        for number in [
            u64::from(mode) << 32 | u64::from(user),
            u64::from(group),
            metadata.size(),
            metadata.ino(),
            metadata.mtime().cast_unsigned(),
            metadata.mtime_nsec().cast_unsigned(),
            // No program can set it.
            metadata.ctime().cast_unsigned(),
            metadata.ctime_nsec().cast_unsigned(),
        ] {
            self.hash.update(number.to_le_bytes());
        }
        let mut entry = Entry {
            user,
            group,
            modified: u32::try_from(metadata.mtime()).unwrap_or(0),
            ..Entry::of_root((mode & 0o7777) as u16, node)
        };
        if let Node::Directory(children) = &mut entry.node
            && !is_mount
        {
            let list = fs::read_dir(path).map_err(failed)?;
            let mut names = list
                .map(|entry| entry.map(|it| it.file_name()))
                .collect::<io::Result<Vec<_>>>()
                .map_err(failed)?;
            names.sort();
            for name in names {
                if let Some(child) = self.entry(&path.join(&name), depth + 1)? {
                    children.insert(name.into_vec(), child);
                }
            }
        }
        Ok(Some(entry))
    }

    fn stamp(&mut self, bytes: &[u8]) {
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }
}

fn names(path: &str) -> Result<Vec<&str>, TreeError> {
    let refused = || TreeError::Path(path.to_owned());
    let relative = path.strip_prefix('/').ok_or_else(refused)?;
    let names: Vec<&str> = relative
        .split('/')
        .filter(|name| !name.is_empty())
        .collect();
    let plain = |name: &&str| !matches!(*name, "." | "..") && OsStr::new(name).len() <= 255;
    if names.iter().all(plain) {
        Ok(names)
    } else {
        Err(refused())
    }
}

/// Whether `name` matches `pattern`, in which each `*` stands for any bytes.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let parts: Vec<&[u8]> = pattern.split(|byte| *byte == b'*').collect();
    let (first, middle, last) = match parts.as_slice() {
        [] => return name.is_empty(),
        [only] => return *only == name,
        [first, middle @ .., last] => (*first, middle, *last),
    };
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    for part in middle {
        // The leftmost match leaves the most for the parts that follow.
        let Some(at) = (0..=rest.len()).find(|at| rest[*at..].starts_with(part)) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests;
