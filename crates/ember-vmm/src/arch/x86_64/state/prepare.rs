//! From a state of unknown origin to one that can be put back on this host, again and again.

use ember_snapshot::state::{CpuidEntry, KvmBytes, Msr, VcpuState, VmState};
use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, Xsave,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};
use zerocopy::TryFromBytes;

use super::super::{HostFeatures, create_platform, create_vm, failed};
use super::requirements;
use super::save::{VcpuFeatures, save_vcpu, vcpu_features};
use super::structure::from_bytes;
use super::xsave;
use super::{MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE, StateError};

/// A frequency that is off by no more than this many parts of a million needs no scaling: a guest
/// corrects more than that by itself.
const TSC_TOLERANCE_PPM: u64 = 250;

/// The mode of the local interrupt controller's timer (Intel SDM volume 3A, 11.5.4).
const LAPIC_LVT_TIMER: usize = 0x320;
const TIMER_MODE_MASK: u8 = 0b11 << 1;
const TIMER_MODE_DEADLINE: u8 = 0b10 << 1;

/// A vCPU's state in the form that KVM takes.
#[derive(Debug)]
pub(crate) struct PreparedVcpu {
    pub(super) cpuid: CpuId,
    /// Absent, as others below, if it is what a new vCPU has: each call takes its time.
    pub(super) mp_state: Option<kvm_mp_state>,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    pub(super) xsave: Xsave,
    pub(super) xcrs: Option<kvm_xcrs>,
    pub(super) debugregs: Option<kvm_debugregs>,
    pub(super) lapic: kvm_lapic_state,
    pub(super) events: Option<kvm_vcpu_events>,
    /// Those that are not what a new vCPU has, without those that depend on when it goes on.
    pub(super) msrs: Msrs,
    /// The time stamp counter, and then the deadline that is measured by it.
    pub(super) time: Msrs,
    /// The frequency to set, if the host's own is not good enough.
    pub(super) tsc_khz: Option<u32>,
}

/// The interrupt chips in the form that KVM takes.
#[derive(Debug)]
pub(crate) struct PreparedChips(pub(super) [kvm_irqchip; 3]);

/// Checks `state` against this host and brings it into the form that KVM takes.
pub(crate) fn prepare(
    kvm: &Kvm,
    host: &HostFeatures,
    state: &VmState,
) -> Result<(Vec<PreparedVcpu>, PreparedChips), StateError> {
    // Nobody's guest: only asked what a new vCPU is like.
    let vm = create_vm(kvm).map_err(failed("KVM_CREATE_VM"))?;
    create_platform(&vm)?;
    let features = vcpu_features(kvm, &vm)?;
    let vcpus = (0u64..)
        .zip(&state.vcpus)
        .map(|(index, vcpu)| {
            requirements::check(&host.0, &vcpu.cpuid)?;
            let fresh = vm.create_vcpu(index).map_err(failed("KVM_CREATE_VCPU"))?;
            prepare_vcpu(&fresh, &features, vcpu)
        })
        .collect::<Result<Vec<_>, StateError>>()?;
    let chip = |bytes, id| -> Result<kvm_irqchip, StateError> {
        let chip: kvm_irqchip = from_bytes(bytes, "interrupt chip")?;
        if chip.chip_id != id {
            return Err(StateError::Invalid(format!(
                "interrupt chip {} is where {id} should be",
                chip.chip_id
            )));
        }
        Ok(chip)
    };
    let chips = PreparedChips([
        chip(&state.chips.pic_master, KVM_IRQCHIP_PIC_MASTER)?,
        chip(&state.chips.pic_slave, KVM_IRQCHIP_PIC_SLAVE)?,
        chip(&state.chips.ioapic, KVM_IRQCHIP_IOAPIC)?,
    ]);
    Ok((vcpus, chips))
}

fn prepare_vcpu(
    fresh: &VcpuFd,
    features: &VcpuFeatures,
    state: &VcpuState,
) -> Result<PreparedVcpu, StateError> {
    let cpuid = cpuid(&state.cpuid)?;
    fresh.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
    let host_khz = fresh.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
    let lapic: kvm_lapic_state = from_bytes(&state.lapic, "local interrupt controller")?;
    // What a register has by itself need not be written into each clone.
    let usual = save_vcpu(fresh, features)?;
    let msrs = changed_msrs(&state.msrs, &usual.msrs);
    let time = time_msrs(&state.msrs, uses_deadline(&lapic));
    let list = |entries: &[kvm_msr_entry]| {
        Msrs::from_entries(entries)
            .map_err(|_| StateError::Invalid(format!("it has {} registers", entries.len())))
    };
    let mp_state = (state.mp_state != usual.mp_state).then_some(kvm_mp_state {
        mp_state: state.mp_state,
    });
    Ok(PreparedVcpu {
        cpuid,
        mp_state,
        regs: from_bytes(&state.regs, "registers")?,
        sregs: from_bytes(&state.sregs, "special registers")?,
        xsave: xsave::prepare(&state.xsave, features.xsave_bytes())?,
        xcrs: changed(&state.xcrs, &usual.xcrs, "extended control registers")?,
        debugregs: changed(&state.debugregs, &usual.debugregs, "debug registers")?,
        events: changed(&state.events, &usual.events, "pending events")?,
        msrs: list(&msrs)?,
        time: list(&time)?,
        tsc_khz: differs(host_khz, state.tsc_khz).then_some(state.tsc_khz),
        lapic,
    })
}

/// A structure with these bytes, unless a new vCPU has the same.
fn changed<T: TryFromBytes, const N: usize>(
    saved: &KvmBytes<N>,
    usual: &KvmBytes<N>,
    what: &str,
) -> Result<Option<T>, StateError> {
    if saved == usual {
        return Ok(None);
    }
    from_bytes(saved, what).map(Some)
}

fn cpuid(entries: &[CpuidEntry]) -> Result<CpuId, StateError> {
    let entries: Vec<kvm_cpuid_entry2> = entries
        .iter()
        .map(|entry| kvm_cpuid_entry2 {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries)
        .map_err(|_| StateError::Invalid(format!("it has {} CPUID leaves", entries.len())))
}

/// Whether the timer waits for a value of the time stamp counter.
fn uses_deadline(lapic: &kvm_lapic_state) -> bool {
    // The mode is in bits 17 and 18 of the register.
    lapic
        .regs
        .get(LAPIC_LVT_TIMER + 2)
        .is_some_and(|byte| byte.to_ne_bytes()[0] & TIMER_MODE_MASK == TIMER_MODE_DEADLINE)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// The registers of `saved` that are to be written into a vCPU that has those of `usual`.
pub(super) fn changed_msrs(saved: &[Msr], usual: &[Msr]) -> Vec<kvm_msr_entry> {
    saved
        .iter()
        .filter(|msr| ![MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE].contains(&msr.index))
        .filter(|msr| !usual.contains(msr))
        .map(|msr| entry(msr.index, msr.value))
        .collect()
}

/// The registers that say what time it is and when the timer fires, in that order: a deadline that
/// is written before the counter is compared with another time.
pub(super) fn time_msrs(saved: &[Msr], uses_deadline: bool) -> Vec<kvm_msr_entry> {
    let value_of = |index| {
        let found = saved.iter().find(|msr| msr.index == index);
        found.map(|msr| msr.value)
    };
    let Some(tsc) = value_of(MSR_IA32_TSC) else {
        return Vec::new();
    };
    let mut entries = vec![entry(MSR_IA32_TSC, tsc)];
    if let (Some(deadline), true) = (value_of(MSR_IA32_TSC_DEADLINE), uses_deadline) {
        // Zero is also what a timer has that fired while it was being saved. One interrupt too many
        // does no harm; one that never comes does.
        let deadline = if deadline == 0 { tsc } else { deadline };
        entries.push(entry(MSR_IA32_TSC_DEADLINE, deadline));
    }
    entries
}

pub(super) fn differs(host_khz: u32, guest_khz: u32) -> bool {
    let difference = u64::from(host_khz.abs_diff(guest_khz));
    guest_khz != 0 && difference * 1_000_000 > u64::from(host_khz) * TSC_TOLERANCE_PPM
}
