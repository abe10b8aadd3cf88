//! Linux's 64-bit boot protocol (`Documentation/arch/x86/boot.rst` and `zero-page.rst`).

use vm_memory::{Bytes, GuestAddress};

use super::super::layout::{
    COMMAND_LINE, PAGE_SIZE, PAGE_TABLE_PAGES, PAGE_TABLES, ZERO_PAGE, memory_bytes, memory_map,
};
use super::{BootError, GuestRange};
use crate::kernel::{SETUP_HEADER_OFFSET, SetupHeader};
use crate::memory::GuestMemory;

/// Offsets in the zero page.
mod field {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const E820_ENTRIES: usize = 0x1E8;
    pub(super) const BOOT_FLAG: usize = 0x1FE;
    pub(super) const HEADER: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21C;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const E820_TABLE: usize = 0x2D0;
}

const E820_ENTRY_SIZE: usize = 20;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xFF;

/// Writes the zero page and the page tables.
pub(super) fn write(
    memory: &GuestMemory,
    setup: Option<&SetupHeader>,
    initramfs: Option<GuestRange>,
    rsdp: GuestAddress,
) -> Result<(), BootError> {
    let mut page = vec![0u8; PAGE_SIZE as usize];
    let mut set = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };

    match setup {
        Some(setup) => set(SETUP_HEADER_OFFSET, &setup.bytes),
        // A bare ELF file has lost its header. A kernel reads little of it, but takes a version of
        // zero for a boot loader from before there were versions.
        None => {
            set(field::BOOT_FLAG, &0xAA55u16.to_le_bytes());
            set(field::HEADER, b"HdrS");
            set(field::VERSION, &0x020Cu16.to_le_bytes());
            set(field::KERNEL_ALIGNMENT, &0x0100_0000u32.to_le_bytes());
        }
    }
    set(field::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    set(
        field::CMD_LINE_PTR,
        &u32::try_from(COMMAND_LINE.0)?.to_le_bytes(),
    );
    if let Some(initramfs) = initramfs {
        set(
            field::RAMDISK_IMAGE,
            &u32::try_from(initramfs.start.0)?.to_le_bytes(),
        );
        set(
            field::RAMDISK_SIZE,
            &u32::try_from(initramfs.len)?.to_le_bytes(),
        );
    }
    set(field::ACPI_RSDP_ADDR, &rsdp.0.to_le_bytes());

    let map = memory_map(memory_bytes(memory));
    set(field::E820_ENTRIES, &[u8::try_from(map.len())?]);
    for (index, entry) in map.iter().enumerate() {
        let offset = field::E820_TABLE + index * E820_ENTRY_SIZE;
        set(offset, &entry.start.to_le_bytes());
        set(offset + 8, &entry.len.to_le_bytes());
        set(offset + 16, &(entry.kind as u32).to_le_bytes());
    }
    memory.write_slice(&page, ZERO_PAGE)?;
    write_page_tables(memory)
}

/// Maps the first four GiB to themselves in pages of 2 MiB, which covers all that the protocol asks
/// for: the kernel, the zero page and the command line.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const ENTRY_SIZE: u64 = 8;
    let page = |index: u64| PAGE_TABLES.0 + index * PAGE_SIZE;
    let write = |table: u64, index: u64, entry: u64| {
        memory.write_obj(entry.to_le(), GuestAddress(table + index * ENTRY_SIZE))
    };

    write(page(0), 0, page(1) | PRESENT_WRITABLE)?;
    for directory in 0..PAGE_TABLE_PAGES - 2 {
        write(page(1), directory, page(2 + directory) | PRESENT_WRITABLE)?;
        for index in 0..512 {
            let address = (directory << 30) | (index << 21);
            write(
                page(2 + directory),
                index,
                address | LARGE | PRESENT_WRITABLE,
            )?;
        }
    }
    Ok(())
}
