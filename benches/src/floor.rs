//! What a VM costs before it is anything: KVM's own calls, without devices and without a state.
#![allow(unsafe_code, reason = "giving memory to KVM")]

use std::os::fd::AsRawFd;
use std::time::Instant;

use anyhow::{Context, Result};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::Kvm;
use tokio::runtime::Runtime;
use vm_memory::MmapRegion;

use crate::figure::Figure;
use crate::sandbox::ms_since;

const ROUNDS: usize = 25;
const MEMORY: usize = 128 << 20;

/// `floor`: a VM with interrupt chip, PIT, memory and one vCPU with CPUID, registers and LAPIC.
pub(crate) fn floor(_runtime: &Runtime) -> Result<Vec<Figure>> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let mut samples = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let vm = kvm.create_vm()?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())?;
        // Longer than the VM: it is dropped after it, being declared before the slot is set.
        let memory = MmapRegion::<()>::new(MEMORY)?;
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: the range is one whole mapping, and no vCPU ever runs on it.
        unsafe { vm.set_user_memory_region(slot) }?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&cpuid)?;
        let sregs = vcpu.get_sregs()?;
        vcpu.set_sregs(&sregs)?;
        let lapic = vcpu.get_lapic()?;
        vcpu.set_lapic(&lapic)?;
        samples.push(ms_since(start));
        anyhow::ensure!(vcpu.as_raw_fd() >= 0);
        drop((vcpu, vm));
        drop(memory);
        std::thread::sleep(std::time::Duration::from_millis(60));
    }
    let conditions = "KVM calls only: 1 vCPU, 128 MiB, no devices, no state";
    Ok(vec![Figure::of(
        "floor", "object", "ms", None, conditions, &samples,
    )])
}
