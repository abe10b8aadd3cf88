//! Finding out what was touched, and touching it ahead.

use ember_snapshot::memory::{MemoryBuilder, MemoryError};
use ember_snapshot::pager::{WorkingSet, changed_pages, copy_ahead, map_ahead, touched_pages};

use crate::mapping::{Mapping, PAGE};
use crate::{bytes, content, image, set};

#[test]
fn what_was_written_to_is_changed() {
    let image = image(1000);
    let memory = Mapping::private(image.file(), 1000);
    let guest = memory.guest();
    assert!(changed_pages(&guest).unwrap().is_empty());
    for page in [3, 4, 5, 700, 999] {
        memory.set(page, 9, 1);
    }
    assert_eq!(memory.get(20, 0), content(20, 0));
    assert_eq!(
        changed_pages(&guest).unwrap(),
        set(&[(3, 3), (700, 1), (999, 1)])
    );
    let touched = touched_pages(&guest).unwrap();
    assert_eq!(touched.written, set(&[(3, 3), (700, 1), (999, 1)]));
    assert!(touched.read.contains(20));
    assert!(!touched.read.contains(300));
    // Written to by the kernel.
    memory.read_into(42, image.file()).unwrap();
    assert!(changed_pages(&guest).unwrap().contains(42));
}

#[test]
fn memory_that_is_scattered_is_found_by_its_offsets() {
    let memory = Mapping::anonymous(100);
    let guest = memory.segments(&[(50, 10), (10, 5)]);
    memory.set(50, 0, 1);
    memory.set(59, 0, 1);
    memory.set(12, 0, 1);
    memory.set(30, 0, 1);
    assert_eq!(guest.pages(), set(&[(0, 10), (11, 5)]));
    assert_eq!(
        changed_pages(&guest).unwrap(),
        set(&[(0, 1), (9, 1), (13, 1)])
    );
}

#[test]
fn more_runs_than_one_call_gives() {
    let memory = Mapping::anonymous(10_000);
    for page in (0..10_000).step_by(3) {
        memory.set(page, 0, 1);
    }
    let changed = changed_pages(&memory.guest()).unwrap();
    assert_eq!(changed.runs().len(), 3334);
    assert_eq!(changed.pages(), 3334);
}

#[test]
fn zeroes_that_were_only_read_are_not_changed() {
    let memory = Mapping::anonymous(10);
    assert_eq!(memory.get(4, 0), 0);
    memory.set(6, 0, 1);
    assert_eq!(changed_pages(&memory.guest()).unwrap(), set(&[(6, 1)]));
}

#[test]
fn a_working_set_is_mapped_ahead() {
    let image = image(1000);
    let first = Mapping::private(image.file(), 1000);
    for page in [3, 4, 5, 700] {
        first.set(page, 9, 1);
    }
    let _ = first.get(300, 0);
    let recorded = touched_pages(&first.guest()).unwrap();
    let recorded = WorkingSet::decode(&recorded.encode()).unwrap();

    let second = Mapping::private(image.file(), 1000);
    copy_ahead(&second.guest(), &recorded.written).unwrap();
    map_ahead(&second.guest(), &recorded.read).unwrap();
    let there = touched_pages(&second.guest()).unwrap();
    assert_eq!(there.written, recorded.written);
    assert!(there.read.contains(300));
    // Only their place has changed, not their content.
    for page in [3, 700, 300] {
        assert_eq!(second.get(page, 9), content(page, 9));
    }
}

#[test]
fn an_image_in_huge_pages_has_the_same_content() {
    // Something in the first, nothing in the second, one page in the third, and a rest.
    const PAGES: usize = 4 * 512 + 100;
    let mut builder = MemoryBuilder::new((PAGES * PAGE) as u64).unwrap();
    builder.write(0, &bytes(300)).unwrap();
    for page in [1100, PAGES - 1] {
        builder.write((page * PAGE) as u64, &[7; PAGE]).unwrap();
    }
    let image = builder.seal().unwrap();
    let hash = image.hash().unwrap();
    let small = image.allocated_bytes().unwrap();
    assert_eq!(small, 302 * PAGE as u64);
    let huge = match image.use_huge_pages() {
        Ok(huge) => huge,
        // A kernel without says so, and has done no harm.
        Err(error) => {
            assert!(matches!(error, MemoryError::NoHugePages(_)), "{error}");
            assert!(error.to_string().contains("shmem_enabled"), "{error}");
            println!(
                "no huge pages here: {}",
                std::error::Error::source(&error).unwrap()
            );
            assert!(std::env::var_os("EMBER_LAB").is_none(), "the lab has them");
            assert_eq!(image.compute_hash().unwrap(), hash);
            return;
        }
    };
    assert_eq!(huge, 4 << 20);
    assert_eq!(image.allocated_bytes().unwrap(), (4 << 20) + PAGE as u64);
    assert_eq!(image.compute_hash().unwrap(), hash);
    // A clone copies small pages.
    let memory = Mapping::private(image.file(), PAGES);
    memory.set(5, 1, 9);
    assert_eq!(changed_pages(&memory.guest()).unwrap(), set(&[(5, 1)]));
    assert_eq!(memory.get(299, 1), content(299, 1));
    assert_eq!(image.compute_hash().unwrap(), hash);
}
