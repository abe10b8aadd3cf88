//! What a program leaves behind, collected after its end.

use std::fmt;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ember_guest::archive::{self, Caps, Links, read_each, unpack};
use ember_guest::protocol::{FileEntry, FileKind};

use super::trees::{Copied, directory, left_out_of, of_archive, pack};
use super::{BUFFER, ENTRIES, Files};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind};

/// An archive in memory bounds its bytes, not how many files it has or names.
const CAPS: Caps = Caps {
    bytes: u64::MAX,
    entries: ENTRIES,
};

/// Which files of a program are to be collected after its end.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Patterns of paths.
    pub(crate) patterns: Vec<Vec<u8>>,
    /// Where they begin.
    pub(crate) directory: PathBuf,
    /// Whose program it was, if not the account's.
    pub(crate) user: Option<std::ffi::OsString>,
    /// How many bytes there may be.
    pub(crate) bytes: u64,
}

/// Files that were collected in a guest: a tar archive in memory.
///
/// It is what the guest sent, and nothing in it is to be trusted: [`list`](Self::list),
/// [`read`](Self::read) and [`unpack`](Self::unpack) do not.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Artifacts {
    tar: Vec<u8>,
    left_out: Vec<LeftOut>,
    problem: Option<String>,
}

/// A file that was to be collected, and is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Its path, or the pattern that nothing matches.
    pub path: String,
    /// Why: `not found`, `too large`, `unreadable`, or `no file` of a pipe, socket or device.
    pub reason: String,
}

impl Files<'_> {
    /// Collects the files that match any of `patterns`: paths, relative to where programs start or
    /// absolute, in which `*`, `?` and `[..]` are as in a shell and `**` is any number of
    /// directories. Directories come with all that is in them, symbolic links as links.
    ///
    /// What does not fit (64 MiB if [`max_bytes`](Self::max_bytes) does not say otherwise), what
    /// cannot be read and what is not there is no error, but [told](Artifacts::left_out).
    ///
    /// # Errors
    /// See [`Files`]. [`ErrorKind::InvalidRequest`] for a pattern that is none, or has `..` in it.
    pub async fn collect<S: AsRef<Path>>(
        &self,
        patterns: impl IntoIterator<Item = S>,
    ) -> Result<Artifacts, Error> {
        let patterns = patterns.into_iter();
        let patterns = patterns.map(|it| super::bytes(it.as_ref())).collect();
        self.collect_in(Path::new("."), patterns).await
    }

    async fn collect_in(
        &self,
        directory: &Path,
        patterns: Vec<Vec<u8>>,
    ) -> Result<Artifacts, Error> {
        if patterns.is_empty() {
            return Ok(Artifacts::default());
        }
        let most = self.memory_bytes();
        let request = pack(directory, self.caps(most), true, patterns);
        let mut running = self.start(request).await?;
        let mut tar = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = running.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            tar.extend_from_slice(buffer.get(..count).unwrap_or(&buffer));
            // The guest was told, and need not have listened. An empty archive is two blocks.
            if tar.len() as u64 > most.max(1024) {
                return Err(running.too_large(most));
            }
        }
        let left_out = left_out_of(running.finish().await?);
        let left_out = left_out.map(|(path, reason)| LeftOut { path, reason });
        Ok(Artifacts {
            tar,
            left_out: left_out.collect(),
            problem: None,
        })
    }

    /// The same for a program that has ended: nothing that is wrong here takes its outcome away,
    /// unless the guest has died.
    pub(crate) async fn collect_wanted(mut self, wanted: Wanted) -> Result<Artifacts, Error> {
        if let Some(user) = wanted.user {
            self = self.as_user(user);
        }
        self = self.max_bytes(wanted.bytes);
        let directory = wanted.directory;
        match self.collect_in(&directory, wanted.patterns).await {
            Err(error) if matches!(error.kind(), ErrorKind::GuestDied | ErrorKind::Closed) => {
                Err(error)
            }
            Err(error) => Ok(Artifacts {
                problem: Some(error.to_string()),
                ..Artifacts::default()
            }),
            result => result,
        }
    }
}

impl Artifacts {
    /// The archive.
    pub fn tar(&self) -> &[u8] {
        &self.tar
    }

    /// The archive itself.
    pub fn into_tar(self) -> Vec<u8> {
        self.tar
    }

    /// What was to be collected and is not there: the first hundred.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Why nothing could be collected, if nothing could.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// What was collected, by path. Names are paths where the program started, without a slash at
    /// the beginning.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if it is no archive that may be, [`ErrorKind::TooLarge`] if it has more
    /// than 100,000 files.
    pub fn list(&self) -> Result<Vec<FileEntry>, Error> {
        let mut entries = Vec::new();
        self.each(|member, _| {
            let name = std::ffi::OsString::from_vec(member.path);
            let mut entry = FileEntry::new(name, member.kind, member.size);
            entry.mode = member.mode;
            entry.modified = UNIX_EPOCH;
            let target = member.target.map(std::ffi::OsString::from_vec);
            entry.target = target.map(PathBuf::from);
            entries.push(entry);
            Ok(true)
        })?;
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// The contents of the file `path`, if it was collected.
    ///
    /// # Errors
    /// As for [`list`](Self::list).
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>, Error> {
        let path = path.as_ref().as_os_str().as_bytes();
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let mut found = None;
        self.each(|member, contents| {
            if member.kind == FileKind::File && member.path == path {
                // No longer than the archive, which is in memory.
                let mut all = Vec::new();
                contents.read_to_end(&mut all)?;
                found = Some(all);
            }
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Makes the files in a directory of the host, which is made if it is not there, and nowhere
    /// else. As [`Files::copy_out`] does.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if it is no archive that may be, other kinds if a file cannot be made.
    pub async fn unpack(&self, host: impl AsRef<Path>) -> Result<Copied, Error> {
        let tar = self.tar.clone();
        let host = host.as_ref().to_owned();
        blocking("unpacking artifacts", move || {
            let directory = directory(&host)?;
            let done = unpack(directory.as_fd(), tar.as_slice(), CAPS, Links::Inside)
                .map_err(|error| of_archive("unpack the artifacts", &error))?;
            Ok(Copied {
                entries: done.entries,
                bytes: done.bytes,
                left_out: done.left_out,
            })
        })
        .await
    }

    fn each(
        &self,
        look: impl FnMut(archive::Member, &mut dyn Read) -> std::io::Result<bool>,
    ) -> Result<(), Error> {
        read_each(self.tar.as_slice(), CAPS, look)
            .map_err(|error| of_archive("read the artifacts", &error))
    }
}

impl fmt::Debug for Artifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifacts")
            .field("bytes", &self.tar.len())
            .field("left_out", &self.left_out)
            .field("problem", &self.problem)
            .finish()
    }
}

#[cfg(test)]
mod tests;
