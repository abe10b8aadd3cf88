//! Where everything is in a guest's physical address space, which ports and interrupt lines its
//! platform devices have: the one place that the boot code, the ACPI tables and the buses agree on.
//!
//! ```text
//!          0 ┌──────────────────────────────┐
//!            │ RAM, boot structures in it   │
//!    0xA0000 ├──────────────────────────────┤
//!            │ reserved (backed by memory): │
//!            │ generation id, ACPI tables   │
//!   0x100000 ├──────────────────────────────┤
//!            │ RAM: kernel, … , initramfs   │ the initramfs ends where low RAM ends
//! 0xD0000000 ├──────────────────────────────┤ or where the RAM ends, if there is less
//!            │ virtio windows, IOAPIC,      │
//!            │ LAPIC, KVM's own pages       │
//!  4 GiB     ├──────────────────────────────┤
//!            │ the rest of the RAM          │
//!            └──────────────────────────────┘
//! ```
//!
//! Everything the boot code writes below 0xA0000 is only read while the kernel starts: Linux copies
//! it before it uses the memory for anything else, so none of it is reserved in the memory map.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestMemory;

/// Size of a page.
pub(crate) const PAGE_SIZE: u64 = 0x1000;

/// The global descriptor table of the boot vCPU.
pub(crate) const GDT: GuestAddress = GuestAddress(0x500);
/// The (empty) interrupt descriptor table of the boot vCPU.
pub(crate) const IDT: GuestAddress = GuestAddress(0x520);
/// PVH: `struct hvm_start_info`.
pub(crate) const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// PVH: the one entry of the module list, the initramfs.
pub(crate) const PVH_MODULES: GuestAddress = GuestAddress(0x6040);
/// PVH: the memory map.
pub(crate) const PVH_MEMORY_MAP: GuestAddress = GuestAddress(0x6100);
/// 64-bit boot protocol: `struct boot_params`, one page.
pub(crate) const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// 64-bit boot protocol: page tables, of which this is the root. PML4, PDPT and one page directory
/// for each of the first four GiB, so six pages up to 0xF000.
pub(crate) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Number of pages that [`PAGE_TABLES`] take.
pub(crate) const PAGE_TABLE_PAGES: u64 = 6;
/// 64-bit boot protocol: the end of a small stack. Linux sets up its own before it needs one; this
/// keeps a push of anything else within RAM that nothing uses.
pub(crate) const BOOT_STACK_END: GuestAddress = GuestAddress(0x1_8000);
/// The kernel's command line, with the zero byte at its end.
pub(crate) const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// The longest command line, with its zero byte: Linux's `COMMAND_LINE_SIZE` on x86.
pub(crate) const COMMAND_LINE_MAX: usize = 2048;

/// End of conventional RAM: the area of legacy video memory and firmware begins here.
pub(crate) const LOW_RAM_END: u64 = 0xA_0000;
/// The page with the VM generation id. It has to be memory, but nothing that the guest would hand
/// out as RAM ("Virtual Machine Generation ID", Microsoft 2012), so it lies in a reserved area.
pub(crate) const GENERATION_ID: GuestAddress = GuestAddress(0xD_F000);
/// The ACPI tables. The RSDP comes first, where a guest that was not told also finds it (ACPI 6.5,
/// 5.2.5.1: on a 16-byte boundary between 0xE0000 and 0xFFFFF).
pub(crate) const ACPI_TABLES: GuestAddress = GuestAddress(0xE_0000);
/// Room for the ACPI tables; the tests hold the largest ones against it.
#[cfg(test)]
pub(crate) const ACPI_TABLES_SIZE: u64 = RESET_VECTOR.0 - ACPI_TABLES.0;
/// Where a PC's firmware begins in real mode (F000:FFF0). The 16 bytes up to 1 MiB are all that
/// there is of it.
pub(crate) const RESET_VECTOR: GuestAddress = GuestAddress(0xF_FFF0);
/// RAM goes on here, behind the legacy area. Kernels live above it.
pub(crate) const HIGH_RAM_START: u64 = 0x10_0000;

/// End of the RAM below 4 GiB; the hole for memory-mapped devices begins.
pub(crate) const HOLE_START: u64 = 0xD000_0000;
/// End of the hole; RAM goes on.
pub(crate) const HOLE_END: u64 = 0x1_0000_0000;

/// The register window of the first virtio device; the others follow.
pub(crate) const VIRTIO_MMIO_START: u64 = HOLE_START;
/// Size of one virtio register window.
pub(crate) const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The I/O interrupt controller, at the place KVM gives it.
pub(crate) const IOAPIC: u64 = 0xFEC0_0000;
/// The local interrupt controllers, at the place they have after a reset.
pub(crate) const LAPIC: u64 = 0xFEE0_0000;
/// `KVM_SET_IDENTITY_MAP_ADDR`: a page KVM wants for real mode on Intel without unrestricted
/// guests. Outside any memory slot, so that the guest cannot reach it.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// `KVM_SET_TSS_ADDR`: three more pages, for the same purpose.
pub(crate) const KVM_TSS: u64 = 0xFFFB_D000;

/// First port of the serial console, COM1.
pub(crate) const SERIAL_PORT: u16 = 0x3F8;
/// Number of ports of the serial console.
pub(crate) const SERIAL_PORT_COUNT: u16 = 8;
/// The panic notifier of QEMU's design ("pvpanic").
pub(crate) const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control register (ACPI 6.5, 4.8.3.7): a write of [`SLEEP_CONTROL_S5`] powers off.
pub(crate) const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub(crate) const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register: a write of [`RESET_VALUE`] resets.
pub(crate) const RESET_PORT: u16 = 0x602;
/// The sleep type that the ACPI tables give for S5, soft off.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;
/// What a guest writes to [`SLEEP_CONTROL_PORT`] to power off: `SLP_EN` (bit 5) and the type (bits
/// 2 to 4).
pub(crate) const SLEEP_CONTROL_S5: u8 = (1 << 5) | (SLEEP_TYPE_S5 << 2);
/// What a guest writes to [`RESET_PORT`].
pub(crate) const RESET_VALUE: u8 = 1;

/// Interrupt line of the serial console.
pub(crate) const SERIAL_GSI: u32 = 4;
/// Interrupt line of the event device that announces a new generation id. It is the line of the
/// system control interrupt elsewhere, which hardware-reduced ACPI does not have.
pub(crate) const GENERATION_ID_GSI: u32 = 9;
/// Interrupt lines of virtio devices, one each: the pins of the IOAPIC that nothing else has. Line
/// 8 is left out because a kernel may take it for the real-time clock without asking.
const VIRTIO_GSIS: [u32; 17] = [
    5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
];
/// The most virtio devices one VM can have.
pub(crate) const VIRTIO_DEVICE_MAX: usize = VIRTIO_GSIS.len();

/// The register window and the interrupt line of the virtio device `index`; `None` beyond
/// [`VIRTIO_DEVICE_MAX`].
pub(crate) fn virtio_window(index: usize) -> Option<VirtioWindow> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    let address = GuestAddress(VIRTIO_MMIO_START + index as u64 * VIRTIO_MMIO_SIZE);
    Some(VirtioWindow { address, gsi })
}

/// Where a guest finds one virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtioWindow {
    /// First address of its [`VIRTIO_MMIO_SIZE`] bytes of registers.
    pub(crate) address: GuestAddress,
    /// Its interrupt line: edge triggered, active high.
    pub(crate) gsi: u32,
}

/// The ranges (start, length) that `bytes` of guest memory take, in ascending order: all of it
/// below the hole, or the rest of it from 4 GiB on. `bytes` must be a multiple of the page size.
pub(crate) fn memory_ranges(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if bytes > low {
        ranges.push((GuestAddress(HOLE_END), bytes - low));
    }
    ranges
}

/// How much memory a guest has.
pub(crate) fn memory_bytes(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Where the RAM below the hole ends.
pub(crate) fn low_ram_end(memory: &GuestMemory) -> u64 {
    memory_bytes(memory).min(HOLE_START)
}

/// What a part of the address space is, by the numbers of the BIOS call E820, which both boot
/// protocols use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MemoryKind {
    /// Memory that is the guest's to use.
    Ram = 1,
    /// Memory, or room, that it must leave alone.
    Reserved = 2,
}

/// One range of the memory map that is handed to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryMapEntry {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) kind: MemoryKind,
}

/// The memory map of a guest with `bytes` of memory (at least [`HIGH_RAM_START`]), in ascending
/// order and without overlaps.
pub(crate) fn memory_map(bytes: u64) -> Vec<MemoryMapEntry> {
    use MemoryKind::{Ram, Reserved};
    let entry = |start: u64, end: u64, kind| MemoryMapEntry {
        start,
        len: end - start,
        kind,
    };

    let mut map = vec![
        entry(0, LOW_RAM_END, Ram),
        entry(LOW_RAM_END, HIGH_RAM_START, Reserved),
    ];
    for (start, len) in memory_ranges(bytes) {
        let end = start.0 + len;
        let start = start.0.max(HIGH_RAM_START);
        if start < end {
            map.push(entry(start, end, Ram));
        }
    }
    map
}

#[cfg(test)]
mod tests;
