//! Where a vCPU's port and memory accesses go.

use std::fmt;
use std::sync::Arc;

use super::power::{self, PowerEvent};
use super::serial::SerialDevice;
use super::virtio::mmio::MmioTransport;
use crate::arch::layout::{SERIAL_PORT, SERIAL_PORT_COUNT, VIRTIO_MMIO_SIZE, VIRTIO_MMIO_START};

/// All devices a vCPU can reach, by address.
pub(crate) struct Bus {
    pub(crate) serial: Arc<SerialDevice>,
    /// In the order of their windows.
    pub(crate) virtio: Vec<Arc<MmioTransport>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("virtio", &self.virtio.len())
            .finish_non_exhaustive()
    }
}

impl Bus {
    /// `in` from `port`. What nobody claims reads as all ones, as on a PC.
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            if let Some(offset) = serial_offset(port) {
                *byte = self.serial.read(offset);
            } else if let Some(value) = power::read(port) {
                *byte = value;
            }
        }
    }

    /// `out` to `port`. Gives what the guest asked of its power supply, if it did.
    pub(crate) fn port_write(&self, port: u16, data: &[u8]) -> Option<PowerEvent> {
        let [value] = data else { return None };
        if let Some(offset) = serial_offset(port) {
            self.serial.write(offset, *value);
            return None;
        }
        power::write(port, *value)
    }

    /// A read of device memory. What nobody claims reads as all ones.
    pub(crate) fn memory_read(&self, address: u64, data: &mut [u8]) {
        match self.virtio_at(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write of device memory.
    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.virtio_at(address) {
            device.write(offset, data);
        }
    }

    fn virtio_at(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO_START)?;
        let index = usize::try_from(offset / VIRTIO_MMIO_SIZE).ok()?;
        Some((self.virtio.get(index)?, offset % VIRTIO_MMIO_SIZE))
    }
}

fn serial_offset(port: u16) -> Option<u8> {
    let offset = port.checked_sub(SERIAL_PORT)?;
    (offset < SERIAL_PORT_COUNT).then_some(offset as u8)
}
