use super::super::layout::{ACPI_TABLES_SIZE, VIRTIO_DEVICE_MAX};
use super::*;

/// The tables of a guest with two processors, three virtio devices and a generation id. What is
/// in it was read with `iasl -d`, which compiles what it read without a complaint.
const GOLDEN: &[u8] = include_bytes!("golden.bin");

fn build_with(vcpus: u8, virtio_devices: usize, generation_id: bool) -> Vec<u8> {
    build(&AcpiConfig {
        vcpus,
        virtio_devices,
        generation_id,
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// The table at a guest physical address, with its checksum checked.
fn table(area: &[u8], address: u64) -> &[u8] {
    assert_eq!(address % 16, 0);
    let table = &area[(address - ACPI_TABLES.0) as usize..];
    let len = u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize;
    assert_eq!(sum(&table[..len]), 0, "checksum of {:?}", &table[..4]);
    &table[..len]
}

/// All tables, found as a kernel finds them.
struct Tables<'a> {
    fadt: &'a [u8],
    madt: &'a [u8],
    dsdt: &'a [u8],
}

fn walk(area: &[u8]) -> Tables<'_> {
    let rsdp = &area[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(rsdp[15], 2, "revision");
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(rsdp), 0);

    let xsdt = table(area, u64_at(rsdp, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let fadt = table(area, u64_at(xsdt, 36));
    let madt = table(area, u64_at(xsdt, 44));
    assert_eq!(xsdt.len(), 52);
    assert_eq!(&fadt[..4], b"FACP");
    assert_eq!(&madt[..4], b"APIC");
    let dsdt = table(area, u64_at(fadt, 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    Tables { fadt, madt, dsdt }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn every_table_is_found_and_sums_to_zero() {
    for vcpus in [1, 2, 32] {
        for devices in [0, 1, VIRTIO_DEVICE_MAX] {
            for generation_id in [false, true] {
                walk(&build_with(vcpus, devices, generation_id));
            }
        }
    }
}

#[test]
fn the_largest_guest_has_room_for_its_tables() {
    let largest = build_with(u8::MAX, VIRTIO_DEVICE_MAX, true);
    assert!(largest.len() as u64 <= ACPI_TABLES_SIZE);
    assert_eq!(
        largest,
        build_with(u8::MAX, usize::MAX, true),
        "there are no more devices"
    );
}

#[test]
fn the_tables_are_where_the_kernel_is_told() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let config = AcpiConfig {
        vcpus: 2,
        virtio_devices: 2,
        generation_id: true,
    };
    let rsdp = write_tables(&memory, &config).unwrap();
    let mut written = vec![0; build(&config).len()];
    memory.read_slice(&mut written, rsdp).unwrap();
    assert_eq!(written, build(&config));
}

#[test]
fn the_fixed_table_says_how_to_power_off_and_reset() {
    let area = build_with(1, 0, false);
    let fadt = walk(&area).fadt;
    assert_eq!(fadt.len(), 276);
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_ne!(flags & (1 << 20), 0, "HW_REDUCED_ACPI");
    assert_ne!(flags & (1 << 10), 0, "RESET_REG_SUP");
    // Generic address: I/O space, 8 bits, offset 0, byte access, then the address.
    let port = |port: u16| {
        let mut gas = vec![1, 8, 0, 1];
        gas.extend(u64::from(port).to_le_bytes());
        gas
    };
    assert_eq!(fadt[116..128], port(0x602));
    assert_eq!(fadt[128], 1);
    assert_eq!(fadt[244..256], port(0x600));
    assert_eq!(fadt[256..268], port(0x601));
    assert_eq!(fadt[109..111], 0x3Cu16.to_le_bytes(), "IA-PC boot flags");
}

#[test]
fn there_is_a_local_controller_for_every_processor() {
    for vcpus in [1, 4, 32] {
        let area = build_with(vcpus, 0, false);
        let madt = walk(&area).madt;
        assert_eq!(madt[36..40], 0xFEE0_0000u32.to_le_bytes());
        assert_eq!(madt[40..44], [0; 4], "no 8259s");
        let mut entries = &madt[44..];
        for index in 0..vcpus {
            assert_eq!(entries[..8], [0, 8, index, index, 1, 0, 0, 0]);
            entries = &entries[8..];
        }
        assert_eq!(entries, [1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]);
    }
}

#[test]
fn the_devices_are_those_of_the_guest() {
    let area = build_with(1, 3, false);
    let dsdt = walk(&area).dsdt;
    for index in 0..3 {
        assert!(contains(dsdt, format!("VR{index:02}").as_bytes()));
        let window = virtio_window(index).unwrap();
        assert!(contains(dsdt, &(window.address.0 as u32).to_le_bytes()));
    }
    assert!(!contains(dsdt, b"VR03"));
    assert!(!contains(dsdt, b"VGEN"));
    assert!(!contains(dsdt, b"ACPI0013"));
    let area = build_with(1, 3, true);
    let dsdt = walk(&area).dsdt;
    assert!(contains(dsdt, b"EMBR0001\0"));
    assert!(contains(dsdt, b"VM_Gen_Counter\0"));
    assert!(contains(dsdt, b"ACPI0013\0"));
}

/// Kernels act on every byte of this. A guest that was saved keeps the tables it was booted with, so
/// a change must leave alone what the monitor does for tables of the past.
#[test]
fn the_tables_are_byte_for_byte_what_they_were() {
    let tables = build_with(2, 3, true);
    if tables != GOLDEN {
        let path = std::env::temp_dir().join("ember-acpi.bin");
        std::fs::write(&path, &tables).unwrap();
        panic!(
            "the ACPI tables changed. If they should, read the new ones ({}; `iasl -d` on each \
             table), boot a guest with them, and make them the golden file",
            path.display()
        );
    }
}
