//! Directories with all that is in them, in and out.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ember_guest::archive::{self, Caps, Links, Packer, unpack};
use ember_guest::host::{BlockingReader, BlockingWriter};
use ember_guest::protocol::{FileKind, FileNote, FileRequest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::request::{Running, kind_of};
use super::{BUFFER, Files, bytes, own_stream};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind};

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// How many files, directories and links.
    pub entries: u64,
    /// How many bytes are in them.
    pub bytes: u64,
    /// Paths of what was left out: pipes, sockets and devices, and, where it comes from a guest,
    /// symbolic links that lead out of the tree. The first hundred of each.
    pub left_out: Vec<String>,
}

/// So many paths are told of what was left out.
const MAX_TOLD: usize = 100;

impl Files<'_> {
    /// Copies a file or directory of the host into the guest.
    ///
    /// A file gets the name `guest`, or keeps its own in the directory `guest` if that ends in a
    /// slash; directories that are not there are made. What is in a directory is put into the
    /// directory `guest`, which is made as well. Symbolic links are copied as links; permissions and
    /// files' times are kept, owners are not.
    ///
    /// # Errors
    /// See [`Files`]. [`ErrorKind::InvalidRequest`] if the host's file cannot be read. What was
    /// copied before is there.
    pub async fn copy_in(
        &self,
        host: impl AsRef<Path>,
        guest: impl AsRef<Path>,
    ) -> Result<Copied, Error> {
        let host = host.as_ref().to_owned();
        let guest = guest.as_ref();
        let found = host.clone();
        let (file, found) = blocking("reading a file", move || {
            // It must not wait for one that is a pipe.
            let opened = fs::OpenOptions::new()
                .read(true)
                .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
                .open(&found);
            let opened = opened.and_then(|file| Ok((file.metadata()?, file)));
            let (metadata, file) = opened.map_err(|error| of_host("read", &found, error))?;
            if !metadata.is_file() && !metadata.is_dir() {
                let error = io::Error::from(io::ErrorKind::InvalidInput);
                return Err(of_host("copy what is no file:", &found, error));
            }
            Ok((file, metadata))
        })
        .await?;
        if found.is_dir() {
            return self.copy_directory_in(file, guest).await;
        }
        let name = host.file_name().unwrap_or_default();
        let guest = into_directory(guest, name).unwrap_or_else(|| guest.to_owned());
        let mode = found.mode() & 0o777;
        let result = self.copy_file_in(file, &guest, mode).await;
        let total = match (result, guest.parent()) {
            (Err(error), Some(parent))
                if error.kind() == ErrorKind::NotFound && !parent.as_os_str().is_empty() =>
            {
                self.create_dir(parent).await?;
                let again = host.clone();
                let file = blocking("reading a file", move || {
                    File::open(&again).map_err(|error| of_host("read", &again, error))
                });
                self.copy_file_in(file.await?, &guest, mode).await?
            }
            (result, _) => result?,
        };
        Ok(Copied {
            entries: 1,
            bytes: total,
            left_out: Vec::new(),
        })
    }

    async fn copy_file_in(&self, mut file: File, guest: &Path, mode: u32) -> Result<u64, Error> {
        let path = bytes(guest);
        let append = false;
        let mut running = self
            .start(FileRequest::Write { path, append, mode })
            .await?;
        let Some(stdin) = running.take_stdin() else {
            return Err(no_streams(&running));
        };
        let mut output = BlockingWriter::new(stdin);
        let most = self.stream_bytes();
        let copied = blocking("copying a file", move || {
            let mut buffer = vec![0; BUFFER];
            let mut total = 0;
            loop {
                let count = match file.read(&mut buffer) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(of_host("read", Path::new("the file"), error)),
                };
                total += count as u64;
                if count == 0 || total > most {
                    return Ok((total, Ok(())));
                }
                if let Err(error) = output.write_all(buffer.get(..count).unwrap_or(&buffer)) {
                    return Ok((total, Err(error)));
                }
            }
        });
        let (total, written) = copied.await?;
        if total > most {
            return Err(running.too_large(most));
        }
        went_through(&mut running, written).await?;
        running.finish().await?;
        Ok(total)
    }

    async fn copy_directory_in(&self, directory: File, guest: &Path) -> Result<Copied, Error> {
        let path = bytes(guest);
        let mut running = self.start(FileRequest::Unpack { path }).await?;
        let Some(stdin) = running.take_stdin() else {
            return Err(no_streams(&running));
        };
        let output = Counting {
            output: BlockingWriter::new(stdin),
            bytes: 0,
        };
        let caps = self.caps(self.stream_bytes());
        let packed = blocking("packing a directory", move || {
            let mut left_out = Vec::new();
            let output = io::BufWriter::with_capacity(BUFFER, output);
            let mut packer = Packer::new(output, caps, false, |path: &[u8], _| {
                if left_out.len() < MAX_TOLD {
                    left_out.push(String::from_utf8_lossy(path).into_owned());
                }
                Ok(())
            });
            let packed = packer.add_directory(directory.as_fd());
            let entries = packer.entries();
            let finished = packed.and_then(|()| packer.finish().map(|it| it.get_ref().bytes));
            Ok((entries, finished, left_out))
        });
        let (entries, finished, left_out) = packed.await?;
        let bytes = match finished {
            Ok(bytes) => bytes,
            Err(archive::Error::Stream(error)) => {
                went_through(&mut running, Err(error)).await?;
                0
            }
            Err(error) => return Err(of_archive(running.what(), &error)),
        };
        running.finish().await?;
        Ok(Copied {
            entries,
            bytes,
            left_out,
        })
    }

    /// Copies a file or directory of the guest out to the host.
    ///
    /// A file gets the name `host`, or keeps its own in the directory `host` if there is one, or if
    /// that ends in a slash. What is in a directory is put into the directory `host`, which is made
    /// if it is not there. Files that are there are replaced, symbolic links among them as well, and
    /// nothing is written anywhere else, whatever the guest sends.
    ///
    /// Symbolic links of the guest's that lead out of the tree are left out and told. Permissions and
    /// files' times are kept as far as this process's mask lets them; owners, set-id and sticky bits
    /// are not.
    ///
    /// # Errors
    /// See [`Files`]. [`ErrorKind::Damaged`] if what the guest sends is no archive that may be. What
    /// was copied before is there.
    pub async fn copy_out(
        &self,
        guest: impl AsRef<Path>,
        host: impl AsRef<Path>,
    ) -> Result<Copied, Error> {
        let (guest, host) = (guest.as_ref(), host.as_ref());
        let found = self.stat_of(guest, true).await?;
        match found.kind {
            FileKind::Directory => self.copy_directory_out(guest, host).await,
            FileKind::File => self.copy_file_out(guest, host, found.mode).await,
            _ => {
                let message = format!(
                    "cannot copy {} out of the guest: it is neither a file nor a directory",
                    guest.display()
                );
                Err(Error::new(ErrorKind::InvalidRequest, message))
            }
        }
    }

    async fn copy_file_out(&self, guest: &Path, host: &Path, mode: u32) -> Result<Copied, Error> {
        let name = guest.file_name().unwrap_or_default();
        let host = match into_directory(host, name) {
            Some(inside) => inside,
            None if host.is_dir() => host.join(name),
            None => host.to_owned(),
        };
        let most = self.stream_bytes();
        let mut running = self
            .start(FileRequest::Read {
                path: bytes(guest),
                offset: 0,
                length: most.saturating_add(1),
            })
            .await?;
        let Some(stdout) = running.take_stdout() else {
            return Err(no_streams(&running));
        };
        let mut input = BlockingReader::new(stdout);
        let target = host.clone();
        let copied = blocking("writing a file", move || {
            let mut file =
                replace(&target, mode).map_err(|error| of_host("make", &target, error))?;
            let mut buffer = vec![0; BUFFER];
            let mut total = 0;
            loop {
                let count = match input.read(&mut buffer) {
                    Ok(count) => count,
                    Err(error) => return Ok((total, Err(error))),
                };
                total += count as u64;
                if count == 0 || total > most {
                    return Ok((total, Ok(())));
                }
                file.write_all(buffer.get(..count).unwrap_or(&buffer))
                    .map_err(|error| of_host("write to", &target, error))?;
            }
        });
        let (total, read) = copied.await?;
        if total > most {
            return Err(running.too_large(most));
        }
        went_through(&mut running, read).await?;
        running.finish().await?;
        Ok(Copied {
            entries: 1,
            bytes: total,
            left_out: Vec::new(),
        })
    }

    async fn copy_directory_out(&self, guest: &Path, host: &Path) -> Result<Copied, Error> {
        let caps = self.caps(self.stream_bytes());
        let mut running = self.start(pack(guest, caps, false, Vec::new())).await?;
        let Some(stdout) = running.take_stdout() else {
            return Err(no_streams(&running));
        };
        let input = BlockingReader::new(stdout);
        let target = host.to_owned();
        let unpacked = blocking("unpacking a directory", move || {
            let directory = directory(&target)?;
            Ok(unpack(directory.as_fd(), input, caps, Links::Inside))
        });
        let done = match unpacked.await? {
            Ok(done) => done,
            Err(archive::Error::Stream(error)) => return Err(running.broken(&error).await),
            Err(error @ archive::Error::Damaged(_)) => {
                // It may have stopped, and say why.
                let error = of_archive(running.what(), &error);
                running.finish().await?;
                return Err(error);
            }
            Err(error) => return Err(of_archive(running.what(), &error)),
        };
        let mut left_out = done.left_out;
        left_out.extend(left_out_of(running.finish().await?).map(|(path, _)| path));
        Ok(Copied {
            entries: done.entries,
            bytes: done.bytes,
            left_out,
        })
    }

    /// Writes all that is in a directory of the guest to `writer`, as a tar archive; says how many
    /// bytes that were.
    ///
    /// The archive is what the guest sends: who unpacks it must not trust it. [`copy_out`] does not.
    ///
    /// [`copy_out`]: Self::copy_out
    ///
    /// # Errors
    /// See [`Files`]; also if `writer` fails.
    pub async fn tar_out(
        &self,
        guest: impl AsRef<Path>,
        mut writer: impl AsyncWrite + Unpin,
    ) -> Result<u64, Error> {
        let most = self.stream_bytes();
        let request = pack(guest.as_ref(), self.caps(most), false, Vec::new());
        let mut running = self.start(request).await?;
        let mut buffer = vec![0; BUFFER];
        let mut total = 0;
        loop {
            let count = running.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            total += count as u64;
            // The guest was told, and need not have listened.
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

    /// Makes the files of the tar archive that `reader` has in a directory of the guest, which is
    /// made if it is not there. Archives with devices, absolute paths or `..` in paths are refused.
    ///
    /// # Errors
    /// See [`Files`]; also if `reader` fails. What came before is there.
    pub async fn tar_in(
        &self,
        guest: impl AsRef<Path>,
        mut reader: impl AsyncRead + Unpin,
    ) -> Result<(), Error> {
        let path = bytes(guest.as_ref());
        let mut running = self.start(FileRequest::Unpack { path }).await?;
        let most = self.stream_bytes();
        let mut buffer = vec![0; BUFFER];
        let mut total = 0;
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
        running.finish().await.map(drop)
    }

    pub(super) fn caps(&self, bytes: u64) -> Caps {
        Caps {
            bytes,
            entries: self.entries,
        }
    }
}

pub(super) fn pack(path: &Path, caps: Caps, lenient: bool, patterns: Vec<Vec<u8>>) -> FileRequest {
    FileRequest::Pack {
        path: bytes(path),
        bytes: caps.bytes,
        entries: caps.entries,
        lenient,
        patterns,
    }
}

/// A new file in the place of one that is there, or of a link, which is not followed. What is neither,
/// a pipe or a terminal, is written to.
fn replace(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).mode(mode & 0o777);
    // O_NOFOLLOW: nor is a link that comes between the look and the opening.
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() || found.is_symlink() => {
            fs::remove_file(path)?;
            options.create_new(true).open(path)
        }
        Ok(_) => options.open(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options.create_new(true).open(path)
        }
        Err(error) => Err(error),
    }
}

/// The directory `path` of the host, made if it is not there.
pub(super) fn directory(path: &Path) -> Result<File, Error> {
    fs::create_dir_all(path)
        .and_then(|()| File::open(path))
        .map_err(|error| of_host("make the directory", path, error))
}

/// What was left out, and why.
pub(super) fn left_out_of(notes: Vec<FileNote>) -> impl Iterator<Item = (String, String)> {
    let left_out = notes.into_iter().filter_map(|note| match note {
        FileNote::LeftOut { path, why } => {
            let path = super::request::shown(&path);
            // One of the few that there are: a guest may say anything.
            Some((path, archive::LeftOut::named(&why)?.name().to_owned()))
        }
        _ => None,
    });
    left_out.take(MAX_TOLD)
}

/// A path that ends in a slash is a directory that the file is put into.
fn into_directory(path: &Path, name: &std::ffi::OsStr) -> Option<PathBuf> {
    bytes(path).ends_with(b"/").then(|| path.join(name))
}

/// Goes on if a stream was written or read to its end, or the guest's end was closed, which then
/// says why.
async fn went_through(running: &mut Running, result: io::Result<()>) -> Result<(), Error> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(running.broken(&error).await),
    }
}

fn no_streams(running: &Running) -> Error {
    let message = format!("cannot {}: it has no streams", running.what());
    Error::new(ErrorKind::Internal, message)
}

fn of_host(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = match kind_of(&error) {
        // That is what is not in a guest.
        ErrorKind::NotFound => ErrorKind::InvalidRequest,
        kind => kind,
    };
    Error::because(kind, format!("cannot {what} {}", path.display()), error)
}

/// What is wrong with an archive.
pub(super) fn of_archive(what: &str, error: &archive::Error) -> Error {
    let kind = match error {
        archive::Error::TooManyBytes { .. } | archive::Error::TooManyEntries { .. } => {
            ErrorKind::TooLarge
        }
        archive::Error::File { source, .. } => match kind_of(source) {
            ErrorKind::NotFound => ErrorKind::InvalidRequest,
            kind => kind,
        },
        _ => ErrorKind::Damaged,
    };
    Error::new(kind, format!("cannot {what}: {error}"))
}

/// Counts what goes through it.
#[derive(Debug)]
struct Counting<W> {
    output: W,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.output.write(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
