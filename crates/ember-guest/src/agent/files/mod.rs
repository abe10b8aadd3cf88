//! The agent's own program for files: one request a process.
//!
//! The agent starts it like any command, so nothing of it is special: it runs as a user of the
//! guest, whose rights are what it may do; what it reads and writes are its streams, a buffer of
//! which is all that is in memory; its limits and its timeout are a command's; and whatever a file
//! does to who reads it (a pipe that nobody writes to, a file system that hangs), the agent goes on.

mod place;
#[cfg(test)]
mod tests;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::archive::{self, Caps, Links, Packer};
use crate::protocol::{FileEntry, FileKind, FileNote, FileRequest, exit_code};
use place::{Finder, Place};

/// What is in memory of a file at a time.
const BUFFER: usize = 64 * 1024;

/// Why nothing came of a request.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", reason(.0))]
    System(#[from] io::Error),
    #[error("there are more than {most} files in it")]
    TooManyEntries { most: u64 },
    #[error(transparent)]
    Archive(#[from] archive::Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

/// What the system said, without the number.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        use archive::Error;
        let of = |error: &io::Error| {
            let number = error.raw_os_error().unwrap_or(nix::libc::EIO);
            u8::try_from(number).unwrap_or(nix::libc::EIO as u8)
        };
        match self {
            Self::System(error) => of(error),
            Self::Archive(Error::File { source, .. } | Error::Stream(source)) => of(source),
            Self::TooManyEntries { .. } | Self::Archive(Error::TooManyEntries { .. }) => {
                exit_code::TOO_MANY_ENTRIES
            }
            Self::Archive(Error::TooManyBytes { .. }) => exit_code::TOO_MANY_BYTES,
            Self::Archive(_) => exit_code::REFUSED,
        }
    }
}

/// The program. Its name has been taken off its arguments.
pub(super) fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    let arguments: Vec<Vec<u8>> = arguments.map(OsString::into_vec).collect();
    let Some(request) = FileRequest::parse(&arguments) else {
        return exit_code::USAGE.into();
    };
    let (input, output) = match (own(io::stdin()), own(io::stdout())) {
        (Ok(input), Ok(output)) => (input, output),
        _ => return nix::libc::EBADF,
    };
    match perform(&request, input, output) {
        Ok(()) => 0,
        Err(failure) => {
            note(&FileNote::Failed(failure.to_string()));
            failure.exit_code().into()
        }
    }
}

/// A standard stream without the buffer that comes with it.
fn own(stream: impl AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

/// Says something on standard error. There is nobody to tell if that fails.
fn note(note: &FileNote) {
    let mut text = Vec::new();
    note.encode(&mut text);
    let _ = io::stderr().write_all(&text);
}

fn is_link(place: &Place) -> Result<bool, Errno> {
    let found = place.stat()?;
    Ok(FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
}

fn perform(request: &FileRequest, mut input: File, mut output: File) -> Result<(), Failure> {
    let finder = Finder::of_process();
    match request {
        FileRequest::Read {
            path,
            offset,
            length,
        } => {
            let mut file = open_file(&finder.find(path)?)?;
            if *offset > 0 {
                file.seek(SeekFrom::Start(*offset))?;
            }
            copy(&mut file.take(*length), &mut output)?;
        }
        FileRequest::Write { path, append, mode } => {
            let mut file = open_to_write(&finder.find(path)?, *append, *mode)?;
            copy(&mut input, &mut file)?;
        }
        FileRequest::List { path, most } => list(&finder.find(path)?, *most, &mut output)?,
        FileRequest::Stat { path, follow } => {
            let place = match follow {
                true => finder.find(path)?,
                false => finder.find_link(path)?,
            };
            let found = place.stat()?;
            let mut out = Vec::new();
            let name = OsString::from_vec(path.clone());
            entry(&place.parent, &place.name, name, &found).encode(&mut out);
            output.write_all(&out)?;
        }
        FileRequest::CreateDir { path } => {
            finder.make_directory(path)?;
        }
        FileRequest::Remove { path } => remove(&finder.find_link(path)?)?,
        FileRequest::Rename { from, to } => {
            let (from, to) = (finder.find_link(from)?, finder.find_link(to)?);
            // A link of somebody else's would become one that root trusts. Whose directory it is can
            // put one there at any time, so what has come is looked at as well.
            let is_trusted = from.is_doubtful && !to.is_doubtful;
            if is_trusted && is_link(&from)? {
                return Err(Errno::PERM.into());
            }
            rustix::fs::renameat(&from.parent, &*from.name, &to.parent, &*to.name)?;
            if is_trusted && is_link(&to)? {
                rustix::fs::unlinkat(&to.parent, &*to.name, AtFlags::empty())?;
                return Err(Errno::PERM.into());
            }
        }
        FileRequest::Watch { path } => watch::watch(&finder.find(path)?, &mut output)?,
        FileRequest::Pack {
            path,
            bytes,
            entries,
            lenient,
            patterns,
        } => {
            let directory = open_directory(&finder.find(path)?)?;
            let caps = Caps {
                bytes: *bytes,
                entries: *entries,
            };
            let output = BufWriter::with_capacity(BUFFER, output);
            let mut packer = Packer::new(output, caps, *lenient, |path: &[u8], why| {
                let path = path.to_vec();
                let why = archive::LeftOut::name(why).to_owned();
                note(&FileNote::LeftOut { path, why });
                Ok(())
            });
            match patterns.is_empty() {
                true => packer.add_directory(directory.as_fd())?,
                false => {
                    for pattern in patterns {
                        packer.add_matching(directory.as_fd(), pattern)?;
                    }
                }
            }
            packer.finish()?;
        }
        FileRequest::Unpack { path } => {
            let directory = finder.make_directory(path)?;
            // It comes from the host, which has bounded it.
            archive::unpack(directory.as_fd(), &input, Caps::NONE, Links::Any)?;
        }
    }
    Ok(())
}

/// Opens a file that has contents: no pipe that would have to be waited for, and no device.
fn open_file(place: &Place) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(place.open(flags, 0)?);
    is_file(&file)?;
    Ok(file)
}

fn open_to_write(place: &Place, append: bool, mode: u32) -> io::Result<File> {
    let mut flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY;
    if append {
        flags |= OFlags::APPEND;
    }
    let file = File::from(place.open(flags, mode & 0o777)?);
    let found = is_file(&file)?;
    if place.is_doubtful && found.st_nlink > 1 {
        // Somebody may have given a file of root's a name here.
        return Err(Errno::MLINK.into());
    }
    if !append {
        file.set_len(0)?;
    }
    Ok(file)
}

fn is_file(file: &File) -> io::Result<Stat> {
    let found = rustix::fs::fstat(file)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => Ok(found),
        FileType::Directory => Err(Errno::ISDIR.into()),
        _ => Err(Errno::INVAL.into()),
    }
}

fn open_directory(place: &Place) -> io::Result<OwnedFd> {
    place.open(OFlags::RDONLY | OFlags::DIRECTORY, 0)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn list(place: &Place, most: u64, output: &mut File) -> Result<(), Failure> {
    let directory = open_directory(place)?;
    let mut out = Vec::new();
    let mut count = 0;
    for found in Dir::read_from(&directory)? {
        let found = found?;
        let name = found.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        count += 1;
        if count > most {
            return Err(Failure::TooManyEntries { most });
        }
        match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let shown = OsString::from_vec(name.to_vec());
                entry(&directory, name, shown, &stat).encode(&mut out);
            }
            // It has gone meanwhile.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        if out.len() >= BUFFER {
            output.write_all(&out)?;
            out.clear();
        }
    }
    output.write_all(&out)?;
    Ok(())
}

fn entry(directory: &OwnedFd, name: &[u8], shown: OsString, found: &Stat) -> FileEntry {
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let size = u64::try_from(found.st_size).unwrap_or(0);
    let mut entry = FileEntry::new(shown, kind, size);
    entry.mode = found.st_mode & 0o7777;
    entry.user = found.st_uid;
    entry.group = found.st_gid;
    // A time before 1970 is shown as that.
    let seconds = u64::try_from(found.st_mtime).unwrap_or(0);
    let nanos = u32::try_from(found.st_mtime_nsec).unwrap_or(0);
    entry.modified = UNIX_EPOCH
        .checked_add(Duration::new(seconds, nanos))
        .unwrap_or(UNIX_EPOCH);
    if kind == FileKind::Symlink {
        let target = rustix::fs::readlinkat(directory, name, Vec::new()).ok();
        entry.target = target.map(|it| OsString::from_vec(it.into_bytes()).into());
    }
    entry
}

/// A directory with all that is in it, and never what a link leads to.
fn remove(place: &Place) -> io::Result<()> {
    if place.is_directory_itself() {
        // The root, or a path that ends in a dot.
        return Err(Errno::BUSY.into());
    }
    match rustix::fs::unlinkat(&place.parent, &*place.name, AtFlags::empty()) {
        // It goes down by descriptors, through no link.
        Err(Errno::ISDIR) => std::fs::remove_dir_all(place.by_descriptor()),
        result => Ok(result?),
    }
}

/// A path that leads to what is open.
fn path_of(fd: &OwnedFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

impl Place {
    fn stat(&self) -> rustix::io::Result<Stat> {
        rustix::fs::statat(&self.parent, &*self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn open(&self, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        // Links were followed when it was found, as far as they may be.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        Ok(rustix::fs::openat(&self.parent, &*self.name, flags, mode)?)
    }

    fn is_directory_itself(&self) -> bool {
        self.name == b"."
    }

    fn by_descriptor(&self) -> std::path::PathBuf {
        path_of(&self.parent).join(std::ffi::OsStr::from_bytes(&self.name))
    }
}
