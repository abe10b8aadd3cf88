//! Files: what the agent's own program for them is asked, and what it answers.
//!
//! The agent runs it like any command ([`Spawn::builtin`](super::Spawn::builtin)): as a user of the
//! guest, with streams, windows, limits and a timeout. Reading a file is its output, writing one
//! its input. Its arguments are a [`FileRequest`]. It exits with 0, with the number of the error
//! (errno(3)), or with one of [`exit_code`]. On its standard error it tells what it did not do, as
//! [notes](FileNote).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::codec::{Reader, put_string};
use super::{Kind, MAX_PATH, Malformed};

/// The name of the program: its first argument.
pub const FILES_PROGRAM: &[u8] = b"ember-files";

/// What the program for files exits with, beside the numbers of errors, all of which are smaller.
pub mod exit_code {
    /// Its arguments are none that it knows.
    pub const USAGE: u8 = 240;
    /// There are more bytes than there may be.
    pub const TOO_MANY_BYTES: u8 = 241;
    /// There are more files than there may be.
    pub const TOO_MANY_ENTRIES: u8 = 242;
    /// The archive is none, or has what it may not have.
    pub const REFUSED: u8 = 243;
}

/// Something to be done with files. Relative paths begin where the program starts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileRequest {
    /// Write a file's bytes to the output.
    Read {
        /// Which file.
        path: Vec<u8>,
        /// From which byte on.
        offset: u64,
        /// At most so many.
        length: u64,
    },
    /// Make a file of what comes as input.
    Write {
        /// Which file.
        path: Vec<u8>,
        /// Behind what it has, rather than in place of that.
        append: bool,
        /// Its permissions, less the guest's mask, if it is not there yet.
        mode: u32,
    },
    /// Write the [entries](FileEntry) of a directory to the output.
    List {
        /// Which directory.
        path: Vec<u8>,
        /// No more than so many.
        most: u64,
    },
    /// Write the [entry](FileEntry) of a file to the output.
    Stat {
        /// Which file.
        path: Vec<u8>,
        /// Where it leads, if it is a link.
        follow: bool,
    },
    /// Make a directory, and those that it is in.
    CreateDir {
        /// Which directory.
        path: Vec<u8>,
    },
    /// Remove a file, or a directory with all that is in it.
    Remove {
        /// Which.
        path: Vec<u8>,
    },
    /// Move a file or directory.
    Rename {
        /// From here.
        from: Vec<u8>,
        /// To there. A file that is there is replaced.
        to: Vec<u8>,
    },
    /// Write what happens to a file, or in a directory, to the output, as [events](FileEvent).
    Watch {
        /// Which.
        path: Vec<u8>,
    },
    /// Write files to the output, as a tar archive.
    Pack {
        /// In which directory.
        path: Vec<u8>,
        /// At most so many bytes.
        bytes: u64,
        /// At most so many files.
        entries: u64,
        /// What does not fit or cannot be read is left out, rather than an error.
        lenient: bool,
        /// Those that match these. All, if there are none.
        patterns: Vec<Vec<u8>>,
    },
    /// Make files of the archive that comes as input.
    Unpack {
        /// In which directory, which is made if it is not there.
        path: Vec<u8>,
    },
}

impl FileRequest {
    /// Its name and its path, for people.
    pub fn summary(&self) -> (&'static str, &[u8]) {
        match self {
            Self::Read { path, .. } => ("read", path),
            Self::Write {
                path,
                append: false,
                ..
            } => ("write to", path),
            Self::Write { path, .. } => ("append to", path),
            Self::List { path, .. } => ("list", path),
            Self::Stat { path, .. } => ("look at", path),
            Self::CreateDir { path } => ("make the directory", path),
            Self::Remove { path } => ("remove", path),
            Self::Rename { from, .. } => ("move", from),
            Self::Watch { path } => ("watch", path),
            Self::Pack { path, .. } => ("pack what is in", path),
            Self::Unpack { path } => ("unpack into", path),
        }
    }

    /// Whether it has input.
    pub fn has_input(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Unpack { .. })
    }

    /// The arguments of the program, its name first.
    pub fn arguments(&self) -> Vec<Vec<u8>> {
        let number = |number: u64| number.to_string().into_bytes();
        let flag = |set: bool| number(u64::from(set));
        let (name, mut rest) = match self {
            Self::Read {
                path,
                offset,
                length,
            } => ("read", vec![path.clone(), number(*offset), number(*length)]),
            Self::Write { path, append, mode } => (
                "write",
                vec![path.clone(), flag(*append), number(u64::from(*mode))],
            ),
            Self::List { path, most } => ("list", vec![path.clone(), number(*most)]),
            Self::Stat { path, follow } => ("stat", vec![path.clone(), flag(*follow)]),
            Self::CreateDir { path } => ("create-dir", vec![path.clone()]),
            Self::Remove { path } => ("remove", vec![path.clone()]),
            Self::Rename { from, to } => ("rename", vec![from.clone(), to.clone()]),
            Self::Watch { path } => ("watch", vec![path.clone()]),
            Self::Pack {
                path,
                bytes,
                entries,
                lenient,
                patterns,
            } => {
                let fixed = [
                    path.clone(),
                    number(*bytes),
                    number(*entries),
                    flag(*lenient),
                ];
                let all = fixed.into_iter().chain(patterns.iter().cloned());
                ("pack", all.collect())
            }
            Self::Unpack { path } => ("unpack", vec![path.clone()]),
        };
        let mut arguments = vec![FILES_PROGRAM.to_vec(), name.as_bytes().to_vec()];
        arguments.append(&mut rest);
        arguments
    }

    /// Reads the arguments, without the program's name.
    pub fn parse(arguments: &[Vec<u8>]) -> Option<Self> {
        let (name, rest) = arguments.split_first()?;
        let path = |index: usize| rest.get(index).cloned();
        let number = |index: usize| {
            let digits = std::str::from_utf8(rest.get(index)?).ok()?;
            digits.parse::<u64>().ok()
        };
        let flag = |index| match number(index)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        let (request, count) = match &name[..] {
            b"read" => (
                Self::Read {
                    path: path(0)?,
                    offset: number(1)?,
                    length: number(2)?,
                },
                3,
            ),
            b"write" => (
                Self::Write {
                    path: path(0)?,
                    append: flag(1)?,
                    mode: u32::try_from(number(2)?).ok()?,
                },
                3,
            ),
            b"list" => (
                Self::List {
                    path: path(0)?,
                    most: number(1)?,
                },
                2,
            ),
            b"stat" => (
                Self::Stat {
                    path: path(0)?,
                    follow: flag(1)?,
                },
                2,
            ),
            b"create-dir" => (Self::CreateDir { path: path(0)? }, 1),
            b"remove" => (Self::Remove { path: path(0)? }, 1),
            b"rename" => (
                Self::Rename {
                    from: path(0)?,
                    to: path(1)?,
                },
                2,
            ),
            b"watch" => (Self::Watch { path: path(0)? }, 1),
            b"pack" => (
                Self::Pack {
                    path: path(0)?,
                    bytes: number(1)?,
                    entries: number(2)?,
                    lenient: flag(3)?,
                    patterns: rest.get(4..)?.to_vec(),
                },
                rest.len(),
            ),
            b"unpack" => (Self::Unpack { path: path(0)? }, 1),
            _ => return None,
        };
        (rest.len() == count).then_some(request)
    }
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum FileKind {
    /// Bytes.
    File = 1,
    /// Other names.
    Directory = 2,
    /// Another path.
    Symlink = 3,
    /// A pipe, a socket or a device.
    Other = 4,
}

/// A file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEntry {
    /// Its name in its directory; of what was asked for by path, that path.
    pub name: OsString,
    /// What it is.
    pub kind: FileKind,
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Its owner.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// Bytes.
    pub size: u64,
    /// When its contents changed last.
    pub modified: SystemTime,
    /// Where it leads, if it is a symbolic link.
    pub target: Option<PathBuf>,
}

/// What happened in a directory, or to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum FileChange {
    /// It is watched from now on.
    Watching = 1,
    /// It was made, or moved here.
    Created = 2,
    /// It was written to and closed.
    Written = 3,
    /// It was removed, or moved away.
    Removed = 4,
    /// Permissions, owner or times were set.
    Attributes = 5,
    /// More has happened than could be told.
    Lost = 6,
}

/// A change, and the name that it happened to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileEvent {
    /// What happened.
    pub change: FileChange,
    /// To which name in the directory: empty for what is watched itself.
    pub name: OsString,
}

impl FileEvent {
    /// One that happened.
    pub fn new(change: FileChange, name: OsString) -> Self {
        Self { change, name }
    }
}

/// Records come with their length before them, as frames of data do not end where they do.
const LENGTH: usize = 4;
/// The longest: two paths and the numbers.
const MAX_RECORD: usize = 64 + 2 * MAX_PATH;

fn put_record(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH]);
    write(out);
    // Names and targets are paths of the kernel's, and so at most `MAX_PATH`.
    let length = (out.len() - start - LENGTH) as u32;
    out[start..start + LENGTH].copy_from_slice(&length.to_le_bytes());
}

impl FileEntry {
    /// One of which only this is known.
    pub fn new(name: OsString, kind: FileKind, size: u64) -> Self {
        Self {
            name,
            kind,
            mode: 0,
            user: 0,
            group: 0,
            size,
            modified: UNIX_EPOCH,
            target: None,
        }
    }

    /// Appends its record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_record(out, |out| {
            out.push(self.kind as u8);
            for number in [self.mode, self.user, self.group] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&self.size.to_le_bytes());
            let modified = self.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            out.extend_from_slice(&modified.as_secs().to_le_bytes());
            out.extend_from_slice(&modified.subsec_nanos().to_le_bytes());
            put_string(out, self.name.as_bytes());
            out.push(u8::from(self.target.is_some()));
            let target = self.target.as_ref().map(|it| it.as_os_str().as_bytes());
            put_string(out, target.unwrap_or_default());
        });
    }

    fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let kind = match reader.u8("file kind")? {
            1 => FileKind::File,
            2 => FileKind::Directory,
            3 => FileKind::Symlink,
            4 => FileKind::Other,
            other => return Err(reader.out_of_range("file kind", u64::from(other))),
        };
        let mode = reader.u32("mode")?;
        let user = reader.u32("user")?;
        let group = reader.u32("group")?;
        let size = reader.u64("size")?;
        let seconds = reader.u64("time")?;
        let nanos = reader.u32("time")?;
        if nanos >= 1_000_000_000 {
            return Err(reader.out_of_range("time", u64::from(nanos)));
        }
        let modified = UNIX_EPOCH
            .checked_add(Duration::new(seconds, nanos))
            .ok_or_else(|| reader.out_of_range("time", seconds))?;
        let name = OsString::from_vec(reader.string(MAX_PATH, "name")?.to_vec());
        let has_target = reader.u8("target")?;
        if has_target > 1 {
            return Err(reader.out_of_range("target", u64::from(has_target)));
        }
        let target = OsString::from_vec(reader.string(MAX_PATH, "target")?.to_vec());
        reader.end()?;
        Ok(Self {
            name,
            kind,
            mode,
            user,
            group,
            size,
            modified,
            target: (has_target != 0).then(|| target.into()),
        })
    }
}

impl FileEvent {
    /// Appends its record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_record(out, |out| {
            out.push(self.change as u8);
            put_string(out, self.name.as_bytes());
        });
    }

    fn decode(mut reader: Reader<'_>) -> Result<Self, Malformed> {
        let change = match reader.u8("change")? {
            1 => FileChange::Watching,
            2 => FileChange::Created,
            3 => FileChange::Written,
            4 => FileChange::Removed,
            5 => FileChange::Attributes,
            6 => FileChange::Lost,
            other => return Err(reader.out_of_range("change", u64::from(other))),
        };
        let name = OsString::from_vec(reader.string(MAX_PATH, "name")?.to_vec());
        reader.end()?;
        Ok(Self { change, name })
    }
}

/// Cuts an output into records. What it holds is at most one of them and one feeding.
#[derive(Debug, Default)]
pub struct FileRecords {
    buffer: Vec<u8>,
    start: usize,
}

impl FileRecords {
    /// Takes bytes that have been read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether everything that came was whole.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// The next entry, if it has come.
    ///
    /// # Errors
    /// If it is none.
    pub fn next_entry(&mut self) -> Result<Option<FileEntry>, Malformed> {
        self.next(FileEntry::decode)
    }

    /// The next event, if it has come.
    ///
    /// # Errors
    /// If it is none.
    pub fn next_event(&mut self) -> Result<Option<FileEvent>, Malformed> {
        self.next(FileEvent::decode)
    }

    fn next<T>(
        &mut self,
        decode: impl FnOnce(Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_RECORD {
            let reader = Reader::new(Kind::Data, &[]);
            return Err(reader.out_of_range("record's length", length as u64));
        }
        let Some(record) = rest.get(..length) else {
            return Ok(None);
        };
        let value = decode(Reader::new(Kind::Data, record))?;
        self.start += LENGTH + length;
        Ok(Some(value))
    }
}

/// What the program for files has to say of its work. Each ends in a zero byte on its standard
/// error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileNote {
    /// This was left out of an archive, for that reason.
    LeftOut {
        /// Its path.
        path: Vec<u8>,
        /// Why.
        why: String,
    },
    /// Why it failed: text for people.
    Failed(String),
}

impl FileNote {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::LeftOut { path, why } => {
                out.push(b'-');
                out.extend_from_slice(why.as_bytes());
                out.push(b':');
                out.extend_from_slice(path);
            }
            Self::Failed(text) => {
                out.push(b'!');
                out.extend(text.bytes().filter(|&byte| byte != 0));
            }
        }
        out.push(0);
    }

    /// Reads all that are in `text`, which may be cut anywhere. What is none is passed over.
    pub fn decode_all(text: &[u8]) -> impl Iterator<Item = Self> {
        text.split_inclusive(|&byte| byte == 0).filter_map(|note| {
            let (kind, text) = note.strip_suffix(&[0])?.split_first()?;
            match kind {
                b'-' => {
                    let colon = text.iter().position(|&byte| byte == b':')?;
                    let (why, path) = text.split_at(colon);
                    Some(Self::LeftOut {
                        path: path.get(1..)?.to_vec(),
                        why: std::str::from_utf8(why).ok()?.to_owned(),
                    })
                }
                b'!' => Some(Self::Failed(String::from_utf8_lossy(text).into_owned())),
                _ => None,
            }
        })
    }
}
