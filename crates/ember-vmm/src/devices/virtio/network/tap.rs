//! The TAP descriptor: frames in and out, and what the host's kernel is told about them.
#![allow(unsafe_code, reason = "ioctls of TAP interfaces, which no crate wraps")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{self, c_int, c_short, c_uint, c_ulong, ifreq};

use super::header::{HEADER_SIZE, Offload};

mod ioctl {
    use super::{c_int, ifreq, libc};

    nix::ioctl_read_bad!(get_interface, libc::TUNGETIFF, ifreq);
    nix::ioctl_write_ptr_bad!(set_header_size, libc::TUNSETVNETHDRSZ, c_int);
}

/// A TAP interface's descriptor, non-blocking, with the header of the virtio network device before
/// each frame.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    /// Tests use a socket instead, which has frames but no offloads.
    #[cfg(any(test, feature = "fuzzing"))]
    is_socket: bool,
}

impl Tap {
    /// Takes over `fd`. Fails if it is not a TAP interface that was opened as it must be.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        check_interface(&fd)?;
        // HEADER_SIZE is small.
        let size = HEADER_SIZE as c_int;
        // SAFETY: the descriptor is open, and the kernel reads one int.
        unsafe { ioctl::set_header_size(fd.as_raw_fd(), &raw const size) }?;
        set_nonblocking(&fd)?;
        let tap = Self {
            file: File::from(fd),
            #[cfg(any(test, feature = "fuzzing"))]
            is_socket: false,
        };
        // Whoever had it before may have left some on.
        tap.set_offload(Offload::default())?;
        Ok(tap)
    }

    /// A socket that keeps messages apart in the place of a TAP interface. It must not
    /// block.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn over_socket(fd: OwnedFd) -> Self {
        Self {
            file: File::from(fd),
            is_socket: true,
        }
    }

    /// Tells the kernel what it may leave to the guest.
    pub(super) fn set_offload(&self, offload: Offload) -> io::Result<()> {
        #[cfg(any(test, feature = "fuzzing"))]
        if self.is_socket {
            return Ok(());
        }
        let flag = |set: bool, flag: c_uint| if set { flag } else { 0 };
        let flags = flag(offload.checksum, libc::TUN_F_CSUM)
            | flag(offload.tcp4, libc::TUN_F_TSO4)
            | flag(offload.tcp6, libc::TUN_F_TSO6);
        // SAFETY: the descriptor is open, and the argument is a number, not an address.
        let result = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                c_ulong::from(flags),
            )
        };
        nix::errno::Errno::result(result)?;
        Ok(())
    }

    /// Takes the next frame. `WouldBlock` if there is none.
    pub(super) fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        retry(|| (&self.file).read(frame))
    }

    /// Sends a frame.
    pub(super) fn write(&self, frame: &[u8]) -> io::Result<usize> {
        retry(|| (&self.file).write(frame))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn check_interface(fd: &OwnedFd) -> io::Result<()> {
    let refuse = |problem: &str| {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a network card needs the descriptor of a TAP interface, opened with \
                 IFF_TAP | IFF_NO_PI | IFF_VNET_HDR; {problem}"
            ),
        ))
    };
    // SAFETY: for a structure of plain data, all zeroes are a value.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the kernel writes one `ifreq`.
    if unsafe { ioctl::get_interface(fd.as_raw_fd(), &raw mut request) }.is_err() {
        return refuse("this descriptor has no interface");
    }
    // SAFETY: TUNGETIFF wrote this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // The kernel has them in 16 bits too.
    let wanted = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;
    if flags & wanted != wanted {
        return refuse(&format!("this one has the flags {flags:#x}"));
    }
    Ok(())
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
