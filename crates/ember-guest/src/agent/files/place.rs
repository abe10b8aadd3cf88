//! Where a path leads, one name after the other.
//!
//! For a user of the guest, everywhere that the kernel lets them. For root, not through symbolic
//! links in directories that others can write to: a program of a user's could have put one there, to
//! have root write where the program may not.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;

/// As many links as the kernel follows (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    /// `.` if the path leads to the directory itself.
    pub(super) name: Vec<u8>,
    /// Root is to work in a directory where others can put things.
    pub(super) is_doubtful: bool,
}

/// How paths are followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finder {
    careful: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// A link at the end is followed.
    Follow,
    /// A link at the end is what is meant.
    Keep,
    /// All of it is a directory, which is made where it is not there.
    Make,
}

impl Finder {
    /// As the rights of this process ask for.
    pub(super) fn of_process() -> Self {
        Self {
            careful: rustix::process::geteuid().is_root(),
        }
    }

    #[cfg(test)]
    pub(super) fn new(careful: bool) -> Self {
        Self { careful }
    }

    /// Where `path` leads in the end.
    pub(super) fn find(self, path: &[u8]) -> io::Result<Place> {
        self.walk(path, Last::Follow)
    }

    /// The same, but a link at the end is what is meant.
    pub(super) fn find_link(self, path: &[u8]) -> io::Result<Place> {
        self.walk(path, Last::Keep)
    }

    /// Makes the directory `path` as far as it is not there, and opens it.
    pub(super) fn make_directory(self, path: &[u8]) -> io::Result<OwnedFd> {
        let place = self.walk(path, Last::Make)?;
        place.open(OFlags::RDONLY | OFlags::DIRECTORY, 0)
    }

    fn walk(self, path: &[u8], last: Last) -> io::Result<Place> {
        if path.is_empty() {
            return Err(Errno::NOENT.into());
        }
        let mut names: VecDeque<Vec<u8>> = VecDeque::new();
        let mut links = 0;
        // A slash behind a name says that it is a directory.
        let is_directory = path.ends_with(b"/");
        // A dot, that it is the directory itself that is meant: not the name that it has.
        let mut parts = path.rsplit(|&byte| byte == b'/');
        let is_itself = parts.find(|part| !part.is_empty()) == Some(b".");
        let mut parent = start(path)?;
        put_before(&mut names, path);
        while let Some(name) = names.pop_front() {
            if name == b".." {
                parent = directory(&parent, b"..")?;
                continue;
            }
            let is_last = names.is_empty() && !is_itself;
            let found = match statat(&parent, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => Some(FileType::from_raw_mode(found.st_mode)),
                Err(Errno::NOENT) if last == Last::Make => {
                    match rustix::fs::mkdirat(&parent, &name[..], Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    Some(FileType::Directory)
                }
                Err(Errno::NOENT) if is_last => None,
                Err(errno) => return Err(errno.into()),
            };
            let follow = !is_last || last != Last::Keep || is_directory;
            if found == Some(FileType::Symlink) && follow {
                links += 1;
                if links > MAX_LINKS || self.careful && !is_only_roots(&parent)? {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&parent, &name[..], Vec::new())?.into_bytes();
                if target.first() == Some(&b'/') {
                    parent = start(&target)?;
                }
                put_before(&mut names, &target);
                continue;
            }
            if is_last {
                let must_be_directory = is_directory || last == Last::Make;
                if must_be_directory && found.is_some_and(|kind| kind != FileType::Directory) {
                    return Err(Errno::NOTDIR.into());
                }
                if found.is_none() && is_directory && last == Last::Follow {
                    return Err(Errno::NOENT.into());
                }
                let is_doubtful = self.careful && !is_only_roots(&parent)?;
                return Ok(Place {
                    parent,
                    name,
                    is_doubtful,
                });
            }
            parent = directory(&parent, &name)?;
        }
        Ok(Place {
            parent,
            name: b".".to_vec(),
            is_doubtful: false,
        })
    }
}

/// Where a path begins.
fn start(path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = if path.first() == Some(&b'/') {
        "/"
    } else {
        "."
    };
    Ok(openat(CWD, place, flags, Mode::empty())?)
}

fn directory(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn put_before(names: &mut VecDeque<Vec<u8>>, path: &[u8]) {
    let parts = path.split(|&byte| byte == b'/');
    let parts = parts.filter(|part| !matches!(*part, b"" | b"."));
    for part in parts.rev() {
        names.push_front(part.to_vec());
    }
}

/// Whether nobody but root can put anything into a directory.
fn is_only_roots(directory: &OwnedFd) -> io::Result<bool> {
    let found = rustix::fs::fstat(directory)?;
    Ok(found.st_uid == 0 && found.st_mode & 0o022 == 0)
}
