//! The virtio entropy device (specification section 5.4): the host's randomness for the guest.

mod device;
#[cfg(test)]
mod tests;

pub(crate) use device::EntropyDevice;
