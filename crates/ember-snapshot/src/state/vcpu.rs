//! One virtual CPU.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

/// The sizes of KVM's structures in bytes. The monitor holds them against the kernel's own
/// definitions when it is compiled.
pub mod kvm_size {
    /// `struct kvm_regs`
    pub const REGS: usize = 144;
    /// `struct kvm_sregs`
    pub const SREGS: usize = 312;
    /// `struct kvm_xcrs`
    pub const XCRS: usize = 392;
    /// `struct kvm_debugregs`
    pub const DEBUGREGS: usize = 128;
    /// `struct kvm_lapic_state`
    pub const LAPIC: usize = 1024;
    /// `struct kvm_vcpu_events`
    pub const EVENTS: usize = 64;
    /// `struct kvm_irqchip`
    pub const IRQCHIP: usize = 520;
    /// The least size of `struct kvm_xsave`; processors with more state have more.
    pub const XSAVE_MIN: usize = 4096;
}

/// The bytes of one of KVM's structures.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KvmBytes<const N: usize>(ByteArray<N>);

impl<const N: usize> KvmBytes<N> {
    /// Wraps them.
    pub const fn new(bytes: [u8; N]) -> Self {
        Self(ByteArray::new(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> fmt::Debug for KvmBytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes")
    }
}

/// One virtual CPU, between two instructions and with no access to a device half done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// `kvm_mp_state.mp_state`: running, halted, waiting to be started and so on.
    pub mp_state: u32,
    /// `struct kvm_regs`
    pub regs: KvmBytes<{ kvm_size::REGS }>,
    /// `struct kvm_sregs`
    pub sregs: KvmBytes<{ kvm_size::SREGS }>,
    /// `struct kvm_xsave`, in the size that `KVM_CAP_XSAVE2` gives.
    pub xsave: ByteBuf,
    /// `struct kvm_xcrs`
    pub xcrs: KvmBytes<{ kvm_size::XCRS }>,
    /// `struct kvm_debugregs`
    pub debugregs: KvmBytes<{ kvm_size::DEBUGREGS }>,
    /// `struct kvm_lapic_state`
    pub lapic: KvmBytes<{ kvm_size::LAPIC }>,
    /// `struct kvm_vcpu_events`
    pub events: KvmBytes<{ kvm_size::EVENTS }>,
    /// The frequency of the time stamp counter as the guest knows it, in kHz.
    pub tsc_khz: u32,
    /// What the guest believes its processor to be.
    pub cpuid: Vec<CpuidEntry>,
    /// All model-specific registers, in the order in which they are to be written.
    pub msrs: Vec<Msr>,
}

/// `struct kvm_cpuid_entry2`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the architecture's own")]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// `struct kvm_msr_entry`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// The register's number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}
