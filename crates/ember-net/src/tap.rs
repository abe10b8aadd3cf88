//! TAP interfaces.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::{IFNAMSIZ, O_CLOEXEC, O_NONBLOCK};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::ioctl;

/// The size of the header before each frame: that of the virtio network device (Virtual I/O Device
/// specification 1.2, section 5.1.6).
pub const HEADER_SIZE: usize = 12;

/// A TAP interface of the host. It vanishes when it is dropped or, after [`Tap::into_fd`], when the
/// descriptor is closed.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

/// A TAP interface cannot be created or set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The name cannot be an interface's.
    #[error(
        "{0:?} cannot name an interface: use 1 to 15 ASCII letters, digits and punctuation other \
         than / : and %"
    )]
    Name(String),
    /// There is no usable `/dev/net/tun`.
    #[error(
        "cannot open /dev/net/tun; load the tun module, and give this user read and write access \
         to the device"
    )]
    Open(#[source] io::Error),
    /// There is an interface of this name.
    #[error("cannot create the interface {0}: the name is taken")]
    Taken(String),
    /// The interface was not created.
    #[error("cannot create a TAP interface; the process needs the capability CAP_NET_ADMIN")]
    Create(#[source] io::Error),
    /// The interface was created but not set up.
    #[error(
        "cannot {action} of the interface {name}; the process needs the capability CAP_NET_ADMIN"
    )]
    Configure {
        /// What was attempted.
        action: &'static str,
        /// The interface.
        name: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A network has no such prefix.
    #[error("an IPv4 prefix has 0 to 32 bits, not {0}")]
    Prefix(u8),
}

impl Tap {
    /// Creates an interface, in the network namespace of the calling thread. Without a `name`, the
    /// kernel chooses one. The interface is down, and has no address.
    pub fn create(name: Option<&str>) -> Result<Self, TapError> {
        if let Some(name) = name {
            check_name(name)?;
        }
        let fd: OwnedFd = File::options()
            .read(true)
            .write(true)
            .custom_flags(O_CLOEXEC | O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TapError::Open)?
            .into();
        let given = ioctl::create_tap(&fd, name).map_err(|error| match (error.kind(), name) {
            (io::ErrorKind::ResourceBusy, Some(name)) => TapError::Taken(name.to_owned()),
            _ => TapError::Create(error),
        })?;
        let tap = Self { fd, name: given };
        // It is small.
        ioctl::set_header_size(&tap.fd, HEADER_SIZE as i32)
            .map_err(|source| tap.failed("set the header size", source))?;
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the interface, which is the host's end, an address in a network of `prefix` bits.
    pub fn set_address(&self, address: Ipv4Addr, prefix: u8) -> Result<(), TapError> {
        let host_bits = 32u32
            .checked_sub(prefix.into())
            .ok_or(TapError::Prefix(prefix))?;
        let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0));
        self.socket()
            .and_then(|socket| {
                ioctl::set_address(&socket, &self.name, address)?;
                ioctl::set_netmask(&socket, &self.name, mask)
            })
            .map_err(|source| self.failed("set the address", source))
    }

    /// Brings the interface up.
    pub fn bring_up(&self) -> Result<(), TapError> {
        self.socket()
            .and_then(|socket| ioctl::bring_up(&socket, &self.name))
            .map_err(|source| self.failed("change the state", source))
    }

    /// The descriptor, which the interface lives as long as.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Any socket of the namespace can configure its interfaces.
    fn socket(&self) -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(socket(
            AddressFamily::Inet,
            SockType::Datagram,
            flags,
            None,
        )?)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> TapError {
        TapError::Configure {
            action,
            name: self.name.clone(),
            source,
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel takes as a name, less templates such as `tap%d`.
pub(crate) fn check_name(name: &str) -> Result<(), TapError> {
    let fits = (1..IFNAMSIZ).contains(&name.len());
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    if fits && name.bytes().all(allowed) && name != "." && name != ".." {
        Ok(())
    } else {
        Err(TapError::Name(name.to_owned()))
    }
}
