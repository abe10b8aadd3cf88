//! The socket between a worker and its owner: `SOCK_SEQPACKET`, so that frames stay apart and come
//! with the descriptors that were sent beside them.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::protocol::{MAX_DESCRIPTORS, MAX_FRAME};

/// Room for the control message of as many descriptors as there can be.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Two ends of a new socket.
///
/// # Errors
/// If the process has no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(pair)
}

/// Sends a frame, with descriptors beside it.
///
/// # Errors
/// `WouldBlock` if `wait` is not set and the other side has not taken what was sent before.
pub fn send(
    socket: BorrowedFd<'_>,
    frame: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: bool,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors));
    if !fits {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more descriptors than go beside a frame",
        ));
    }
    let mut flags = SendFlags::NOSIGNAL;
    if !wait {
        flags |= SendFlags::DONTWAIT;
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(frame)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What was received.
#[derive(Debug, Default)]
pub struct Received {
    /// The frame. Empty: the other side is gone.
    pub frame: Vec<u8>,
    /// What came beside it.
    pub descriptors: Vec<OwnedFd>,
    /// More came, which this process had no descriptors left for.
    pub is_cut_off: bool,
}

/// Receives a frame.
///
/// # Errors
/// `WouldBlock` if `wait` is not set and there is none; `InvalidData` for one that is too long or has
/// too many descriptors, or any if they are not `expected`.
pub fn receive(socket: BorrowedFd<'_>, expected: bool, wait: bool) -> io::Result<Received> {
    let length = next_length(socket, wait)?;
    let mut frame = vec![0; length.min(MAX_FRAME)];
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    // Without room for descriptors the kernel closes them, and says so.
    let mut control = match expected {
        true => RecvAncillaryBuffer::new(&mut space),
        false => RecvAncillaryBuffer::default(),
    };
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if !wait {
        flags |= RecvFlags::DONTWAIT;
    }
    let received = loop {
        let mut slices = [IoSliceMut::new(&mut frame)];
        match recvmsg(socket, &mut slices, &mut control, flags) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    // The kernel does the same to more than there is room for and to more than the process may have.
    let is_cut_off = received.flags.contains(ReturnFlags::CTRUNC);
    let too_many = is_cut_off && (!expected || descriptors.len() >= MAX_DESCRIPTORS);
    if too_many || received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame is too long, or came with too many descriptors",
        ));
    }
    frame.truncate(received.bytes);
    Ok(Received {
        frame,
        descriptors,
        is_cut_off,
    })
}

/// How long the next frame is, which stays where it is: room for the longest there can be, for each
/// frame, would be what takes most of the time, and most of what an owner of many workers keeps.
fn next_length(socket: BorrowedFd<'_>, wait: bool) -> io::Result<usize> {
    let mut flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    if !wait {
        flags |= RecvFlags::DONTWAIT;
    }
    loop {
        match recvmsg(socket, &mut [], &mut RecvAncillaryBuffer::default(), flags) {
            Ok(received) => return Ok(received.bytes),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// An empty file in memory, for what is too large for a frame.
///
/// # Errors
/// If the process has no descriptors left.
pub fn empty_file() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(c"ember-worker", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3 there is no such flag.
        Err(rustix::io::Errno::INVAL) => memfd_create(c"ember-worker", flags)?,
        other => other?,
    };
    Ok(File::from(file))
}

/// A file in memory that holds `bytes` and that nobody can change.
///
/// # Errors
/// If there is no room for it.
pub fn sealed_file<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> io::Result<File> {
    let mut file = empty_file()?;
    for piece in pieces {
        file.write_all(piece)?;
    }
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(file.as_fd(), seals)?;
    Ok(file)
}

/// The first `length` bytes of `file`, of which there may be `limit`. The other side may be changing
/// it meanwhile: it is read once.
///
/// # Errors
/// `InvalidData` if there are not so many, or too many.
pub fn read_file(file: &File, length: u64, limit: u64) -> io::Result<Vec<u8>> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidData, "a file is too long");
    if length > limit || length > file.metadata()?.len() {
        return Err(too_long());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| too_long())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// All of `file`, of which there may be `limit` bytes.
///
/// # Errors
/// As for [`read_file`].
pub fn read_whole_file(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    read_file(file, file.metadata()?.len(), limit)
}

#[cfg(test)]
mod tests;
