//! From a stream to entries, each of them checked before anything is made of it.

use std::cell::Cell;
use std::io::{self, Read};

use tar::{Archive, EntryType, PaxExtensions};

use super::path::Inside;
use super::{BLOCK, Caps, Error, MAX_PATH, Refusal, shown};

/// The longest description of an entry: its path, its link, and what else pax knows.
const MAX_DESCRIPTION: u64 = 16 * 1024;
/// What may follow the end of an archive: `tar` fills its last record up, 10 KiB by default.
const MAX_PADDING: u64 = 1024 * 1024;

/// What an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Files of no one in particular: what is made of them is the maker's own.
    Files,
    /// A system, or a part of one: with owners, rights that go beyond permissions, and devices.
    System,
}

/// An entry that was found to be one that may be.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Inside,
    pub(super) what: What,
    /// Permissions; of a system's file, with set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) modified: u64,
    /// User and group, of a system's file.
    pub(super) owner: (u32, u32),
    /// It has extended attributes.
    pub(super) has_attributes: bool,
}

#[derive(Debug)]
pub(super) enum What {
    Directory,
    File,
    Symlink(Vec<u8>),
    HardLink(Inside),
    /// A device or a pipe. Only systems have them.
    Special,
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
///
/// What `take` fails with is handed on, unless the stream was why.
pub(super) fn each<E: From<Error>>(
    input: impl Read,
    caps: Caps,
    holds: Holds,
    mut take: impl FnMut(&Entry, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    let state = &State {
        left: Cell::new(caps.bytes),
        failure: Cell::new(None),
        read: Cell::new(0),
        may_end: Cell::new(false),
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
        state.may_end.set(false);
        entries += 1;
        if entries > caps.entries {
            return Err(Error::TooManyEntries { most: caps.entries }.into());
        }
        let size = found.size();
        // Before anything of it is read or made.
        if size.div_ceil(BLOCK).saturating_mul(BLOCK) > state.left.get() {
            return Err(Error::TooManyBytes { most: caps.bytes }.into());
        }
        let kind = found.header().entry_type();
        if is_description(kind) {
            let name = found.path_bytes().into_owned();
            let refuse = |why| Error::Refused {
                path: shown(&name),
                why,
            };
            if size > MAX_DESCRIPTION {
                return Err(refuse(Refusal::Description).into());
            }
            let mut text = Vec::new();
            found.read_to_end(&mut text).map_err(&failed)?;
            if text.len() as u64 != size {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()).into());
            }
            let slot = match kind {
                EntryType::GNULongName => &mut described.path,
                EntryType::GNULongLink => &mut described.target,
                EntryType::XHeader => &mut described.pax,
                // Of all that follow: nothing of that is taken over.
                _ => continue,
            };
            if slot.replace(text).is_some() {
                return Err(refuse(Refusal::Description).into());
            }
            // It is no file.
            entries -= 1;
            continue;
        }
        let entry = check(&found, std::mem::take(&mut described), holds)?;
        let mut contents = Contents {
            input: &mut found,
            left: size,
        };
        take(&entry, &mut contents).map_err(|error| match (error, state.failure.take()) {
            (_, Some(Failure::TooMuch)) => Error::TooManyBytes { most: caps.bytes }.into(),
            (_, Some(Failure::Stream(error))) => Error::Stream(error).into(),
            (error, None) => error,
        })?;
        // What was not read is skipped here, so that an archive that ends within it is noticed.
        io::copy(&mut contents, &mut io::sink()).map_err(&failed)?;
        state.may_end.set(holds == Holds::System);
    }
    if !described.is_empty() {
        return Err(Error::Damaged(io::Error::other(
            "it ends with the description of an entry that does not come",
        ))
        .into());
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

fn check<R: Read>(
    found: &tar::Entry<'_, R>,
    described: Described,
    holds: Holds,
) -> Result<Entry, Error> {
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
    let mut ids = (None, None);
    let mut has_attributes = false;
    for extension in PaxExtensions::new(described.pax.as_deref().unwrap_or_default()) {
        let extension = extension.map_err(|_| refuse(Refusal::Description))?;
        match extension.key_bytes() {
            b"path" => path = extension.value_bytes().to_vec(),
            b"linkpath" => target = Some(extension.value_bytes().to_vec()),
            b"size" if extension.value_bytes() != size.to_string().as_bytes() => {
                return Err(refuse(Refusal::Size));
            }
            b"uid" => ids.0 = extension.value().ok().and_then(|it| it.parse().ok()),
            b"gid" => ids.1 = extension.value().ok().and_then(|it| it.parse().ok()),
            key if key.starts_with(b"SCHILY.xattr.") => has_attributes = true,
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
        EntryType::Char | EntryType::Block | EntryType::Fifo if holds == Holds::System => {
            What::Special
        }
        EntryType::GNUSparse => return Err(refuse(Refusal::Sparse)),
        _ => return Err(refuse(Refusal::Kind)),
    };
    if inside.bytes().is_empty() && !matches!(what, What::Directory) {
        return Err(refuse(Refusal::Path));
    }
    let mode = header.mode().map_err(Error::Damaged)?;
    let (mode, owner) = match holds {
        Holds::Files => (mode & 0o777, (0, 0)),
        Holds::System => (
            mode & 0o7777,
            owner(header, ids).ok_or(refuse(Refusal::Owner))?,
        ),
    };
    Ok(Entry {
        path: inside,
        what,
        mode,
        size,
        modified: header.mtime().unwrap_or(0),
        owner,
        has_attributes,
    })
}

/// User and group: what pax says of them, else the header. The highest number is nobody's.
fn owner(header: &tar::Header, pax: (Option<u64>, Option<u64>)) -> Option<(u32, u32)> {
    let id = |pax: Option<u64>, plain: io::Result<u64>| {
        let id = u32::try_from(pax.or(plain.ok())?).ok()?;
        (id != u32::MAX).then_some(id)
    };
    Some((id(pax.0, header.uid())?, id(pax.1, header.gid())?))
}

/// Without the zero byte that ends a name.
fn trimmed(mut text: Vec<u8>) -> Vec<u8> {
    if text.last() == Some(&0) {
        text.pop();
    }
    text
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
    /// How much of the stream has been read.
    read: Cell<u64>,
    /// An entry has been read, all of it, and what fills its last block up need not come: there are
    /// layers that end so (umoci makes some), and what else takes layers takes them.
    may_end: Cell<bool>,
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
        let read = self.state.read.get();
        if count == 0 && self.state.may_end.get() && !read.is_multiple_of(BLOCK) {
            let missing = usize::try_from(BLOCK - read % BLOCK).unwrap_or(0);
            let filled = missing.min(buffer.len());
            buffer[..filled].fill(0);
            self.state.read.set(read + filled as u64);
            return Ok(filled);
        }
        match left.checked_sub(count as u64) {
            Some(left) => {
                self.state.left.set(left);
                self.state.read.set(read + count as u64);
                Ok(count)
            }
            None => {
                self.state.failure.set(Some(Failure::TooMuch));
                Err(io::ErrorKind::FileTooLarge.into())
            }
        }
    }
}
