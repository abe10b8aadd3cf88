use super::*;
use mapping::Mapping;

// The tests of the pager have it, and see the crate from outside.
#[path = "../../../tests/kvm_pager/mapping.rs"]
#[allow(dead_code, unreachable_pub, reason = "half of it is enough here")]
mod mapping;

#[test]
fn a_kernel_that_cannot_scan_gives_the_same_answer() {
    let mut builder = crate::memory::MemoryBuilder::new(600 * PAGE_SIZE).unwrap();
    builder.write(0, &vec![1; 600 * 4096]).unwrap();
    let image = builder.seal().unwrap();
    let memory = Mapping::private(image.file(), 600);
    for page in (0..600).step_by(7).chain(100..130) {
        memory.set(page, 0, 5);
    }
    let _ = memory.get(550, 0);
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let guest = memory.guest();
    assert!(find(&guest, CHANGED_SWAPPED).unwrap().is_empty());
    for wanted in [CHANGED, CHANGED_PRESENT, READ] {
        let entries = read_entries(&pagemap, &guest, wanted).unwrap();
        assert!(!entries.is_empty());
        assert_eq!(find(&guest, wanted).unwrap(), entries);
    }
}

#[test]
fn entries_of_the_page_map_are_told_apart() {
    assert!(matches(PRESENT, CHANGED));
    assert!(matches(SWAPPED, CHANGED));
    assert!(!matches(PRESENT | FILE, CHANGED));
    assert!(!matches(0, CHANGED));
    assert!(matches(PRESENT | PROTECTED, CHANGED_PRESENT));
    assert!(!matches(SWAPPED, CHANGED_PRESENT));
    assert!(matches(SWAPPED, CHANGED_SWAPPED));
    assert!(!matches(SWAPPED | PROTECTED, CHANGED_SWAPPED));
    assert!(!matches(SWAPPED | FILE, CHANGED_SWAPPED));
    assert!(matches(PRESENT | FILE, READ));
    assert!(!matches(PRESENT, READ));
    assert!(!matches(FILE, READ));
}

#[test]
fn all_ways_to_swap_out_are_counted() {
    let counters = "pswpin 7\npswpout 1\nthp_swpout 20\nzswpout 300\nnr_zone 5\n";
    assert_eq!(swapped_out_in(counters), Some(321));
    assert_eq!(swapped_out_in("pswpin 7\n"), None);
    assert_eq!(swapped_out_in("pswpout many\n"), None);
    // This machine has the counter, or every copy would be a full one.
    assert!(swapped_out().is_some());
}
