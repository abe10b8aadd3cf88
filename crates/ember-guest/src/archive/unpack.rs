//! From a stream to files.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::path::{Inside, stays_inside};
use super::read::{Entry, Holds, What, each};
use super::{BUFFER, Caps, Error, Refusal, open_beneath, shown};

/// So many names of what was left out are told.
const MAX_TOLD: usize = 100;

/// Which symbolic links are made. None is ever followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// All, wherever they lead.
    Any,
    /// Those that lead nowhere but into the tree. The others are left out, and told.
    Inside,
}

/// What came of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Links that lead out of the tree and so were left out: the first hundred.
    pub left_out: Vec<String>,
    /// How many these were.
    pub left_out_count: u64,
}

/// A file, directory or link of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its path in the tree. Empty is the tree's directory itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: crate::protocol::FileKind,
    /// Permissions.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Where it leads, if it is a link.
    pub target: Option<Vec<u8>>,
}

/// Makes the files of an archive in the directory `root`, and nowhere else.
///
/// Owners are not taken over, nor set-id and sticky bits; permissions are, as far as the process's
/// mask lets them, and files' times.
///
/// # Errors
/// What came before is there; nothing of it is anywhere else.
pub fn unpack(
    root: BorrowedFd<'_>,
    input: impl Read,
    caps: Caps,
    links: Links,
) -> Result<Unpacked, Error> {
    let mut done = Unpacked::default();
    let tree = &Tree {
        root,
        made: Cell::new(0),
        caps,
    };
    each(input, caps, Holds::Files, |entry, contents| {
        done.entries += 1;
        tree.count()?;
        match &entry.what {
            What::Directory => make_directory(tree, entry)?,
            What::File => done.bytes += make_file(tree, entry, contents)?,
            What::Symlink(target) => {
                if links == Links::Inside && !stays_inside(&entry.path, target) {
                    done.left_out_count += 1;
                    if done.left_out.len() < MAX_TOLD {
                        done.left_out.push(shown(entry.path.bytes()));
                    }
                    return Ok(());
                }
                make_symlink(tree, entry, target)?;
            }
            What::HardLink(target) => make_hard_link(tree, entry, target)?,
            // Refused before.
            What::Special => {}
        }
        Ok(())
    })?;
    Ok(done)
}

/// Reads an archive and makes nothing of it: `look` is handed each entry and its contents, of which
/// it need not read all. Hard links are not shown. Returning `false` ends it.
///
/// # Errors
/// As for [`unpack`].
pub fn read_each(
    input: impl Read,
    caps: Caps,
    mut look: impl FnMut(Member, &mut dyn Read) -> io::Result<bool>,
) -> Result<(), Error> {
    use crate::protocol::FileKind;
    let mut go_on = true;
    each(input, caps, Holds::Files, |entry, contents| {
        let (kind, target) = match &entry.what {
            _ if !go_on => return Ok(()),
            What::Directory => (FileKind::Directory, None),
            What::File => (FileKind::File, None),
            What::Symlink(target) => (FileKind::Symlink, Some(target.clone())),
            What::HardLink(_) | What::Special => return Ok(()),
        };
        let member = Member {
            path: entry.path.bytes().to_vec(),
            kind,
            mode: entry.mode,
            size: entry.size,
            target,
        };
        go_on = look(member, contents).map_err(Error::Stream)?;
        Ok(())
    })
}

/// What an archive becomes.
struct Tree<'a> {
    root: BorrowedFd<'a>,
    /// How many entries there are, with the directories that are made because something is in them:
    /// a path of a few bytes can name a hundred.
    made: Cell<u64>,
    caps: Caps,
}

impl Tree<'_> {
    fn count(&self) -> Result<(), Error> {
        self.made.set(self.made.get() + 1);
        let most = self.caps.entries;
        if self.made.get() > most {
            return Err(Error::TooManyEntries { most });
        }
        Ok(())
    }
}

/// Opens the directory that `path` is in, which is made if it is not there.
fn open_parent(tree: &Tree<'_>, parent: &[u8]) -> Result<OwnedFd, Error> {
    let root = tree.root;
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    let failed = |errno: Errno| Error::file("open the directory", parent, errno);
    match open_beneath(root, parent, directory) {
        Err(Errno::NOENT) => {}
        result => return result.map_err(failed),
    }
    let mut opened = open_beneath(root, b"", directory).map_err(failed)?;
    for name in parent.split(|&byte| byte == b'/') {
        use std::os::fd::AsFd;
        match rustix::fs::mkdirat(&opened, name, Mode::from_raw_mode(0o777)) {
            Ok(()) => tree.count()?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::file("make the directory", parent, errno)),
        }
        opened = open_beneath(opened.as_fd(), name, directory).map_err(failed)?;
    }
    Ok(opened)
}

fn make_directory(tree: &Tree<'_>, entry: &Entry) -> Result<(), Error> {
    let Some((parent, name)) = entry.path.split() else {
        return Ok(());
    };
    let parent = open_parent(tree, parent)?;
    let path = entry.path.bytes();
    // Its files have to be made yet.
    let mode = Mode::from_raw_mode(entry.mode | 0o700);
    match rustix::fs::mkdirat(&parent, name, mode) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => open_beneath(tree.root, path, OFlags::PATH | OFlags::DIRECTORY)
            .map(drop)
            .map_err(|errno| Error::file("open the directory", path, errno)),
        Err(errno) => Err(Error::file("make the directory", path, errno)),
    }
}

/// The directory of an entry and its name there, where there is nothing of that name any more.
fn make_way<'a>(tree: &Tree<'_>, entry: &'a Entry) -> Result<(OwnedFd, &'a [u8]), Error> {
    let path = entry.path.bytes();
    let (parent, name) = entry.path.split().unwrap_or((&[], path));
    let parent = open_parent(tree, parent)?;
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok((parent, name)),
        Err(errno) => Err(Error::file("replace", path, errno)),
    }
}

fn make_file(tree: &Tree<'_>, entry: &Entry, contents: &mut dyn Read) -> Result<u64, Error> {
    let path = entry.path.bytes();
    let (parent, name) = make_way(tree, entry)?;
    // Exclusive: what has come there meanwhile, a link above all, is not opened.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(entry.mode))
        .map_err(|errno| Error::file("make", path, errno))?;
    let mut file = File::from(made);
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        let count = match contents.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::Damaged(error)),
        };
        file.write_all(&buffer[..count])
            .map_err(|error| Error::file("write to", path, error))?;
        bytes += count as u64;
    }
    // Times that the file system does not have are not worth an error.
    if let Ok(seconds) = i64::try_from(entry.modified) {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let _ = rustix::fs::futimens(&file, &times);
    }
    Ok(bytes)
}

fn make_symlink(tree: &Tree<'_>, entry: &Entry, target: &[u8]) -> Result<(), Error> {
    let (parent, name) = make_way(tree, entry)?;
    rustix::fs::symlinkat(target, &parent, name)
        .map_err(|errno| Error::file("make the link", entry.path.bytes(), errno))
}

fn make_hard_link(tree: &Tree<'_>, entry: &Entry, target: &Inside) -> Result<(), Error> {
    let path = entry.path.bytes();
    let refuse = || Error::Refused {
        path: shown(path),
        why: Refusal::HardLink,
    };
    let (from, from_name) = target.split().ok_or_else(refuse)?;
    if target == &entry.path {
        return Err(refuse());
    }
    let from = match open_beneath(tree.root, from, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(from) => from,
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => return Err(refuse()),
        Err(errno) => return Err(Error::file("open the directory of the link", path, errno)),
    };
    let found = rustix::fs::statat(&from, from_name, AtFlags::SYMLINK_NOFOLLOW);
    let is_file =
        found.is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::RegularFile);
    if !is_file {
        return Err(refuse());
    }
    let (parent, name) = make_way(tree, entry)?;
    // Without AT_SYMLINK_FOLLOW: what has come in the file's place meanwhile is not followed.
    rustix::fs::linkat(&from, from_name, &parent, name, AtFlags::empty())
        .map_err(|errno| Error::file("make the hard link", path, errno))
}
