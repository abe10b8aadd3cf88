//! The virtio network device.
