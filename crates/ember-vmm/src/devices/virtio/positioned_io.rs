//! File I/O at a position, straight between a file and guest memory.
//!
//! The position of a descriptor is shared by all who hold it, and an image may be shared by many
//! VMs, so every transfer names its own (`preadv`, `pwritev`). The kernel copies to and from the
//! guest's pages directly: no reference to guest memory, which the guest changes as it likes, ever
//! exists here.
#![allow(
    unsafe_code,
    reason = "no crate wraps vectored I/O on memory that must not be borrowed"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use nix::libc::{self, c_int, iovec, off_t};
use vm_memory::{GuestMemory as _, Permissions};

use super::chain::Buffers;
use crate::memory::GuestMemory;

/// The most parts of one system call. A longer transfer takes several.
const MAX_PARTS: usize = 128;

/// Which part of which buffers is transferred.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    pub(crate) memory: &'a GuestMemory,
    pub(crate) buffers: &'a Buffers,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// Fills `span` with what `file` has at `position`. Fails at the end of the file; some of the
/// buffers may be filled then.
pub(crate) fn read_exact_at(file: &File, position: u64, span: Span<'_>) -> io::Result<()> {
    let fd = file.as_raw_fd();
    transfer(
        position,
        span,
        Permissions::Write,
        |parts, count, position| {
            // SAFETY: `fd` is open as long as `file` is borrowed. `parts` has `count` entries, each of
            // which names memory that `transfer` keeps mapped and that nobody holds a reference to.
            unsafe { libc::preadv(fd, parts.as_ptr(), count, position) }
        },
    )
}

/// Writes `span` to `file` at `position`. If it fails, some of it may be written.
pub(crate) fn write_all_at(file: &File, position: u64, span: Span<'_>) -> io::Result<()> {
    let fd = file.as_raw_fd();
    transfer(
        position,
        span,
        Permissions::Read,
        |parts, count, position| {
            // SAFETY: `fd` is open as long as `file` is borrowed. `parts` has `count` entries, each of
            // which names memory that `transfer` keeps mapped; the kernel only reads it.
            unsafe { libc::pwritev(fd, parts.as_ptr(), count, position) }
        },
    )
}

/// Repeats `call` until all of `span` is transferred.
fn transfer(
    position: u64,
    span: Span<'_>,
    access: Permissions,
    call: impl Fn(&[iovec], c_int, off_t) -> isize,
) -> io::Result<()> {
    let mut done = 0;
    while done < span.length {
        let mut parts = [iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }; MAX_PARTS];
        let mut count = 0;
        'fill: for buffer in span.buffers.slice(span.offset + done, span.length - done) {
            // The slices borrow `span.memory`, which keeps the mappings alive beyond the call.
            let slices = span
                .memory
                .get_slices(buffer.address, buffer.length as usize, access)
                .map_err(io::Error::other)?;
            for slice in slices {
                let Some(part) = parts.get_mut(count) else {
                    break 'fill;
                };
                let slice = slice.map_err(io::Error::other)?;
                let base = slice.ptr_guard_mut().as_ptr();
                *part = iovec {
                    iov_base: base.cast(),
                    iov_len: slice.len(),
                };
                count += 1;
            }
        }
        let position = position
            .checked_add(u64::from(done))
            .and_then(|position| off_t::try_from(position).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        // `count` is at most MAX_PARTS.
        match call(&parts[..count], count as c_int, position) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            // The kernel moves at most what the parts hold, which is at most what is left.
            moved if moved > 0 => done += moved as u32,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
