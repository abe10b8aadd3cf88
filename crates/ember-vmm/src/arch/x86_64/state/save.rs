//! Taking the processor side of a VM out of KVM. No vCPU may be in the guest, and none may owe it
//! the result of an access.

use ember_snapshot::state::{
    ChipState, ClockState, CpuidEntry, KvmBytes, Msr, VcpuState, kvm_size,
};
use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_irqchip, kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::super::{SetupError, failed};
use super::structure::to_bytes;
use super::xsave;
use super::{MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE};

/// How many registers one `KVM_GET_MSRS` takes: the kernel's `MAX_IO_MSRS`.
const MSR_CHUNK: usize = 256;

/// Registers that `KVM_GET_MSR_INDEX_LIST` leaves out although a guest can see their values: the
/// memory types (Intel SDM volume 3A, 12.11.2) and KVM's own (kernel
/// `Documentation/virt/kvm/x86/msr.rst`), which older kernels do not list.
const MORE_MSRS: [std::ops::RangeInclusive<u32>; 6] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
    0x4b56_4d00..=0x4b56_4d08,
];

/// What a vCPU of this host consists of.
#[derive(Clone, Debug)]
pub(crate) struct VcpuFeatures {
    /// The registers to save, the time stamp counter first and the deadline, which is measured by
    /// it, last.
    msrs: Vec<u32>,
    xsave_bytes: usize,
}

impl VcpuFeatures {
    /// The size of `struct kvm_xsave` here, in bytes.
    pub(super) fn xsave_bytes(&self) -> usize {
        self.xsave_bytes
    }
}

/// Asks KVM what a vCPU of `vm` consists of.
pub(crate) fn vcpu_features(kvm: &Kvm, vm: &VmFd) -> Result<VcpuFeatures, SetupError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
    let mut msrs: Vec<u32> = list
        .as_slice()
        .iter()
        .copied()
        .chain(MORE_MSRS.into_iter().flatten())
        .filter(|msr| ![MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE].contains(msr))
        .collect();
    msrs.sort_unstable();
    msrs.dedup();
    msrs.insert(0, MSR_IA32_TSC);
    msrs.push(MSR_IA32_TSC_DEADLINE);
    // Zero on kernels before 5.17, whose processors have no more than the minimum.
    let xsave_bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    Ok(VcpuFeatures {
        msrs,
        xsave_bytes: xsave_bytes.max(kvm_size::XSAVE_MIN),
    })
}

/// Takes out a vCPU.
pub(crate) fn save_vcpu(vcpu: &VcpuFd, features: &VcpuFeatures) -> Result<VcpuState, SetupError> {
    // First: asking for it can make the local interrupt controller take what is pending.
    let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let xsave = xsave::save(vcpu, features.xsave_bytes)?;
    let xcrs = vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
    let debugregs = vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_CPUID2"))?;
    let msrs = save_msrs(vcpu, &features.msrs)?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(failed("KVM_GET_VCPU_EVENTS"))?;
    Ok(VcpuState {
        mp_state: mp_state.mp_state,
        regs: to_bytes(&regs),
        sregs: to_bytes(&sregs),
        xsave,
        xcrs: to_bytes(&xcrs),
        debugregs: to_bytes(&debugregs),
        lapic: to_bytes(&lapic),
        events: to_bytes(&events),
        tsc_khz,
        cpuid: cpuid_entries(&cpuid),
        msrs,
    })
}

fn cpuid_entries(cpuid: &CpuId) -> Vec<CpuidEntry> {
    cpuid
        .as_slice()
        .iter()
        .map(|entry| CpuidEntry {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        })
        .collect()
}

/// The values of `numbers`, as far as this vCPU has them. KVM lists registers that a guest with
/// this CPUID has not.
fn save_msrs(vcpu: &VcpuFd, numbers: &[u32]) -> Result<Vec<Msr>, SetupError> {
    let mut values = Vec::with_capacity(numbers.len());
    let mut rest = numbers;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MSR_CHUNK)];
        let entries: Vec<kvm_msr_entry> = chunk
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| SetupError {
            step: "KVM_GET_MSRS".to_owned(),
            source: kvm_ioctls::Error::new(nix::libc::ENOMEM),
        })?;
        let read = vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        values.extend(msrs.as_slice().iter().take(read).map(|entry| Msr {
            index: entry.index,
            value: entry.data,
        }));
        // KVM stops at the first register it cannot read: go on behind it.
        let next = if read < chunk.len() { read + 1 } else { read };
        rest = &rest[next..];
    }
    Ok(values)
}

/// Takes out the interrupt chips that all vCPUs share.
pub(crate) fn save_chips(vm: &VmFd) -> Result<ChipState, SetupError> {
    let chip = |chip_id| -> Result<KvmBytes<{ kvm_size::IRQCHIP }>, SetupError> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip)
            .map_err(failed("KVM_GET_IRQCHIP"))?;
        Ok(to_bytes(&chip))
    };
    Ok(ChipState {
        pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
    })
}

/// Reads the VM's clock. Its flags are left out: they say how the value was read, and setting it
/// with them would make it jump by the time that has passed since.
pub(crate) fn save_clock(vm: &VmFd) -> Result<ClockState, SetupError> {
    let clock = vm.get_clock().map_err(failed("KVM_GET_CLOCK"))?;
    Ok(ClockState {
        nanoseconds: clock.clock,
    })
}
