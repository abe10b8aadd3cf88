//! From files to a stream.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use glob::{MatchOptions, Pattern};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::{BLOCK, Caps, Error, MAX_DEPTH, Refusal, shown};

/// Why something is not in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftOut {
    /// It is not there, or nothing matches.
    NotFound,
    /// It is a pipe, a socket or a device.
    Special,
    /// The archive would be larger than it may be.
    TooLarge,
    /// It could not be read.
    Unreadable,
}

impl LeftOut {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not found",
            Self::Special => "no file",
            Self::TooLarge => "too large",
            Self::Unreadable => "unreadable",
        }
    }

    /// From its name.
    pub fn named(name: &str) -> Option<Self> {
        [
            Self::NotFound,
            Self::Special,
            Self::TooLarge,
            Self::Unreadable,
        ]
        .into_iter()
        .find(|it| it.name() == name)
    }
}

/// Writes files to a stream. Symbolic links are written as links, and never followed.
pub struct Packer<W: Write, L> {
    builder: Builder<W>,
    caps: Caps,
    bytes: u64,
    entries: u64,
    /// What does not fit and what cannot be read is left out, and no error.
    lenient: bool,
    left_out: L,
    /// What patterns have found: another may find it as well.
    seen: HashSet<Vec<u8>>,
}

impl<W: Write, L> std::fmt::Debug for Packer<W, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer")
            .field("bytes", &self.bytes)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

/// A part of a pattern.
enum Part<'a> {
    Name(&'a [u8]),
    Wild(Pattern),
    /// `**`: any number of directories.
    AnyDepth,
}

impl<W: Write, L: FnMut(&[u8], LeftOut) -> io::Result<()>> Packer<W, L> {
    /// To `output`, with no more than `caps`. `left_out` is told what is not in the archive, and can
    /// end it all with an error. If it is `lenient`, that is also what does not fit and what cannot
    /// be read; else these are errors.
    pub fn new(output: W, caps: Caps, lenient: bool, left_out: L) -> Self {
        let mut builder = Builder::new(output);
        builder.sparse(false);
        Self {
            builder,
            caps,
            bytes: 0,
            entries: 0,
            lenient,
            left_out,
            seen: HashSet::new(),
        }
    }

    /// How many files, directories and links it has.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Adds all that is in `directory`, under the names that it has there.
    ///
    /// # Errors
    /// If a file cannot be read or the stream not be written.
    pub fn add_directory(&mut self, directory: BorrowedFd<'_>) -> Result<(), Error> {
        let directory =
            open_directory(directory, b".").map_err(|errno| Error::file("open", b".", errno))?;
        self.add_contents(&directory, &mut Vec::new(), 0)
    }

    /// Adds what `pattern` matches: a path in `directory`, or an absolute one, the slash before
    /// which it loses in the archive. `*`, `?` and `[..]` are as in a shell, `**` is any number of
    /// directories. Directories are added with all that is in them.
    ///
    /// # Errors
    /// As for [`add_directory`](Self::add_directory), and for a pattern that is none, or leads up.
    pub fn add_matching(&mut self, directory: BorrowedFd<'_>, pattern: &[u8]) -> Result<(), Error> {
        let refuse = |why| Error::Refused {
            path: shown(pattern),
            why,
        };
        let (start, rest) = match pattern.strip_prefix(b"/") {
            Some(rest) => (open_directory(directory, b"/"), rest),
            None => (open_directory(directory, b"."), pattern),
        };
        let start = start.map_err(|errno| Error::file("open", b".", errno))?;
        let mut parts = Vec::new();
        for part in rest.split(|&byte| byte == b'/') {
            parts.push(match part {
                b"" | b"." => continue,
                b".." => return Err(refuse(Refusal::Parent)),
                b"**" => Part::AnyDepth,
                part if part.iter().any(|byte| b"*?[".contains(byte)) => {
                    let text = std::str::from_utf8(part).map_err(|_| refuse(Refusal::Path))?;
                    Part::Wild(Pattern::new(text).map_err(|_| refuse(Refusal::Path))?)
                }
                part => Part::Name(part),
            });
        }
        if parts.len() > MAX_DEPTH {
            return Err(refuse(Refusal::Path));
        }
        let before = self.seen.len();
        if parts.is_empty() {
            return self.add_contents(&start, &mut Vec::new(), 0);
        }
        self.expand(&start, &mut Vec::new(), &parts, 0)?;
        if self.seen.len() == before {
            self.leave_out(pattern, LeftOut::NotFound)?;
        }
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If the stream cannot be written.
    pub fn finish(mut self) -> Result<W, Error> {
        self.builder.finish().map_err(Error::Stream)?;
        let mut output = self.builder.into_inner().map_err(Error::Stream)?;
        output.flush().map_err(Error::Stream)?;
        Ok(output)
    }

    fn leave_out(&mut self, path: &[u8], why: LeftOut) -> Result<(), Error> {
        (self.left_out)(path, why).map_err(Error::Stream)
    }

    /// What cannot be read is left out, or an error.
    fn unreadable(&mut self, what: &'static str, path: &[u8], errno: Errno) -> Result<(), Error> {
        if errno == Errno::NOENT {
            // It has gone meanwhile.
            return Ok(());
        }
        match self.lenient {
            true => self.leave_out(path, LeftOut::Unreadable),
            false => Err(Error::file(what, path, errno)),
        }
    }

    fn expand(
        &mut self,
        directory: &OwnedFd,
        path: &mut Vec<u8>,
        parts: &[Part<'_>],
        depth: usize,
    ) -> Result<(), Error> {
        let Some((part, rest)) = parts.split_first() else {
            return Ok(());
        };
        let length = path.len();
        match part {
            Part::Name(name) => {
                push(path, name);
                self.go_on(directory.as_fd(), name, path, rest, depth)?;
                path.truncate(length);
            }
            Part::AnyDepth | Part::Wild(_) => {
                let is_deep = matches!(part, Part::AnyDepth);
                if is_deep {
                    match rest {
                        // All that is here.
                        [] => return self.add_contents(directory, path, depth),
                        _ => {
                            let again = open_directory(directory.as_fd(), b".");
                            if let Ok(again) = again {
                                self.expand(&again, path, rest, depth)?;
                            }
                        }
                    }
                }
                for name in self.names(directory, path)? {
                    push(path, &name);
                    match part {
                        Part::Wild(pattern) if matches(pattern, &name) => {
                            self.go_on(directory.as_fd(), &name, path, rest, depth)?;
                        }
                        Part::AnyDepth if depth < MAX_DEPTH && name.first() != Some(&b'.') => {
                            // Into directories, not links to such.
                            if let Ok(inside) = open_directory(directory.as_fd(), &name) {
                                self.expand(&inside, path, parts, depth + 1)?;
                            }
                        }
                        _ => {}
                    }
                    path.truncate(length);
                }
            }
        }
        Ok(())
    }

    /// Adds what was found, if the pattern ends there; else looks on in it.
    fn go_on(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &mut Vec<u8>,
        rest: &[Part<'_>],
        depth: usize,
    ) -> Result<(), Error> {
        if rest.is_empty() {
            if let Ok(found) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                && self.seen.insert(path.clone())
            {
                self.add(directory, name, &found, path, depth)?;
            }
            return Ok(());
        }
        match open_directory(directory, name) {
            Ok(inside) if depth < MAX_DEPTH => self.expand(&inside, path, rest, depth + 1),
            _ => Ok(()),
        }
    }

    /// The names in a directory, in order.
    fn names(&mut self, directory: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = Vec::new();
        let list = match Dir::read_from(directory) {
            Ok(list) => list,
            Err(errno) => {
                self.unreadable("list", path, errno)?;
                return Ok(names);
            }
        };
        let most = self.caps.entries.saturating_sub(self.entries);
        for found in list {
            let found = found.map_err(|errno| Error::file("list", path, errno))?;
            let name = found.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if names.len() as u64 >= most {
                match self.lenient {
                    true => self.leave_out(path, LeftOut::TooLarge)?,
                    false => {
                        return Err(Error::TooManyEntries {
                            most: self.caps.entries,
                        });
                    }
                }
                break;
            }
            names.push(name.to_vec());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn add_contents(
        &mut self,
        directory: &OwnedFd,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Error> {
        if depth >= MAX_DEPTH {
            return self.unreadable("go into", path, Errno::NAMETOOLONG);
        }
        let length = path.len();
        for name in self.names(directory, path)? {
            push(path, &name);
            match statat(directory, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => self.add(directory.as_fd(), &name, &found, path, depth)?,
                Err(errno) => self.unreadable("look at", path, errno)?,
            }
            path.truncate(length);
        }
        Ok(())
    }

    /// Adds a file, a link, or a directory with all that is in it.
    fn add(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        found: &Stat,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Error> {
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => match open_directory(directory, name) {
                Ok(inside) => {
                    if self.has_room(path, 0)? {
                        let header = header(found, EntryType::Directory, 0);
                        self.append(header, path, io::empty())?;
                        self.add_contents(&inside, path, depth + 1)?;
                    }
                    Ok(())
                }
                Err(errno) => self.unreadable("open", path, errno),
            },
            FileType::RegularFile => self.add_file(directory, name, path),
            FileType::Symlink => match readlinkat(directory, name, Vec::new()) {
                Ok(target) => {
                    let target = target.into_bytes();
                    if self.has_room(path, target.len() as u64)? {
                        let mut header = header(found, EntryType::Symlink, 0);
                        let place = Path::new(OsStr::from_bytes(path));
                        self.builder
                            .append_link(&mut header, place, OsStr::from_bytes(&target))
                            .map_err(Error::Stream)?;
                    }
                    Ok(())
                }
                Err(errno) => self.unreadable("read the link", path, errno),
            },
            _ => self.leave_out(path, LeftOut::Special),
        }
    }

    fn add_file(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), Error> {
        // What was a file a moment ago may be a pipe that nobody writes to.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(directory, name, flags, Mode::empty())
            .and_then(|file| Ok((rustix::fs::fstat(&file)?, file)));
        let (found, file) = match opened {
            Ok(opened) => opened,
            Err(errno) => return self.unreadable("open", path, errno),
        };
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return self.leave_out(path, LeftOut::Special);
        }
        let size = u64::try_from(found.st_size).unwrap_or(0);
        if self.has_room(path, size)? {
            let mut contents = Exactly {
                file: std::fs::File::from(file),
                left: size,
                failure: None,
            };
            let header = header(&found, EntryType::Regular, size);
            let appended = self.append(header, path, &mut contents);
            if let Some(error) = contents.failure {
                return Err(Error::file("read", path, error));
            }
            appended?;
        }
        Ok(())
    }

    fn append(
        &mut self,
        mut header: Header,
        path: &[u8],
        contents: impl Read,
    ) -> Result<(), Error> {
        self.builder
            .append_data(&mut header, Path::new(OsStr::from_bytes(path)), contents)
            .map_err(Error::Stream)
    }

    /// Counts an entry, if it may still come.
    fn has_room(&mut self, path: &[u8], size: u64) -> Result<bool, Error> {
        // The header, the contents in whole blocks, and for a long name the same once more. Two
        // blocks end the archive.
        let name = if path.len() < 100 {
            0
        } else {
            path.len() as u64
        };
        let blocks = |bytes: u64| bytes.div_ceil(BLOCK).saturating_mul(BLOCK);
        let mut taken = blocks(size).saturating_add(BLOCK);
        if name > 0 {
            taken = taken.saturating_add(BLOCK + blocks(name + 1));
        }
        let all = self.bytes.saturating_add(taken);
        if all.saturating_add(2 * BLOCK) > self.caps.bytes {
            if self.lenient {
                self.leave_out(path, LeftOut::TooLarge)?;
                return Ok(false);
            }
            return Err(Error::TooManyBytes {
                most: self.caps.bytes,
            });
        }
        if self.entries >= self.caps.entries {
            if self.lenient {
                self.leave_out(path, LeftOut::TooLarge)?;
                return Ok(false);
            }
            return Err(Error::TooManyEntries {
                most: self.caps.entries,
            });
        }
        self.bytes = all;
        self.entries += 1;
        Ok(true)
    }
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn matches(pattern: &Pattern, name: &[u8]) -> bool {
    let options = MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let name = String::from_utf8_lossy(name);
    pattern.matches_with(&name, options)
}

/// Opens a directory to list it; no link to one.
fn open_directory(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

fn header(found: &Stat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(found.st_mode & 0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(found.st_mtime).unwrap_or(0));
    header
}

/// As many bytes of a file as were announced, whatever happens to it meanwhile.
pub(super) struct Exactly<R> {
    pub(super) file: R,
    pub(super) left: u64,
    /// Why it could not be read, which is not the archive's fault.
    pub(super) failure: Option<io::Error>,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        let buffer = &mut buffer[..room];
        let count = match self.file.read(buffer) {
            // It has become shorter.
            Ok(0) => {
                buffer.fill(0);
                room
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                self.failure = Some(error);
                return Err(io::ErrorKind::InvalidData.into());
            }
        };
        self.left -= count as u64;
        Ok(count)
    }
}
