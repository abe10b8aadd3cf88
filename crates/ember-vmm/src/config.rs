//! What a VM is made of.

use std::fmt;

use crate::devices::serial::ConsoleConfig;
use crate::devices::virtio::balloon::BalloonConfig;
use crate::devices::virtio::block::BlockConfig;
use crate::devices::virtio::network::NetworkConfig;
use crate::devices::virtio::vsock::VsockConfig;
use crate::hypervisor::Hypervisor;
use crate::kernel::{Initramfs, KernelImage};
use crate::vcpu::kick::default_kick_signal;

/// The most vCPUs a VM can have.
pub const MAX_VCPUS: u8 = 32;
/// The least memory a VM can have, in bytes: enough for a small kernel. A stock distribution kernel
/// takes some 66 MiB to load and wants 96; a VM it does not fit in is refused, with its need named.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// The most memory a VM can have, in bytes.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;

/// What a VM is made of. Fill in what [`VmConfig::new`] left out and hand it to
/// [`Vm::new`](crate::Vm::new).
pub struct VmConfig {
    /// Number of virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Memory in bytes, [`MIN_MEMORY_BYTES`] to [`MAX_MEMORY_BYTES`], a multiple of 4096.
    pub memory_bytes: u64,
    /// The guest's kernel.
    pub kernel: KernelImage,
    /// The initial RAM file system the kernel unpacks.
    pub initramfs: Initramfs,
    /// The kernel's command line.
    pub command_line: String,
    /// The signal that gets vCPU threads out of the guest: a real-time signal the application does
    /// not use. It is the one thing that is process-wide.
    pub kick_signal: i32,
    /// Where the serial console goes.
    pub console: ConsoleConfig,
    /// Disks, `/dev/vda` first.
    pub disks: Vec<BlockConfig>,
    /// The guest channel.
    pub vsock: Option<VsockConfig>,
    /// Network cards, `eth0` first.
    pub networks: Vec<NetworkConfig>,
    /// Whether the guest gets randomness from the host.
    pub entropy: bool,
    /// Gives guest memory back to the host.
    pub balloon: Option<BalloonConfig>,
    /// The host's KVM. Opened when the VM is built, if it is not given.
    pub hypervisor: Option<Hypervisor>,
    /// The first VM generation id; without one the guest has no such device.
    pub generation_id: Option<[u8; 16]>,
}

impl VmConfig {
    /// A VM with one vCPU, 128 MiB of memory, an entropy device and a console, that boots `kernel`.
    pub fn new(kernel: KernelImage) -> Self {
        Self {
            vcpus: 1,
            memory_bytes: 128 << 20,
            kernel,
            initramfs: Initramfs::default(),
            command_line: String::new(),
            kick_signal: default_kick_signal(),
            console: ConsoleConfig::default(),
            disks: Vec::new(),
            vsock: None,
            networks: Vec::new(),
            entropy: true,
            balloon: None,
            hypervisor: None,
            generation_id: None,
        }
    }
}

impl fmt::Debug for VmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmConfig")
            .field("vcpus", &self.vcpus)
            .field("memory_bytes", &self.memory_bytes)
            .field("command_line", &self.command_line)
            .field("disks", &self.disks.len())
            .field("vsock", &self.vsock)
            .field("networks", &self.networks.len())
            .finish_non_exhaustive()
    }
}
