//! Telling what changes, as inotify(7) sees it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::{Place, path_of};
use crate::protocol::{FileChange, FileEvent};

/// Room for a few dozen events.
const EVENTS: usize = 8 * 1024;

/// Tells what happens to a file, or in a directory, until nobody listens.
pub(super) fn watch(place: &Place, output: &mut File) -> io::Result<()> {
    let watched = place.open(OFlags::PATH, 0)?;
    let inotify = inotify::init(CreateFlags::CLOEXEC)?;
    let flags = WatchFlags::CREATE
        | WatchFlags::MOVED_TO
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ATTRIB;
    inotify::add_watch(&inotify, path_of(&watched), flags)?;
    // It may go away for good.
    drop(watched);
    tell(output, FileChange::Watching, OsString::new())?;
    let mut buffer = [MaybeUninit::uninit(); EVENTS];
    let mut reader = Reader::new(&inotify, &mut buffer);
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let name = event.file_name().map(|name| name.to_bytes().to_vec());
        if let Some(change) = change(event.events()) {
            tell(output, change, OsString::from_vec(name.unwrap_or_default()))?;
        }
        if event.events().contains(ReadFlags::IGNORED) {
            // What was watched is gone.
            return Ok(());
        }
    }
}

fn tell(output: &mut File, change: FileChange, name: OsString) -> io::Result<()> {
    let mut out = Vec::new();
    FileEvent::new(change, name).encode(&mut out);
    output.write_all(&out)
}

fn change(mask: ReadFlags) -> Option<FileChange> {
    let any = |flags: ReadFlags| mask.intersects(flags);
    if any(ReadFlags::QUEUE_OVERFLOW) {
        Some(FileChange::Lost)
    } else if any(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
        Some(FileChange::Created)
    } else if any(ReadFlags::CLOSE_WRITE) {
        Some(FileChange::Written)
    } else if any(ReadFlags::DELETE
        | ReadFlags::MOVED_FROM
        | ReadFlags::DELETE_SELF
        | ReadFlags::MOVE_SELF)
    {
        Some(FileChange::Removed)
    } else if any(ReadFlags::ATTRIB) {
        Some(FileChange::Attributes)
    } else {
        None
    }
}
