//! Moves bytes between a socket and guest memory, without a copy in between and with one system
//! call for many buffers.
//!
//! `vm-memory` does the same for one buffer and with `write(2)`. Here a packet may be in several
//! buffers, and a write to a socket whose other end is closed must not raise `SIGPIPE`, which an
//! embedder may not ignore: that takes `sendmsg(2)`.

#![allow(
    unsafe_code,
    reason = "readv and sendmsg on guest memory, which must not be borrowed as a slice"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::libc;
use vm_memory::{GuestMemory as _, Permissions};

use crate::devices::virtio::chain::Buffer;
use crate::memory::GuestMemory;

/// The most buffers of one call. What is beyond waits for the next.
const MAX_VECTORS: usize = 64;

/// What a call moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    /// How many bytes went from one side to the other.
    pub(super) bytes: u32,
    /// How many bytes would have fit into that call.
    pub(super) offered: u32,
}

/// Why nothing was moved.
#[derive(Debug)]
pub(super) enum TransferError {
    /// A buffer is not in guest memory.
    OutsideMemory,
    /// The socket has nothing now, or no room, or is at its end.
    Socket(io::Error),
}

impl TransferError {
    /// Nothing can be moved now, but later.
    pub(super) fn would_block(&self) -> bool {
        matches!(self, Self::Socket(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Reads from `socket` into guest memory at `to`, once. Zero bytes mean that the other end will
/// send no more.
pub(super) fn receive(
    socket: &UnixStream,
    memory: &GuestMemory,
    to: impl Iterator<Item = Buffer>,
) -> Result<Moved, TransferError> {
    let mut vectors = Vectors::new();
    vectors.fill(memory, to, Permissions::Write)?;
    moved(&vectors, || {
        // SAFETY: the first `count` vectors describe memory of live mappings: they were made from
        // slices of `memory`, which is borrowed for the length of this function. The kernel writes
        // to them only during the call, and guest memory is only ever accessed as volatile memory,
        // so no reference to it exists that a write could invalidate.
        unsafe { libc::readv(socket.as_raw_fd(), vectors.list.as_ptr(), vectors.count_c()) }
    })
}

/// Writes what lies in guest memory at `from` to `socket`, once.
pub(super) fn send(
    socket: &UnixStream,
    memory: &GuestMemory,
    from: impl Iterator<Item = Buffer>,
) -> Result<Moved, TransferError> {
    let mut vectors = Vectors::new();
    vectors.fill(memory, from, Permissions::Read)?;
    // SAFETY: a `msghdr` is integers and pointers, for which zero (null) is valid: no address, no
    // control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.list.as_ptr().cast_mut();
    message.msg_iovlen = vectors.count as _;
    moved(&vectors, || {
        // SAFETY: `message` is valid and points to `count` vectors that describe memory of live
        // mappings, as in `receive`; the kernel only reads them.
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
    })
}

/// Calls until the call is not interrupted by a signal.
fn moved(vectors: &Vectors, mut call: impl FnMut() -> isize) -> Result<Moved, TransferError> {
    loop {
        if let Ok(bytes) = u32::try_from(call()) {
            return Ok(Moved {
                bytes,
                offered: vectors.bytes,
            });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(TransferError::Socket(error));
        }
    }
}

/// A list of buffers for the kernel.
struct Vectors {
    list: [libc::iovec; MAX_VECTORS],
    count: usize,
    bytes: u32,
}

impl Vectors {
    fn new() -> Self {
        Self {
            list: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; MAX_VECTORS],
            count: 0,
            bytes: 0,
        }
    }

    /// Describes as many of `buffers` as there is room for.
    fn fill(
        &mut self,
        memory: &GuestMemory,
        buffers: impl Iterator<Item = Buffer>,
        access: Permissions,
    ) -> Result<(), TransferError> {
        for buffer in buffers {
            let slices = memory
                .get_slices(buffer.address, buffer.length as usize, access)
                .map_err(|_| TransferError::OutsideMemory)?;
            for slice in slices {
                let slice = slice.map_err(|_| TransferError::OutsideMemory)?;
                let Some(vector) = self.list.get_mut(self.count) else {
                    return Ok(());
                };
                vector.iov_base = slice.ptr_guard_mut().as_ptr().cast();
                vector.iov_len = slice.len();
                self.count += 1;
                // No caller asks for 4 GiB: a chain is shorter, and so is a turn.
                self.bytes += slice.len() as u32;
            }
        }
        Ok(())
    }

    /// The number of buffers, as `readv` wants it: at most [`MAX_VECTORS`].
    fn count_c(&self) -> libc::c_int {
        libc::c_int::try_from(self.count).unwrap_or(0)
    }
}
