//! The ioctls of interfaces, which no crate wraps.
#![allow(
    unsafe_code,
    reason = "ioctls take addresses, and their structure has a union"
)]

use std::ffi::c_int;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::{self, c_short, ifreq, in_addr, sockaddr, sockaddr_in};

mod call {
    use nix::libc::{self, c_int, ifreq};

    nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, ifreq);
    nix::ioctl_write_ptr_bad!(tun_set_header_size, libc::TUNSETVNETHDRSZ, c_int);
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, ifreq);
    nix::ioctl_write_ptr_bad!(set_netmask, libc::SIOCSIFNETMASK, ifreq);
    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, ifreq);
}

/// Makes `tun`, an open `/dev/net/tun`, the other end of a new TAP interface. Returns its name.
pub(crate) fn create_tap(tun: &OwnedFd, name: Option<&str>) -> io::Result<String> {
    let mut request = request(name.unwrap_or_default())?;
    // Exclusive: the interface of somebody else is not taken over because it has the name. The
    // kernel looks at the lower 16 bits only, which have all of them.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: the descriptor is open; the kernel reads one `ifreq`, and writes the name it chose
    // into the same, which is why it must not be behind a shared reference.
    unsafe { call::tun_set_interface(tun.as_raw_fd(), &raw mut request) }?;
    let name = request
        .ifr_name
        .iter()
        .map(|&byte| byte as u8)
        .take_while(|&byte| byte != 0);
    String::from_utf8(name.collect()).map_err(io::Error::other)
}

/// Sets the size of the header before each frame.
pub(crate) fn set_header_size(tun: &OwnedFd, size: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel reads one int.
    unsafe { call::tun_set_header_size(tun.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Gives the interface `name` its only IPv4 address.
pub(crate) fn set_address(socket: &OwnedFd, name: &str, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    // SAFETY: the descriptor is open, and the kernel reads one `ifreq`.
    unsafe { call::set_address(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Says which addresses are on the network of the interface `name`.
pub(crate) fn set_netmask(socket: &OwnedFd, name: &str, mask: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_netmask = socket_address(mask);
    // SAFETY: the descriptor is open, and the kernel reads one `ifreq`.
    unsafe { call::set_netmask(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Brings the interface `name` up.
pub(crate) fn bring_up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    // SAFETY: the descriptor is open, and the kernel writes one `ifreq`.
    unsafe { call::get_flags(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel wrote this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // IFF_UP is 1.
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
    // SAFETY: the descriptor is open, and the kernel reads one `ifreq`.
    unsafe { call::set_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// A request about the interface `name`.
fn request(name: &str) -> io::Result<ifreq> {
    // SAFETY: for a structure of plain data, all zeroes are a value.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> sockaddr {
    let address = sockaddr_in {
        // AF_INET is 2.
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain data, and the kernel tells them apart by the family.
    unsafe { std::mem::transmute::<sockaddr_in, sockaddr>(address) }
}
