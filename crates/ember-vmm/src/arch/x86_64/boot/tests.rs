use super::layout::{HOLE_START, PAGE_TABLES, PVH_MEMORY_MAP, PVH_MODULES};
use super::*;
use crate::kernel::{SETUP_HEADER_OFFSET, SetupHeader};

const MIB: u64 = 1 << 20;
const RSDP: GuestAddress = layout::ACPI_TABLES;
const KERNEL_END: GuestAddress = GuestAddress(40 * MIB);

fn memory(bytes: u64) -> GuestMemory {
    let ranges: Vec<_> = layout::memory_ranges(bytes)
        .into_iter()
        .map(|(start, len)| (start, len as usize))
        .collect();
    GuestMemory::from_ranges(&ranges).unwrap()
}

fn pvh() -> LoadedKernel {
    LoadedKernel {
        entry: Entry::Pvh {
            address: GuestAddress(0x100_0A30),
        },
        end: KERNEL_END,
    }
}

fn linux64(setup: Option<SetupHeader>) -> LoadedKernel {
    let address = GuestAddress(0x100_0000);
    LoadedKernel {
        entry: Entry::Linux64 { address, setup },
        end: KERNEL_END,
    }
}

fn setup_header() -> SetupHeader {
    let mut bytes = vec![0xEE; 0x26C - SETUP_HEADER_OFFSET];
    bytes[0x202 - SETUP_HEADER_OFFSET..][..4].copy_from_slice(b"HdrS");
    SetupHeader {
        bytes,
        version: 0x20F,
        preferred_address: 0x100_0000,
        init_size: 0,
        initrd_address_max: 0x7FFF_FFFF,
        command_line_max: 2047,
        has_64_bit_entry: true,
    }
}

fn u32_at(memory: &GuestMemory, address: u64) -> u32 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn u64_at(memory: &GuestMemory, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn bytes_at(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn none() -> Initramfs {
    Initramfs::default()
}

#[test]
fn a_pvh_kernel_finds_all_it_needs() {
    let memory = memory(HOLE_START + 64 * MIB);
    let initramfs = vec![0x5A; 5000];
    // In pieces, which follow one another.
    let pieces = [&[][..], &[0x5A; 4097], &[0x5A; 903]].map(std::borrow::Cow::Borrowed);
    let registers = write_boot_structures(
        &memory,
        &pvh(),
        &pieces.into_iter().collect(),
        "quiet a=b",
        RSDP,
    )
    .unwrap();
    assert_eq!(
        registers,
        BootRegisters::Pvh {
            entry: 0x100_0A30,
            start_info: 0x6000
        }
    );

    // start_info.h, field by field.
    assert_eq!(u32_at(&memory, 0x6000), 0x336E_C578);
    assert_eq!(u32_at(&memory, 0x6004), 1, "version");
    assert_eq!(u32_at(&memory, 0x6008), 0, "flags");
    assert_eq!(u32_at(&memory, 0x600C), 1, "modules");
    assert_eq!(u64_at(&memory, 0x6010), PVH_MODULES.0);
    let command_line = u64_at(&memory, 0x6018);
    assert_eq!(bytes_at(&memory, command_line, 10), b"quiet a=b\0");
    assert_eq!(u64_at(&memory, 0x6020), RSDP.0);
    assert_eq!(u64_at(&memory, 0x6028), PVH_MEMORY_MAP.0);
    assert_eq!(u32_at(&memory, 0x6030), 4, "memory map entries");

    let module = PVH_MODULES.0;
    let start = u64_at(&memory, module);
    assert_eq!(start, HOLE_START - 0x2000);
    assert_eq!(u64_at(&memory, module + 8), 5000);
    assert_eq!(bytes_at(&memory, start, 5000), initramfs);

    let entry = |index: u64| {
        let at = PVH_MEMORY_MAP.0 + index * 24;
        (
            u64_at(&memory, at),
            u64_at(&memory, at + 8),
            u32_at(&memory, at + 16),
        )
    };
    assert_eq!(entry(0), (0, 0xA_0000, 1));
    assert_eq!(entry(1), (0xA_0000, 0x6_0000, 2));
    assert_eq!(entry(2), (MIB, HOLE_START - MIB, 1));
    assert_eq!(entry(3), (1 << 32, 64 * MIB, 1));
}

#[test]
fn without_an_initramfs_there_is_no_module() {
    let memory = memory(64 * MIB);
    for none in [none(), Vec::new().into()] {
        write_boot_structures(&memory, &pvh(), &none, "", RSDP).unwrap();
        assert_eq!(u32_at(&memory, 0x600C), 0);
        assert_eq!(u64_at(&memory, 0x6010), 0);
    }
}

#[test]
fn the_zero_page_carries_the_setup_header_and_ours() {
    let memory = memory(64 * MIB);
    let kernel = linux64(Some(setup_header()));
    let registers =
        write_boot_structures(&memory, &kernel, &[1; 10].to_vec().into(), "x", RSDP).unwrap();
    assert_eq!(
        registers,
        BootRegisters::Linux64 {
            entry: 0x100_0000,
            boot_params: 0x7000
        }
    );

    assert_eq!(bytes_at(&memory, 0x7202, 4), b"HdrS");
    assert_eq!(
        u32_at(&memory, 0x7264),
        0xEEEE_EEEE,
        "a field of the kernel's own"
    );
    assert_eq!(u32_at(&memory, 0x726C), 0, "behind its header");
    assert_eq!(bytes_at(&memory, 0x7210, 1), [0xFF], "type_of_loader");
    assert_eq!(
        u32_at(&memory, 0x7218),
        (64 * MIB - 0x1000) as u32,
        "ramdisk_image"
    );
    assert_eq!(u32_at(&memory, 0x721C), 10, "ramdisk_size");
    assert_eq!(u32_at(&memory, 0x7228), COMMAND_LINE.0 as u32);
    assert_eq!(u64_at(&memory, 0x7070), RSDP.0);
    assert_eq!(
        bytes_at(&memory, 0x71EF, 1),
        [0],
        "the sentinel has to be zero"
    );
    assert_eq!(bytes_at(&memory, 0x71E8, 1), [3], "e820_entries");
    let entry = |index: u64| {
        let at = 0x72D0 + index * 20;
        (
            u64_at(&memory, at),
            u64_at(&memory, at + 8),
            u32_at(&memory, at + 16),
        )
    };
    assert_eq!(entry(0), (0, 0xA_0000, 1));
    assert_eq!(entry(1), (0xA_0000, 0x6_0000, 2));
    assert_eq!(entry(2), (MIB, 63 * MIB, 1));
}

#[test]
fn a_bare_elf_kernel_gets_a_header_that_linux_accepts() {
    let memory = memory(64 * MIB);
    write_boot_structures(&memory, &linux64(None), &none(), "x", RSDP).unwrap();
    assert_eq!(bytes_at(&memory, 0x71FE, 2), [0x55, 0xAA]);
    assert_eq!(bytes_at(&memory, 0x7202, 4), b"HdrS");
    assert_eq!(bytes_at(&memory, 0x7206, 2), [0x0C, 0x02]);
    assert_eq!(u32_at(&memory, 0x721C), 0, "no initramfs");
}

#[test]
fn the_page_tables_map_four_gib_to_themselves() {
    let memory = memory(64 * MIB);
    write_boot_structures(&memory, &linux64(None), &none(), "", RSDP).unwrap();
    for address in [
        0,
        0x7000,
        0x2_0123,
        0x100_0000,
        0x3FFF_FFFF,
        0x4000_0000,
        0xFFFF_FFFF,
    ] {
        // A walk as the processor does it.
        let next = |table: u64, shift: u32| {
            let entry = u64_at(&memory, table + ((address >> shift) & 0x1FF) * 8);
            assert_eq!(entry & 3, 3, "present and writable");
            entry
        };
        let directory_pointers = next(PAGE_TABLES.0, 39) & !0xFFF;
        let directory = next(directory_pointers, 30) & !0xFFF;
        let entry = next(directory, 21);
        assert_eq!(entry & 0x80, 0x80, "a large page");
        assert_eq!((entry & !0x1F_FFFF) | (address & 0x1F_FFFF), address);
    }
}

#[test]
fn the_descriptor_table_is_that_of_the_mode() {
    let memory = memory(64 * MIB);
    write_boot_structures(&memory, &pvh(), &none(), "", RSDP).unwrap();
    assert_eq!(
        u64_at(&memory, GDT.0 + 0x10) >> 53 & 0b11,
        0b10,
        "32-bit code"
    );
    write_boot_structures(&memory, &linux64(None), &none(), "", RSDP).unwrap();
    assert_eq!(
        u64_at(&memory, GDT.0 + 0x10) >> 53 & 0b11,
        0b01,
        "64-bit code"
    );
    assert_eq!(u64_at(&memory, GDT.0), 0);
}

#[test]
fn a_jump_to_the_firmware_resets() {
    let memory = memory(64 * MIB);
    write_boot_structures(&memory, &pvh(), &none(), "", RSDP).unwrap();
    // mov dx, 0x602; mov al, 1; out dx, al; hlt; jmp -3
    let code = [0xBA, 0x02, 0x06, 0xB0, 0x01, 0xEE, 0xF4, 0xEB, 0xFD];
    assert_eq!(bytes_at(&memory, 0xF_FFF0, 9), code);
}

#[test]
fn an_initramfs_never_overlaps_the_kernel() {
    let memory = memory(64 * MIB);
    let room = (64 * MIB - KERNEL_END.0) as usize;
    let write = |len: usize| {
        write_boot_structures(&memory, &pvh(), &vec![7; len].into(), "", RSDP).map(|_| ())
    };
    write(room).unwrap();
    assert_eq!(u64_at(&memory, PVH_MODULES.0), KERNEL_END.0);
    for too_large in [room + 1, 64 * MIB as usize, 65 * MIB as usize] {
        let error = write(too_large).unwrap_err();
        assert!(
            matches!(error, BootError::InitramfsTooLarge { .. }),
            "{error:?}"
        );
    }
}

#[test]
fn an_initramfs_ends_where_the_image_wants() {
    let mut setup = setup_header();
    setup.initrd_address_max = 50 * MIB as u32 - 1;
    let memory = memory(64 * MIB);
    let kernel = linux64(Some(setup));
    write_boot_structures(&memory, &kernel, &[1; 0x1001].to_vec().into(), "", RSDP).unwrap();
    assert_eq!(u64::from(u32_at(&memory, 0x7218)), 50 * MIB - 0x2000);
}

#[test]
fn a_command_line_has_to_fit() {
    let memory = memory(64 * MIB);
    let write = |kernel: &LoadedKernel, line: &str| {
        write_boot_structures(&memory, kernel, &none(), line, RSDP).map(|_| ())
    };
    write(&pvh(), &"x".repeat(2047)).unwrap();
    let error = write(&pvh(), &"x".repeat(2048)).unwrap_err();
    assert!(matches!(
        error,
        BootError::CommandLineTooLong {
            length: 2048,
            max: 2047
        }
    ));
    let error = write(&pvh(), "a\0b").unwrap_err();
    assert!(matches!(error, BootError::CommandLineZero));

    let mut setup = setup_header();
    setup.command_line_max = 255;
    let error = write(&linux64(Some(setup)), &"x".repeat(256)).unwrap_err();
    assert!(matches!(
        error,
        BootError::CommandLineTooLong {
            length: 256,
            max: 255
        }
    ));
}

#[test]
fn a_command_line_ends_where_it_did_before() {
    let memory = memory(64 * MIB);
    for line in ["a longer one", "short"] {
        write_boot_structures(&memory, &pvh(), &none(), line, RSDP).unwrap();
        let bytes = bytes_at(&memory, COMMAND_LINE.0, line.len() + 1);
        assert_eq!(&bytes[..line.len()], line.as_bytes());
        assert_eq!(bytes.last(), Some(&0));
    }
}
