//! The virtio network device (specification section 5.1): a network card on a TAP interface.

mod device;
mod header;
mod receive;
mod tap;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

pub(crate) use device::NetworkDevice;

/// A network card of a VM.
#[derive(Debug)]
pub struct NetworkConfig {
    /// The host's end: a TAP interface, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`. Nothing
    /// else may read from it or write to it.
    pub tap: OwnedFd,
    /// The card's hardware address.
    pub mac: [u8; 6],
}
