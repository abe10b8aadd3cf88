//! A root file system as a value: what becomes an image, before it is written.
//!
//! A tree is read from a directory, where everything belongs to whoever unpacked it, and is then
//! corrected: owners, modes and additions are stated here, not on disk, so that building an image
//! needs no privilege.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// One file, directory or link, with who may use it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub(crate) mode: u16,
    pub(crate) user: u32,
    pub(crate) group: u32,
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
