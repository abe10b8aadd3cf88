//! From a stream to files.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, EntryType, PaxExtensions};

use super::path::{Inside, stays_inside};
use super::{BLOCK, BUFFER, Caps, Error, MAX_PATH, Refusal, open_beneath, shown};

/// The longest description of an entry: its path, its link, and what else pax knows.
const MAX_DESCRIPTION: u64 = 16 * 1024;
/// What may follow the end of an archive: `tar` fills its last record up, 10 KiB by default.
const MAX_PADDING: u64 = 1024 * 1024;
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
    each(input, caps, |entry, contents| {
        done.entries += 1;
        match &entry.what {
            What::Directory => make_directory(root, entry)?,
            What::File => done.bytes += make_file(root, entry, contents)?,
            What::Symlink(target) => {
                if links == Links::Inside && !stays_inside(&entry.path, target) {
                    done.left_out_count += 1;
                    if done.left_out.len() < MAX_TOLD {
                        done.left_out.push(shown(entry.path.bytes()));
                    }
                    return Ok(());
                }
                make_symlink(root, entry, target)?;
            }
            What::HardLink(target) => make_hard_link(root, entry, target)?,
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
    each(input, caps, |entry, contents| {
        let (kind, target) = match &entry.what {
            _ if !go_on => return Ok(()),
            What::Directory => (FileKind::Directory, None),
            What::File => (FileKind::File, None),
            What::Symlink(target) => (FileKind::Symlink, Some(target.clone())),
            What::HardLink(_) => return Ok(()),
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

/// An entry that was found to be one that may be.
#[derive(Debug)]
struct Entry {
    path: Inside,
    what: What,
    /// Permissions alone.
    mode: u32,
    size: u64,
    modified: u64,
}

#[derive(Debug)]
enum What {
    Directory,
    File,
    Symlink(Vec<u8>),
    HardLink(Inside),
}

/// What entries before one say of it.
#[derive(Debug, Default)]
struct Described {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

impl Described {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.target.is_none() && self.pax.is_none()
    }
}

/// Reads an archive and hands each entry on, checked.
fn each(
    input: impl Read,
    caps: Caps,
    mut take: impl FnMut(&Entry, &mut dyn Read) -> Result<(), Error>,
) -> Result<(), Error> {
    let state = &State {
        left: Cell::new(caps.bytes),
        failure: Cell::new(None),
    };
    let source = Source { state, input };
    let failed = |error: io::Error| match state.failure.take() {
        Some(Failure::Stream(error)) => Error::Stream(error),
        Some(Failure::TooMuch) => Error::TooManyBytes { most: caps.bytes },
        None => Error::Damaged(error),
    };
    let mut archive = Archive::new(source);
    let mut described = Described::default();
    let mut entries = 0_u64;
    // Raw: of entries that describe others this crate would read any length into memory.
    for found in archive.entries().map_err(&failed)?.raw(true) {
        let mut found = found.map_err(&failed)?;
        entries += 1;
        if entries > caps.entries {
            return Err(Error::TooManyEntries { most: caps.entries });
        }
        let size = found.size();
        // Before anything of it is read or made.
        if size.div_ceil(BLOCK).saturating_mul(BLOCK) > state.left.get() {
            return Err(Error::TooManyBytes { most: caps.bytes });
        }
        let kind = found.header().entry_type();
        if is_description(kind) {
            let name = found.path_bytes().into_owned();
            let refuse = |why| Error::Refused {
                path: shown(&name),
                why,
            };
            if size > MAX_DESCRIPTION {
                return Err(refuse(Refusal::Description));
            }
            let mut text = Vec::new();
            found.read_to_end(&mut text).map_err(&failed)?;
            if text.len() as u64 != size {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            let slot = match kind {
                EntryType::GNULongName => &mut described.path,
                EntryType::GNULongLink => &mut described.target,
                EntryType::XHeader => &mut described.pax,
                // Of all that follow: nothing of that is taken over.
                _ => continue,
            };
            if slot.replace(text).is_some() {
                return Err(refuse(Refusal::Description));
            }
            // It is no file.
            entries -= 1;
            continue;
        }
        let entry = check(&found, std::mem::take(&mut described))?;
        let mut contents = Contents {
            input: &mut found,
            left: size,
        };
        take(&entry, &mut contents).map_err(|error| match (error, state.failure.take()) {
            (_, Some(Failure::TooMuch)) => Error::TooManyBytes { most: caps.bytes },
            (_, Some(Failure::Stream(error))) => Error::Stream(error),
            (error, None) => error,
        })?;
        // What was not read is skipped here, so that an archive that ends within it is noticed.
        io::copy(&mut contents, &mut io::sink()).map_err(&failed)?;
    }
    if !described.is_empty() {
        return Err(Error::Damaged(io::Error::other(
            "it ends with the description of an entry that does not come",
        )));
    }
    let mut rest = archive.into_inner();
    state.left.set(MAX_PADDING);
    io::copy(&mut rest, &mut io::sink()).map_err(|error| match state.failure.take() {
        Some(Failure::Stream(error)) => Error::Stream(error),
        _ => Error::Damaged(io::Error::other(format!("behind its end: {error}"))),
    })?;
    Ok(())
}

fn is_description(kind: EntryType) -> bool {
    kind.is_gnu_longname()
        || kind.is_gnu_longlink()
        || kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
}

fn check<R: Read>(found: &tar::Entry<'_, R>, described: Described) -> Result<Entry, Error> {
    let header = found.header();
    let mut path = described
        .path
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let mut target = described.target;
    if target.is_none() {
        target = header.link_name_bytes().map(|it| it.into_owned());
    }
    let size = found.size();
    let first = trimmed(path.clone());
    let refuse = |why| Error::Refused {
        path: shown(&first),
        why,
    };
    for extension in PaxExtensions::new(described.pax.as_deref().unwrap_or_default()) {
        let extension = extension.map_err(|_| refuse(Refusal::Description))?;
        match extension.key_bytes() {
            b"path" => path = extension.value_bytes().to_vec(),
            b"linkpath" => target = Some(extension.value_bytes().to_vec()),
            b"size" if extension.value_bytes() != size.to_string().as_bytes() => {
                return Err(refuse(Refusal::Size));
            }
            key if key.starts_with(b"GNU.sparse") => return Err(refuse(Refusal::Sparse)),
            _ => {}
        }
    }
    let path = trimmed(path);
    let refuse = |why| Error::Refused {
        path: shown(&path),
        why,
    };
    let target = target.map(trimmed).filter(|target| !target.is_empty());
    let inside = Inside::new(&path).map_err(refuse)?;
    let what = match header.entry_type() {
        EntryType::Directory => What::Directory,
        // Before there was a kind for them, directories were files whose names end so.
        EntryType::Regular if path.ends_with(b"/") && size == 0 => What::Directory,
        EntryType::Regular | EntryType::Continuous => What::File,
        EntryType::Symlink => {
            let target = target.ok_or(refuse(Refusal::Path))?;
            if target.len() > MAX_PATH || target.contains(&0) {
                return Err(refuse(Refusal::Path));
            }
            What::Symlink(target)
        }
        EntryType::Link => {
            let target = target.ok_or(refuse(Refusal::Path))?;
            let target = Inside::new(&target).map_err(|_| refuse(Refusal::HardLink))?;
            What::HardLink(target)
        }
        EntryType::GNUSparse => return Err(refuse(Refusal::Sparse)),
        _ => return Err(refuse(Refusal::Kind)),
    };
    if inside.bytes().is_empty() && !matches!(what, What::Directory) {
        return Err(refuse(Refusal::Path));
    }
    let mode = header.mode().map_err(Error::Damaged)? & 0o777;
    Ok(Entry {
        path: inside,
        what,
        mode,
        size,
        modified: header.mtime().unwrap_or(0),
    })
}

/// Without the zero byte that ends a name.
fn trimmed(mut text: Vec<u8>) -> Vec<u8> {
    if text.last() == Some(&0) {
        text.pop();
    }
    text
}

/// Opens the directory that `path` is in, which is made if it is not there.
fn open_parent(root: BorrowedFd<'_>, parent: &[u8]) -> Result<OwnedFd, Error> {
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
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::file("make the directory", parent, errno)),
        }
        opened = open_beneath(opened.as_fd(), name, directory).map_err(failed)?;
    }
    Ok(opened)
}

fn make_directory(root: BorrowedFd<'_>, entry: &Entry) -> Result<(), Error> {
    let Some((parent, name)) = entry.path.split() else {
        return Ok(());
    };
    let parent = open_parent(root, parent)?;
    let path = entry.path.bytes();
    // Its files have to be made yet.
    let mode = Mode::from_raw_mode(entry.mode | 0o700);
    match rustix::fs::mkdirat(&parent, name, mode) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => open_beneath(root, path, OFlags::PATH | OFlags::DIRECTORY)
            .map(drop)
            .map_err(|errno| Error::file("open the directory", path, errno)),
        Err(errno) => Err(Error::file("make the directory", path, errno)),
    }
}

/// The directory of an entry and its name there, where there is nothing of that name any more.
fn make_way<'a>(root: BorrowedFd<'_>, entry: &'a Entry) -> Result<(OwnedFd, &'a [u8]), Error> {
    let path = entry.path.bytes();
    let (parent, name) = entry.path.split().unwrap_or((&[], path));
    let parent = open_parent(root, parent)?;
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok((parent, name)),
        Err(errno) => Err(Error::file("replace", path, errno)),
    }
}

fn make_file(root: BorrowedFd<'_>, entry: &Entry, contents: &mut dyn Read) -> Result<u64, Error> {
    let path = entry.path.bytes();
    let (parent, name) = make_way(root, entry)?;
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

fn make_symlink(root: BorrowedFd<'_>, entry: &Entry, target: &[u8]) -> Result<(), Error> {
    let (parent, name) = make_way(root, entry)?;
    rustix::fs::symlinkat(target, &parent, name)
        .map_err(|errno| Error::file("make the link", entry.path.bytes(), errno))
}

fn make_hard_link(root: BorrowedFd<'_>, entry: &Entry, target: &Inside) -> Result<(), Error> {
    let path = entry.path.bytes();
    let refuse = || Error::Refused {
        path: shown(path),
        why: Refusal::HardLink,
    };
    let (from, from_name) = target.split().ok_or_else(refuse)?;
    if target == &entry.path {
        return Err(refuse());
    }
    let from = match open_beneath(root, from, OFlags::PATH | OFlags::DIRECTORY) {
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
    let (parent, name) = make_way(root, entry)?;
    // Without AT_SYMLINK_FOLLOW: what has come in the file's place meanwhile is not followed.
    rustix::fs::linkat(&from, from_name, &parent, name, AtFlags::empty())
        .map_err(|errno| Error::file("make the hard link", path, errno))
}

/// An entry's contents, which have to come as a whole.
struct Contents<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Contents<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.left -= count as u64;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            let message = "it ends within a file";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        Ok(count)
    }
}

enum Failure {
    Stream(io::Error),
    TooMuch,
}

struct State {
    left: Cell<u64>,
    /// Why a read failed: what reads it says it in its own words.
    failure: Cell<Option<Failure>>,
}

/// The stream, as far as it may go.
struct Source<'a, R> {
    state: &'a State,
    input: R,
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.state.left.get();
        // One more, to learn whether there is any.
        let room = usize::try_from(left.saturating_add(1)).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        let count = self.input.read(&mut buffer[..room]).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            let kind = error.kind();
            self.state.failure.set(Some(Failure::Stream(error)));
            kind.into()
        })?;
        match left.checked_sub(count as u64) {
            Some(left) => {
                self.state.left.set(left);
                Ok(count)
            }
            None => {
                self.state.failure.set(Some(Failure::TooMuch));
                Err(io::ErrorKind::FileTooLarge.into())
            }
        }
    }
}
