//! The registers a vCPU starts with, and those a report shows.

use ember_snapshot::vcpu::VcpuRegisters;
use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::layout::{BOOT_STACK_END, GDT, IDT, PAGE_TABLES};

type Result<T> = std::result::Result<T, kvm_ioctls::Error>;

/// How the boot vCPU enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BootRegisters {
    /// PVH (Xen's `docs/misc/pvh.pandoc`): 32-bit protected mode without paging.
    Pvh {
        /// The address in the kernel's ELF note.
        entry: u64,
        /// Where `struct hvm_start_info` is.
        start_info: u64,
    },
    /// The 64-bit boot protocol (kernel `Documentation/arch/x86/boot.rst`).
    Linux64 {
        /// The kernel's 64-bit entry point.
        entry: u64,
        /// Where `struct boot_params` is.
        boot_params: u64,
    },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always one.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Segment types (Intel SDM volume 3A, 3.4.5.1), accessed as the processor would mark them.
const CODE_EXECUTE_READ: u8 = 0xb;
const DATA_READ_WRITE: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;
/// Selectors of the boot GDT: `__BOOT_CS` and `__BOOT_DS` of the Linux boot protocol.
const BOOT_CODE: u16 = 0x10;
const BOOT_DATA: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Sets the registers of the boot vCPU.
pub(crate) fn set_boot_registers(vcpu: &VcpuFd, boot: BootRegisters) -> Result<()> {
    let long_mode = matches!(boot, BootRegisters::Linux64 { .. });
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = flat_segment(BOOT_CODE, CODE_EXECUTE_READ);
    if long_mode {
        sregs.cs.l = 1;
        sregs.cs.db = 0;
    }
    let data = flat_segment(BOOT_DATA, DATA_READ_WRITE);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        s: 0,
        g: 0,
        db: 0,
        ..flat_segment(BOOT_TSS, TSS_BUSY)
    };
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = IDT.0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if long_mode {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = PAGE_TABLES.0;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs)?;

    let mut regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match boot {
        BootRegisters::Pvh { entry, start_info } => {
            regs.rip = entry;
            regs.rbx = start_info;
        }
        BootRegisters::Linux64 { entry, boot_params } => {
            regs.rip = entry;
            regs.rsi = boot_params;
            regs.rsp = BOOT_STACK_END.0;
            regs.rbp = BOOT_STACK_END.0;
        }
    }
    vcpu.set_regs(&regs)
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The registers a person needs to see when a vCPU stopped for no good reason.
pub(crate) fn read_registers(vcpu: &VcpuFd) -> Result<VcpuRegisters> {
    let regs = vcpu.get_regs()?;
    let sregs = vcpu.get_sregs()?;
    Ok(VcpuRegisters {
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rsp: regs.rsp,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rip: regs.rip,
        rflags: regs.rflags,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        cs: sregs.cs.selector,
        ss: sregs.ss.selector,
    })
}

const MSR_IA32_SYSENTER_CS: u32 = 0x174;
const MSR_IA32_SYSENTER_ESP: u32 = 0x175;
const MSR_IA32_SYSENTER_EIP: u32 = 0x176;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

const MISC_ENABLE_FAST_STRINGS: u64 = 1;
/// MTRRs on (bit 11), everything write-back (type 6).
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// Sets the model-specific registers a kernel expects of firmware. `Some` names the register that
/// KVM refused.
pub(crate) fn set_boot_msrs(vcpu: &VcpuFd) -> Result<Option<u32>> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_IA32_SYSENTER_CS, 0),
        entry(MSR_IA32_SYSENTER_ESP, 0),
        entry(MSR_IA32_SYSENTER_EIP, 0),
        entry(MSR_STAR, 0),
        entry(MSR_LSTAR, 0),
        entry(MSR_CSTAR, 0),
        entry(MSR_SYSCALL_MASK, 0),
        entry(MSR_KERNEL_GS_BASE, 0),
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
        entry(MSR_IA32_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let Ok(msrs) = Msrs::from_entries(&entries) else {
        // Only a list of thousands does not fit.
        return Ok(entries.first().map(|entry| entry.index));
    };
    let written = vcpu.set_msrs(&msrs)?;
    Ok(entries.get(written).map(|entry| entry.index))
}

/// Offsets of the local vector table's entries for the interrupt pins (Intel SDM volume 3A,
/// 11.5.1).
const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const DELIVERY_NMI: u32 = 0b100 << 8;
const DELIVERY_EXTINT: u32 = 0b111 << 8;

/// Connects the pins of a vCPU's local interrupt controller as the MP specification has them: the
/// PICs to LINT0, NMI to LINT1.
pub(crate) fn set_interrupt_pins(vcpu: &VcpuFd) -> Result<()> {
    let mut lapic = vcpu.get_lapic()?;
    set_delivery_mode(&mut lapic, LAPIC_LVT_LINT0, DELIVERY_EXTINT);
    set_delivery_mode(&mut lapic, LAPIC_LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic)
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, offset: usize, mode: u32) {
    const MODE_MASK: u32 = 0b111 << 8;
    if let Some(bytes) = lapic.regs.get_mut(offset..offset + 4) {
        let mut value = 0;
        for (shift, byte) in bytes.iter().enumerate() {
            value |= u32::from(byte.to_ne_bytes()[0]) << (8 * shift);
        }
        value = (value & !MODE_MASK) | mode;
        for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *byte = i8::from_ne_bytes([new]);
        }
    }
}
