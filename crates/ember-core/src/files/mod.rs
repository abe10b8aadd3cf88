//! Files of a guest, from its host.
//!
//! Each request is a process of the agent's own program in the guest, with the rights of a user of
//! the guest and streams like any other's: what is slow to read or to write holds up that request,
//! and a buffer of it is in memory.

mod artifacts;
mod patience;
mod request;
mod trees;
mod watch;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use ember_guest::protocol::{FileEntry, FileRecords, FileRequest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(crate) use artifacts::Wanted;
pub use artifacts::{Artifacts, LeftOut};
pub use trees::Copied;
pub use watch::FileWatch;

use crate::error::{Error, ErrorKind};
use crate::sandbox::Sandbox;
use request::Running;

/// What is handed over in memory, if nothing else is said.
const MEMORY_BYTES: u64 = 64 << 20;
/// What is moved as a stream, if nothing else is said.
const STREAM_BYTES: u64 = 1 << 30;
/// How many files may be moved or listed at once, if nothing else is said.
const ENTRIES: u64 = 100_000;
/// How long the guest may take for its next step, if nothing else is said.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is in memory of a stream at a time.
const BUFFER: usize = 64 << 10;
/// What a file is made with, less the guest's mask.
const MODE: u32 = 0o666;

/// The files of a sandbox's guest. Made by [`Sandbox::files`].
///
/// Everything is done with the rights that a program has which the sandbox runs: in the image's
/// account for programs, confined, so that no request reaches what a program could not
/// ([`as_root`](Self::as_root) says otherwise). Relative paths begin where programs start, in that
/// account's home.
///
/// ```no_run
/// # async fn example(sandbox: ember_core::Sandbox) -> Result<(), ember_core::Error> {
/// use ember_core::Code;
///
/// let files = sandbox.files();
/// files.write("numbers.txt", "1\n2\n3\n").await?;
/// sandbox
///     .run(Code::python("open('sum', 'w').write(str(sum(map(int, open('numbers.txt')))))"))
///     .await?;
/// assert_eq!(files.read("sum").await?, b"6");
///
/// files.copy_in("data", "data").await?;          // a directory of the host, with all in it
/// files.copy_out("results", "/srv/results").await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such file, [`ErrorKind::PermissionDenied`] if the user may
/// not, [`ErrorKind::TooLarge`] if there is more than this value lets through,
/// [`ErrorKind::Exhausted`] if the guest's disk or memory is full, [`ErrorKind::InvalidRequest`] for
/// what cannot be done (a directory in a file's place, say), [`ErrorKind::GuestDied`] if the guest
/// did not live to do it or does nothing any more.
#[derive(Debug, Clone)]
pub struct Files<'a> {
    sandbox: &'a Sandbox,
    who: Who,
    bytes: Option<u64>,
    entries: u64,
    patience: Duration,
}

#[derive(Debug, Clone)]
enum Who {
    /// The account that programs run in.
    Programs,
    User(OsString),
    Root,
}

impl Sandbox {
    /// The files of the guest, as its programs see them.
    pub fn files(&self) -> Files<'_> {
        Files {
            sandbox: self,
            who: Who::Programs,
            bytes: None,
            entries: ENTRIES,
            patience: PATIENCE,
        }
    }
}

impl Files<'_> {
    /// The same with the rights of this user of the guest: `name`, `uid`, `name:group` or `uid:gid`.
    /// Confined as well: of root, without root's capabilities.
    #[must_use]
    pub fn as_user(mut self, user: impl Into<OsString>) -> Self {
        self.who = Who::User(user.into());
        self
    }

    /// The same with all rights of the guest's administrator. Symbolic links are then followed only
    /// where none but root could have put them, and files with a second name are written to only
    /// there: a program could have led the request astray.
    #[must_use]
    pub fn as_root(mut self) -> Self {
        self.who = Who::Root;
        self
    }

    /// The most bytes that one request may move: 64 MiB if they are handed over in memory and 1 GiB
    /// if they are a stream, unless this says otherwise.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// The most files that one request may move or list: 100,000 unless this says otherwise.
    #[must_use]
    pub fn max_entries(mut self, entries: u64) -> Self {
        self.entries = entries;
        self
    }

    /// How long the guest may do nothing about a request before it is given up: a minute unless this
    /// says otherwise. How long the caller's own reader or writer takes does not count.
    #[must_use]
    pub fn patience(mut self, time: Duration) -> Self {
        self.patience = time;
        self
    }

    /// A file's contents.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, Error> {
        let mut contents = Vec::new();
        self.read_most(path.as_ref(), self.memory_bytes(), &mut contents)
            .await?;
        Ok(contents)
    }

    /// Writes a file's contents to `writer`; says how many bytes these were.
    ///
    /// # Errors
    /// See [`Files`]; also if `writer` fails.
    pub async fn read_to(
        &self,
        path: impl AsRef<Path>,
        writer: impl AsyncWrite + Unpin,
    ) -> Result<u64, Error> {
        self.read_most(path.as_ref(), self.stream_bytes(), writer)
            .await
    }

    async fn read_most(
        &self,
        path: &Path,
        most: u64,
        mut writer: impl AsyncWrite + Unpin,
    ) -> Result<u64, Error> {
        let mut running = self
            .start(FileRequest::Read {
                path: bytes(path),
                offset: 0,
                // One more tells that there is more.
                length: most.saturating_add(1),
            })
            .await?;
        let mut total = 0;
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = running.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            total += count as u64;
            if total > most {
                return Err(running.too_large(most));
            }
            let part = buffer.get(..count).unwrap_or(&buffer);
            writer.write_all(part).await.map_err(own_stream)?;
        }
        writer.flush().await.map_err(own_stream)?;
        running.finish().await?;
        Ok(total)
    }

    /// Makes a file of these bytes, in place of one that is there. The directory has to be there.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn write(
        &self,
        path: impl AsRef<Path>,
        contents: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        self.put(path.as_ref(), contents.as_ref(), false, MODE)
            .await
            .map(drop)
    }

    /// Makes a file of what `reader` has, to its end; says how many bytes these were.
    ///
    /// # Errors
    /// See [`Files`]; also if `reader` fails.
    pub async fn write_from(
        &self,
        path: impl AsRef<Path>,
        reader: impl AsyncRead + Unpin,
    ) -> Result<u64, Error> {
        self.put(path.as_ref(), reader, false, MODE).await
    }

    /// Puts these bytes behind what a file has, which is made if it is not there.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn append(
        &self,
        path: impl AsRef<Path>,
        contents: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        self.put(path.as_ref(), contents.as_ref(), true, MODE)
            .await
            .map(drop)
    }

    async fn put(
        &self,
        path: &Path,
        mut reader: impl AsyncRead + Unpin,
        append: bool,
        mode: u32,
    ) -> Result<u64, Error> {
        let path = bytes(path);
        let request = FileRequest::Write { path, append, mode };
        let mut running = self.start(request).await?;
        let most = self.stream_bytes();
        let mut total = 0;
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = reader.read(&mut buffer).await.map_err(own_stream)?;
            total += count as u64;
            if total > most {
                return Err(running.too_large(most));
            }
            let part = buffer.get(..count).unwrap_or(&buffer);
            if count == 0 || !running.write(part).await? {
                break;
            }
        }
        running.finish().await?;
        Ok(total)
    }

    /// What is in a directory, by name.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn list(&self, path: impl AsRef<Path>) -> Result<Vec<FileEntry>, Error> {
        let path = bytes(path.as_ref());
        let most = self.entries;
        let mut entries = self
            .entries_of(FileRequest::List { path, most }, most)
            .await?;
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// What is known of a file. Of a symbolic link, of the link itself.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn stat(&self, path: impl AsRef<Path>) -> Result<FileEntry, Error> {
        self.stat_of(path.as_ref(), false).await
    }

    async fn stat_of(&self, path: &Path, follow: bool) -> Result<FileEntry, Error> {
        let path = bytes(path);
        let request = FileRequest::Stat { path, follow };
        let found = self.entries_of(request, 1).await?;
        let mut found = found.into_iter();
        found.next().ok_or_else(|| {
            let message = "the guest's agent did not say what it was asked of a file";
            Error::new(ErrorKind::GuestDied, message)
        })
    }

    async fn entries_of(&self, request: FileRequest, most: u64) -> Result<Vec<FileEntry>, Error> {
        let bytes = self.memory_bytes();
        let mut taken = 0_u64;
        let mut running = self.start(request).await?;
        let mut records = FileRecords::default();
        let mut entries = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = running.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            records.feed(buffer.get(..count).unwrap_or(&buffer));
            while let Some(entry) = records.next_entry().map_err(malformed)? {
                // The guest was told, and need not have listened.
                if entries.len() as u64 >= most {
                    return Err(running.too_many(most));
                }
                let target = entry.target.as_deref().map(Path::as_os_str);
                let text = entry.name.len() + target.map_or(0, OsStr::len);
                taken += (size_of::<FileEntry>() + text) as u64;
                if taken > bytes {
                    return Err(running.too_large(bytes));
                }
                entries.push(entry);
            }
        }
        running.finish().await?;
        Ok(entries)
    }

    /// Makes a directory, and those that it is in. One that is there already is none to fail for.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn create_dir(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = bytes(path.as_ref());
        self.start(FileRequest::CreateDir { path })
            .await?
            .finish()
            .await
            .map(drop)
    }

    /// Removes a file, or a directory with all that is in it. Of a symbolic link, the link.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn remove(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = bytes(path.as_ref());
        self.start(FileRequest::Remove { path })
            .await?
            .finish()
            .await
            .map(drop)
    }

    /// Moves a file or directory. A file that has the new name is replaced (rename(2)).
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Error> {
        let (from, to) = (bytes(from.as_ref()), bytes(to.as_ref()));
        self.start(FileRequest::Rename { from, to })
            .await?
            .finish()
            .await
            .map(drop)
    }

    /// Watches a file, or what is in a directory (not in those within it). What happens from when
    /// this returns is told.
    ///
    /// # Errors
    /// See [`Files`].
    pub async fn watch(&self, path: impl AsRef<Path>) -> Result<FileWatch, Error> {
        let path = bytes(path.as_ref());
        FileWatch::begin(self.start(FileRequest::Watch { path }).await?).await
    }

    async fn start(&self, request: FileRequest) -> Result<Running, Error> {
        Running::start(self, request).await
    }

    fn memory_bytes(&self) -> u64 {
        self.bytes.unwrap_or(MEMORY_BYTES)
    }

    fn stream_bytes(&self) -> u64 {
        self.bytes.unwrap_or(STREAM_BYTES)
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

/// The caller's own reader or writer has failed.
fn own_stream(error: std::io::Error) -> Error {
    let message = "cannot go on with a file: the reader or writer that was given failed";
    Error::because(ErrorKind::InvalidRequest, message, error)
}

fn malformed(error: ember_guest::protocol::Malformed) -> Error {
    let message = "the guest's agent answered what the protocol does not allow";
    Error::because(ErrorKind::GuestDied, message, error)
}
