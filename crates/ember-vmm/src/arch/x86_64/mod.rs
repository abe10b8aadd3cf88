//! The x86_64 architecture.

pub(crate) mod acpi;
mod boot;
mod cpuid;
pub(crate) mod layout;
mod processor;
mod registers;
pub(crate) mod state;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

pub(crate) use boot::write_boot_structures;
pub use processor::Processor;
pub(crate) use registers::{BootRegisters, read_registers};
use registers::{set_boot_msrs, set_boot_registers, set_interrupt_pins};

/// A step of setting up the processor side of a VM failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub(crate) struct SetupError {
    step: String,
    source: kvm_ioctls::Error,
}

fn failed(step: &str) -> impl FnOnce(kvm_ioctls::Error) -> SetupError + '_ {
    move |source| SetupError {
        step: format!("{step} failed"),
        source,
    }
}

/// What every vCPU of a host can offer a guest.
#[derive(Clone, Debug)]
pub(crate) struct HostFeatures(CpuId);

impl HostFeatures {
    /// Asks KVM.
    pub(crate) fn read(kvm: &Kvm) -> Result<Self, SetupError> {
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map(Self)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))
    }
}

/// A new VM. Creating one takes long enough that a signal can interrupt it.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == nix::libc::EINTR => {}
            result => return result,
        }
    }
}

/// Gives a new VM what belongs to the platform rather than to a vCPU. Must come before the first
/// vCPU is made: a vCPU gets its local interrupt controller only if the chip exists.
///
/// There is no PIT: a guest of KVM has its clock for the time and the local interrupt controller's
/// deadline timer for events.
pub(crate) fn create_platform(vm: &VmFd) -> Result<(), SetupError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .map_err(failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))
}

/// Makes vCPU `index` of `vcpus` ready. The boot vCPU gets `boot`; the others wait for it to start
/// them.
pub(crate) fn configure_vcpu(
    vcpu: &VcpuFd,
    host: &HostFeatures,
    index: u8,
    vcpus: u8,
    boot: Option<BootRegisters>,
) -> Result<(), SetupError> {
    // CPUID first: which MSRs exist depends on it.
    vcpu.set_cpuid2(&cpuid::for_vcpu(&host.0, index, vcpus))
        .map_err(failed("KVM_SET_CPUID2"))?;
    if let Some(msr) = set_boot_msrs(vcpu).map_err(failed("KVM_SET_MSRS"))? {
        return Err(SetupError {
            step: format!("KVM_SET_MSRS refused register {msr:#x}"),
            source: kvm_ioctls::Error::new(nix::libc::EINVAL),
        });
    }
    if let Some(boot) = boot {
        set_boot_registers(vcpu, boot).map_err(failed("setting the boot registers"))?;
    }
    set_interrupt_pins(vcpu).map_err(failed("KVM_SET_LAPIC"))
}
