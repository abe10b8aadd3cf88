//! Whether this machine's KVM can boot Linux, found out by timing it.
//!
//! `/dev/kvm` being there says little: where the hypervisor below offers neither VMX nor SVM, a
//! software KVM can stand behind it that runs guest user mode natively and emulates kernel mode one
//! instruction at a time, a thousand times slower, and stops at instructions it does not know. No
//! kernel boots there. A short loop at privilege level 0 in 64-bit mode tells the two apart.
//!
//! This module depends on nothing else in the crate.
#![allow(unsafe_code, reason = "giving the probe its memory")]

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// What stands behind `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Guest kernels run on the processor.
    Real {
        /// How long the loop took.
        elapsed: Duration,
    },
    /// Guest kernels are emulated instruction by instruction: Linux does not boot.
    Emulated {
        /// How long the loop took; `None` if it did not even get to its end.
        elapsed: Option<Duration>,
    },
    /// There is no `/dev/kvm`.
    Absent,
    /// There is one and this user may not open it.
    Forbidden,
    /// It is there and does not do what every KVM does.
    Unusable {
        /// What failed, and how.
        reason: String,
    },
}

impl Verdict {
    /// Whether a guest can boot Linux here.
    pub fn is_real(&self) -> bool {
        matches!(self, Self::Real { .. })
    }

    /// What to do about it; `None` when all is well.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Real { .. } => None,
            Self::Emulated { .. } => Some(
                "use a machine with VMX or SVM: bare metal, or an instance type with nested \
                 virtualization switched on",
            ),
            Self::Absent => Some(
                "load kvm_intel or kvm_amd (`modprobe kvm_amd`), and switch virtualization on in \
                 the firmware or, in a virtual machine, in its hypervisor",
            ),
            Self::Forbidden => Some(
                "add this user to the group that owns /dev/kvm (`usermod -aG kvm USER`, then log \
                 in again)",
            ),
            Self::Unusable { .. } => Some("look at `dmesg | grep -i kvm`"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loops = ITERATIONS;
        match self {
            Self::Real { elapsed } => write!(
                f,
                "real: a loop of {loops} turns in a guest's kernel mode took {:.2} ms",
                milliseconds(*elapsed)
            ),
            Self::Emulated {
                elapsed: Some(elapsed),
            } => write!(
                f,
                "emulated: a loop of {loops} turns in a guest's kernel mode took {:.0} ms, a \
                 processor takes 0.03 ms; Linux cannot boot on it",
                milliseconds(*elapsed)
            ),
            Self::Emulated { elapsed: None } => f.write_str(
                "emulated: it gave up on a plain loop in a guest's kernel mode; Linux cannot boot \
                 on it",
            ),
            Self::Absent => f.write_str("absent: there is no /dev/kvm"),
            Self::Forbidden => f.write_str("forbidden: this user may not open /dev/kvm"),
            Self::Unusable { reason } => write!(f, "unusable: {reason}"),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Turns of the loop; each is two instructions.
const ITERATIONS: u64 = 50_000;
/// Measured for these 100,000 instructions: 0.03 ms on a processor, 0.3 ms in a guest of a software
/// CPU, 70 ms emulated.
const LIMIT: Duration = Duration::from_millis(10);
/// A busy machine can take a processor away in the middle; the fastest of some runs counts.
const ATTEMPTS: u32 = 5;

/// `dec rcx; jnz -5; hlt`. Without an interrupt controller in the kernel, `hlt` comes back to us.
const CODE: [u8; 6] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];

// One slot of memory from address 0: page tables that map the first 2 MiB onto themselves, then code.
const MEMORY_SIZE: usize = 0x5000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const ENTRY: u64 = 0x4000;

/// Times a loop at privilege level 0. Takes a few milliseconds, or some 100 where KVM is emulated.
pub fn probe() -> Verdict {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let error = io::Error::from(error);
            return match error.kind() {
                io::ErrorKind::NotFound => Verdict::Absent,
                io::ErrorKind::PermissionDenied => Verdict::Forbidden,
                _ => Verdict::Unusable {
                    reason: format!("opening /dev/kvm: {error}"),
                },
            };
        }
    };
    measure(&kvm).unwrap_or_else(|reason| Verdict::Unusable { reason })
}

fn measure(kvm: &Kvm) -> Result<Verdict, String> {
    let mut memory = Memory::new();
    let vm = kvm
        .create_vm()
        .map_err(|error| format!("creating a VM: {error}"))?;
    memory.attach(&vm)?;
    let mut vcpu = vm
        .create_vcpu(0)
        .map_err(|error| format!("creating a vCPU: {error}"))?;
    // Without CPUID a vCPU has no 64-bit mode.
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .and_then(|cpuid| vcpu.set_cpuid2(&cpuid))
        .map_err(|error| format!("setting CPUID: {error}"))?;
    enter_long_mode(&vcpu)?;

    let mut best = None;
    for _ in 0..ATTEMPTS {
        let Some(elapsed) = timed_loop(&mut vcpu)? else {
            return Ok(Verdict::Emulated { elapsed: None });
        };
        best = Some(best.map_or(elapsed, |best: Duration| best.min(elapsed)));
        // Nothing makes an emulator this fast.
        if elapsed < LIMIT {
            return Ok(Verdict::Real { elapsed });
        }
    }
    Ok(Verdict::Emulated { elapsed: best })
}

/// Runs the loop once; `None` if KVM stopped before its end.
fn timed_loop(vcpu: &mut VcpuFd) -> Result<Option<Duration>, String> {
    let mut registers = vcpu
        .get_regs()
        .map_err(|error| format!("reading registers: {error}"))?;
    registers.rip = ENTRY;
    registers.rcx = ITERATIONS;
    // Bit 1 is always set.
    registers.rflags = 2;
    vcpu.set_regs(&registers)
        .map_err(|error| format!("setting registers: {error}"))?;
    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(Some(start.elapsed())),
            // Emulation failed (KVM_EXIT_INTERNAL_ERROR), or anything else a loop cannot cause.
            Ok(_) => return Ok(None),
            // A signal for this thread.
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("running a vCPU: {error}")),
        }
    }
}

/// 64-bit mode at privilege level 0 with paging on, as Intel SDM volume 3, 10.8.5 leaves it.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), String> {
    const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    let mut special = vcpu
        .get_sregs()
        .map_err(|error| format!("reading special registers: {error}"))?;
    special.cr0 = CR0_PE_ET_PG;
    special.cr3 = PML4;
    special.cr4 = CR4_PAE;
    special.efer = EFER_LME_LMA;
    let data = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x10,
        // Read and write, accessed.
        type_: 0x3,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    };
    // Execute and read, accessed; `l` is 64-bit mode and excludes `db`.
    special.cs = kvm_segment {
        selector: 0x8,
        type_: 0xb,
        l: 1,
        db: 0,
        ..data
    };
    special.ds = data;
    special.es = data;
    special.fs = data;
    special.gs = data;
    special.ss = data;
    vcpu.set_sregs(&special)
        .map_err(|error| format!("setting special registers: {error}"))
}

/// The guest's memory. Must outlive its VM, so it is made before.
struct Memory {
    bytes: Vec<u8>,
    /// Of the first page-aligned byte.
    offset: usize,
}

impl Memory {
    fn new() -> Self {
        const PAGE: usize = 4096;
        let bytes = vec![0; MEMORY_SIZE + PAGE];
        let offset = bytes.as_ptr().align_offset(PAGE);
        let mut memory = Self { bytes, offset };
        // Present and writable; bit 7 makes the last a page of 2 MiB.
        memory.write(PML4, &(PDPT | 0x3).to_le_bytes());
        memory.write(PDPT, &(PD | 0x3).to_le_bytes());
        memory.write(PD, &0x83_u64.to_le_bytes());
        memory.write(ENTRY, &CODE);
        memory
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let start = self.offset + usize::try_from(address).unwrap_or(MEMORY_SIZE);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes it the guest's memory. Nothing here touches it afterwards.
    fn attach(&mut self, vm: &VmFd) -> Result<(), String> {
        let start = self.bytes[self.offset..self.offset + MEMORY_SIZE].as_mut_ptr();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_SIZE as u64,
            userspace_addr: start as u64,
        };
        // SAFETY: the range is part of `self.bytes`, page-aligned and MEMORY_SIZE long. The caller
        // made `self` before the VM, so it is freed after it, and reads or writes none of it while
        // the guest may.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|error| format!("giving a VM memory: {error}"))
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
