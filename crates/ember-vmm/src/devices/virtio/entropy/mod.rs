//! The virtio entropy device.
