//! The state of a virtual machine between two instructions, as plain data.
//!
//! What KVM defines is kept as the bytes of KVM's own structures (`linux/kvm.h`,
//! `arch/x86/include/uapi/asm/kvm.h`): they are a stable ABI, and a translation could only lose
//! something. What this project's devices are is kept as named fields. Nothing in here has been
//! checked for sense: whoever restores a state treats it as hostile.

mod devices;
mod machine;
mod vcpu;

pub use devices::{
    BalloonState, BlockState, ConnectionState, DeviceState, NetworkState, PhaseState, QueueState,
    SerialState, TransportState, VirtioState, VsockState,
};
pub use machine::{ChipState, ClockState, VmState};
pub use vcpu::{CpuidEntry, KvmBytes, Msr, VcpuState, kvm_size};
