//! Putting the processor side of a VM back into KVM.
#![allow(
    unsafe_code,
    reason = "device attributes of vCPUs, which no crate wraps"
)]

use std::os::fd::AsRawFd;

use ember_snapshot::state::ClockState;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_clock_data, kvm_device_attr};
use kvm_ioctls::{VcpuFd, VmFd};

use super::super::{SetupError, failed};
use super::prepare::{PreparedChips, PreparedVcpu};
use super::xsave;

/// Device attributes of a vCPU (kernel `Documentation/virt/kvm/api.rst`, 4.79 and 4.80), which
/// kvm-ioctls offers for devices only on this architecture.
mod attribute {
    use kvm_bindings::{KVMIO, kvm_device_attr};

    nix::ioctl_write_ptr!(set, KVMIO, 0xe1, kvm_device_attr);
    nix::ioctl_write_ptr!(get, KVMIO, 0xe2, kvm_device_attr);
}

/// Puts a vCPU back that was created and has not run, all but its time: see [`restore_time`].
pub(crate) fn restore_vcpu(vcpu: &VcpuFd, state: &PreparedVcpu) -> Result<(), SetupError> {
    // Before anything else: which registers exist depends on it.
    vcpu.set_cpuid2(&state.cpuid)
        .map_err(failed("KVM_SET_CPUID2"))?;
    if let Some(khz) = state.tsc_khz {
        vcpu.set_tsc_khz(khz).map_err(failed("KVM_SET_TSC_KHZ"))?;
    }
    if let Some(mp_state) = state.mp_state {
        vcpu.set_mp_state(mp_state)
            .map_err(failed("KVM_SET_MP_STATE"))?;
    }
    vcpu.set_regs(&state.regs).map_err(failed("KVM_SET_REGS"))?;
    vcpu.set_sregs(&state.sregs)
        .map_err(failed("KVM_SET_SREGS"))?;
    xsave::restore(vcpu, &state.xsave)?;
    if let Some(xcrs) = &state.xcrs {
        vcpu.set_xcrs(xcrs).map_err(failed("KVM_SET_XCRS"))?;
    }
    if let Some(debugregs) = &state.debugregs {
        vcpu.set_debug_regs(debugregs)
            .map_err(failed("KVM_SET_DEBUGREGS"))?;
    }
    // Before any MSR: setting it disarms the timer, which a deadline among them arms.
    vcpu.set_lapic(&state.lapic)
        .map_err(failed("KVM_SET_LAPIC"))?;
    set_msrs(vcpu, &state.msrs)?;
    match &state.events {
        Some(events) => vcpu
            .set_vcpu_events(events)
            .map_err(failed("KVM_SET_VCPU_EVENTS")),
        None => Ok(()),
    }
}

fn set_msrs(vcpu: &VcpuFd, msrs: &Msrs) -> Result<(), SetupError> {
    if msrs.as_slice().is_empty() {
        return Ok(());
    }
    let written = vcpu.set_msrs(msrs).map_err(failed("KVM_SET_MSRS"))?;
    match msrs.as_slice().get(written) {
        None => Ok(()),
        Some(refused) => Err(SetupError {
            step: format!(
                "KVM_SET_MSRS refused the value {:#x} for register {:#x}",
                refused.data, refused.index
            ),
            source: kvm_ioctls::Error::new(nix::libc::EINVAL),
        }),
    }
}

/// Lets the time of a vCPU go on from where it was: right before it runs, so that the guest does
/// not notice for how long it was put back and not run. Of several vCPUs, `boot_vcpu` is the first,
/// whose turn was before: all count as it does.
pub(crate) fn restore_time(
    vcpu: &VcpuFd,
    state: &PreparedVcpu,
    boot_vcpu: Option<&VcpuFd>,
) -> Result<(), SetupError> {
    set_msrs(vcpu, &state.time)?;
    if let Some(boot_vcpu) = boot_vcpu {
        // Counters that are written one after the other are apart by the time in between.
        let offset = tsc_offset(boot_vcpu).map_err(failed("KVM_GET_DEVICE_ATTR (TSC offset)"))?;
        set_tsc_offset(vcpu, offset).map_err(failed("KVM_SET_DEVICE_ATTR (TSC offset)"))?;
    }
    // Tells the guest's watchdogs that it stood still. It fails where the guest has no such clock.
    let _ = vcpu.kvmclock_ctrl();
    Ok(())
}

/// What is added to the host's time stamp counter to give the guest's.
fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, kvm_ioctls::Error> {
    let mut offset = 0u64;
    let wanted = tsc_attribute((&raw mut offset).addr());
    // SAFETY: the descriptor is open, and KVM writes eight bytes at the attribute's address, which
    // is that of `offset`.
    unsafe { attribute::get(vcpu.as_raw_fd(), &raw const wanted) }.map_err(kvm_error)?;
    Ok(offset)
}

fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), kvm_ioctls::Error> {
    let wanted = tsc_attribute((&raw const offset).addr());
    // SAFETY: the descriptor is open, and KVM reads eight bytes at the attribute's address, which is
    // that of `offset`.
    unsafe { attribute::set(vcpu.as_raw_fd(), &raw const wanted) }.map_err(kvm_error)?;
    Ok(())
}

fn kvm_error(errno: nix::errno::Errno) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(errno as i32)
}

fn tsc_attribute(address: usize) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: address as u64,
        flags: 0,
    }
}

/// Puts the interrupt chips back. After the vCPUs: the I/O APIC hands what is pending to their
/// local controllers.
pub(crate) fn restore_chips(vm: &VmFd, chips: &PreparedChips) -> Result<(), SetupError> {
    for chip in &chips.0 {
        vm.set_irqchip(chip).map_err(failed("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}

/// Sets the VM's clock: from now on it goes on from where it was.
pub(crate) fn restore_clock(vm: &VmFd, clock: &ClockState) -> Result<(), SetupError> {
    vm.set_clock(&kvm_clock_data {
        clock: clock.nanoseconds,
        ..Default::default()
    })
    .map_err(failed("KVM_SET_CLOCK"))
}
