use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn ram(map: &[MemoryMapEntry]) -> Vec<(u64, u64)> {
    map.iter()
        .filter(|e| e.kind == MemoryKind::Ram)
        .map(|e| (e.start, e.start + e.len))
        .collect()
}

#[test]
fn memory_below_the_hole_is_one_range() {
    assert_eq!(memory_ranges(64 * MIB), [(GuestAddress(0), 64 * MIB)]);
    assert_eq!(ram(&memory_map(64 * MIB)), [(0, 0xA_0000), (MIB, 64 * MIB)]);
}

#[test]
fn memory_that_just_reaches_the_hole_is_still_one_range() {
    assert_eq!(memory_ranges(HOLE_START), [(GuestAddress(0), HOLE_START)]);
    assert_eq!(
        ram(&memory_map(HOLE_START)),
        [(0, 0xA_0000), (MIB, HOLE_START)]
    );
}

#[test]
fn one_page_more_goes_above_the_hole() {
    let bytes = HOLE_START + PAGE_SIZE;
    let ranges = [
        (GuestAddress(0), HOLE_START),
        (GuestAddress(4 * GIB), PAGE_SIZE),
    ];
    assert_eq!(memory_ranges(bytes), ranges);
    assert_eq!(
        ram(&memory_map(bytes)),
        [
            (0, 0xA_0000),
            (MIB, HOLE_START),
            (4 * GIB, 4 * GIB + PAGE_SIZE)
        ]
    );
}

#[test]
fn no_byte_of_a_large_memory_is_lost() {
    for bytes in [4 * GIB, 5 * GIB + 12 * MIB, 512 * GIB] {
        let ranges = memory_ranges(bytes);
        assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), bytes);
        assert_eq!(ranges[1].0, GuestAddress(HOLE_END));
    }
}

#[test]
fn the_map_is_sorted_without_overlaps_and_hides_what_is_reserved() {
    for bytes in [64 * MIB, HOLE_START - PAGE_SIZE, HOLE_START, 8 * GIB] {
        let map = memory_map(bytes);
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].len <= pair[1].start, "{pair:?}");
        }
        for address in [
            GENERATION_ID.0,
            ACPI_TABLES.0,
            ACPI_TABLES.0 + ACPI_TABLES_SIZE - 1,
        ] {
            let of = map
                .iter()
                .find(|e| (e.start..e.start + e.len).contains(&address));
            assert_eq!(of.map(|e| e.kind), Some(MemoryKind::Reserved));
        }
        let total: u64 = map.iter().map(|e| e.len).sum();
        assert_eq!(
            total, bytes,
            "every byte of memory is in the map, as RAM or reserved"
        );
    }
}

#[test]
fn boot_structures_do_not_touch_each_other() {
    let areas = [
        (GDT.0, IDT.0 - GDT.0),
        (IDT.0, 8),
        (PVH_START_INFO.0, 56),
        (PVH_MODULES.0, 32),
        // As many entries as the memory map can have, 24 bytes each, with room to spare.
        (PVH_MEMORY_MAP.0, 8 * 24),
        (ZERO_PAGE.0, PAGE_SIZE),
        (PAGE_TABLES.0, PAGE_TABLE_PAGES * PAGE_SIZE),
        (BOOT_STACK_END.0 - PAGE_SIZE, PAGE_SIZE),
        (COMMAND_LINE.0, COMMAND_LINE_MAX as u64),
        (GENERATION_ID.0, PAGE_SIZE),
        (ACPI_TABLES.0, ACPI_TABLES_SIZE),
        (RESET_VECTOR.0, HIGH_RAM_START - RESET_VECTOR.0),
    ];
    for pair in areas.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
    }
    assert!(COMMAND_LINE.0 + COMMAND_LINE_MAX as u64 <= LOW_RAM_END);
    assert_eq!(PAGE_TABLES.0 % PAGE_SIZE, 0);
}

#[test]
fn devices_have_a_window_and_a_line_of_their_own() {
    let windows: Vec<_> = (0..VIRTIO_DEVICE_MAX)
        .map(|i| virtio_window(i).unwrap())
        .collect();
    for (index, window) in windows.iter().enumerate() {
        assert_eq!(window.address.0, 0xD000_0000 + index as u64 * 0x1000);
        assert!(window.address.0 + VIRTIO_MMIO_SIZE <= IOAPIC);
        assert!(window.gsi < 24, "the IOAPIC of KVM has 24 pins");
        assert!(![SERIAL_GSI, GENERATION_ID_GSI, 0, 8].contains(&window.gsi));
        assert_eq!(windows.iter().filter(|w| w.gsi == window.gsi).count(), 1);
    }
    assert_eq!(virtio_window(VIRTIO_DEVICE_MAX), None);
}

#[test]
fn pages_of_kvm_are_apart_from_everything_else() {
    let areas = [
        (IOAPIC, 0x1000),
        (LAPIC, 0x1000),
        (KVM_IDENTITY_MAP, PAGE_SIZE),
        (KVM_TSS, 3 * PAGE_SIZE),
        (HOLE_END, 0),
    ];
    for pair in areas.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
    }
}

#[test]
fn the_power_off_value_is_the_one_linux_writes() {
    // acpi_hw_extended_sleep(): (sleep_type << ACPI_X_SLEEP_TYPE_POSITION) | ACPI_X_SLEEP_ENABLE
    assert_eq!(SLEEP_CONTROL_S5, 0x34);
}
