//! The virtio balloon device.
