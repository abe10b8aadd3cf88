//! The machine as a whole.

use serde::{Deserialize, Serialize};

use super::devices::{SerialState, VirtioState};
use super::vcpu::{KvmBytes, VcpuState, kvm_size};

/// Everything about a machine that is not its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    /// Size of the guest's memory in bytes.
    pub memory_bytes: u64,
    /// One for each virtual CPU, by number.
    pub vcpus: Vec<VcpuState>,
    /// The interrupt chips of the machine.
    pub chips: ChipState,
    /// The machine's clock.
    pub clock: ClockState,
    /// The serial console.
    pub serial: SerialState,
    /// Whether there is a VM generation id device.
    pub generation_id: bool,
    /// The virtio devices, in the order of their windows.
    pub virtio: Vec<VirtioState>,
}

/// The interrupt chips that all vCPUs share: `union kvm_irqchip.chip` each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipState {
    /// The first PIC.
    pub pic_master: KvmBytes<{ kvm_size::IRQCHIP }>,
    /// The second PIC.
    pub pic_slave: KvmBytes<{ kvm_size::IRQCHIP }>,
    /// The I/O APIC.
    pub ioapic: KvmBytes<{ kvm_size::IRQCHIP }>,
}

/// The machine's clock (`KVM_GET_CLOCK`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// The guest's clock, in nanoseconds since it was created.
    pub nanoseconds: u64,
}
