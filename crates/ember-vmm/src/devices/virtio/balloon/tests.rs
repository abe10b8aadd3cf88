use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_CONFIG;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::give_back::give_back;
use super::pages::{PAGE_SIZE, PageRange, coalesce, whole_pages};
use super::{BalloonConfig, BalloonDevice, BalloonHandle};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::chain::Buffer;
use crate::devices::virtio::testing::{BUFFERS, Driver, HIGH_END, HIGH_START, LOW_END};
use crate::memory::GuestMemory;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;

fn driver() -> (Driver<BalloonDevice>, BalloonHandle) {
    let (device, handle) = BalloonDevice::new(BalloonConfig::default()).unwrap();
    (Driver::new(device), handle)
}

/// The bytes of guest memory from `start` on that are backed by anything.
fn resident(memory: &GuestMemory, start: u64, length: u64) -> u64 {
    // /proc/self/pagemap: a word a page, whose highest bit says that the page is present.
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let host = memory.get_host_address(GuestAddress(start)).unwrap() as u64;
    (0..length / PAGE_SIZE)
        .filter(|page| {
            let mut word = [0; 8];
            pagemap
                .read_exact_at(&mut word, (host / PAGE_SIZE + page) * 8)
                .unwrap();
            u64::from_le_bytes(word) >> 63 == 1
        })
        .count() as u64
        * PAGE_SIZE
}

fn fill(driver: &Driver<BalloonDevice>, start: u64, pages: u64) {
    driver.write(start, &vec![0x77; (pages * PAGE_SIZE) as usize]);
    assert_eq!(
        resident(&driver.memory, start, pages * PAGE_SIZE),
        pages * PAGE_SIZE
    );
}

#[test]
fn pages_in_the_balloon_are_given_back() {
    let (mut driver, handle) = driver();
    let start = 4 << 20;
    fill(&driver, start, 16);
    // Backwards, as Linux does, and two that are not next to the others.
    let first = (start / PAGE_SIZE) as u32;
    let numbers = [first + 9, first + 7, first + 6, first + 5, first + 4, first];
    let bytes = numbers.map(u32::to_le_bytes);
    driver.write(BUFFERS, bytes.as_flattened());
    driver.add(INFLATE, &[(BUFFERS, 24)], &[]);
    driver.kick(INFLATE);
    assert_eq!(driver.used(INFLATE), [(0, 0)]);

    assert_eq!(
        resident(&driver.memory, start, 16 * PAGE_SIZE),
        10 * PAGE_SIZE
    );
    for page in 0..16 {
        let expected = if numbers.contains(&(first + page)) {
            0
        } else {
            0x77
        };
        let content = driver.read(start + u64::from(page) * PAGE_SIZE, PAGE_SIZE as usize);
        assert!(content.iter().all(|&byte| byte == expected), "page {page}");
    }
    assert_eq!(
        handle.reported(),
        0,
        "these were not reported but asked for"
    );
}

#[test]
fn deflating_gives_the_request_back() {
    let (mut driver, _handle) = driver();
    fill(&driver, 4 << 20, 1);
    driver.write(BUFFERS, &((4u32 << 20) / 4096).to_le_bytes());
    driver.add(DEFLATE, &[(BUFFERS, 4)], &[]);
    driver.kick(DEFLATE);
    assert_eq!(driver.used(DEFLATE), [(0, 0)]);
    assert_eq!(driver.read(4 << 20, 1), [0x77]);
}

#[test]
fn page_numbers_outside_memory_do_nothing() {
    let (mut driver, _handle) = driver();
    let page = |address: u64| (address / PAGE_SIZE) as u32;
    fill(&driver, LOW_END - PAGE_SIZE, 1);
    fill(&driver, HIGH_END - PAGE_SIZE, 1);
    fill(&driver, 4 << 20, 1);
    // The second and third are a range that begins in memory and ends outside.
    let numbers = [
        u32::MAX,
        page(LOW_END) - 1,
        page(LOW_END),
        page(HIGH_END),
        page(HIGH_START) - 1,
        1024,
    ];
    driver.write(BUFFERS, numbers.map(u32::to_le_bytes).as_flattened());
    driver.add(INFLATE, &[(BUFFERS, 24)], &[]);
    driver.kick(INFLATE);
    assert_eq!(driver.used(INFLATE).len(), 1);
    assert_eq!(driver.read(4 << 20, 1), [0], "a good page among bad ones");
    assert_eq!(driver.read(HIGH_END - PAGE_SIZE, 1), [0x77]);
}

#[test]
fn a_request_is_bounded() {
    let (mut driver, _handle) = driver();
    // A quarter of a gigabyte of page numbers, made of the same buffer over and over.
    driver.add(INFLATE, &[(0, LOW_END as u32); 16], &[]);
    driver.kick(INFLATE);
    assert!(driver.used(INFLATE).is_empty());
}

#[test]
fn reported_memory_is_given_back_and_counted() {
    let (mut driver, handle) = driver();
    fill(&driver, 2 << 20, 1024);
    fill(&driver, HIGH_START, 8);
    let buffers = [(2 << 20, 2 << 20), (HIGH_START, 8 << 12)];
    driver.add(REPORTING, &[], &buffers);
    driver.kick(REPORTING);
    assert_eq!(driver.used(REPORTING), [(0, 0)]);
    assert_eq!(handle.reported(), (2 << 20) + (8 << 12));
    assert_eq!(resident(&driver.memory, 2 << 20, 4 << 20), 2 << 20);
    assert_eq!(resident(&driver.memory, HIGH_START, 8 << 12), 0);
    // What was not reported is as it was.
    assert_eq!(driver.read(4 << 20, 4096), [0x77; 4096]);
}

#[test]
fn only_whole_reported_pages_are_given_back() {
    let (mut driver, handle) = driver();
    fill(&driver, 4 << 20, 4);
    // From the middle of the first page to the middle of the last; within a page; outside memory.
    let buffers = [
        ((4 << 20) + 100, 3 * 4096),
        ((4 << 20) + 1, 4095),
        (LOW_END - 4096, 8192),
        (u64::MAX - 4095, 4096),
        (u64::MAX, u32::MAX / 2),
    ];
    driver.add(REPORTING, &[], &buffers);
    driver.kick(REPORTING);
    assert_eq!(driver.used(REPORTING).len(), 1);
    assert_eq!(handle.reported(), 2 * 4096);
    let content = driver.read(4 << 20, 4 * 4096);
    assert!(
        content[..4096]
            .iter()
            .chain(&content[3 * 4096..])
            .all(|&byte| byte == 0x77)
    );
    assert!(content[4096..3 * 4096].iter().all(|&byte| byte == 0));
}

#[test]
fn the_target_reaches_the_guest_and_its_answer_the_host() {
    let (mut driver, handle) = driver();
    let read = |driver: &Driver<BalloonDevice>, offset| {
        let mut bytes = [0; 4];
        driver.device.read_config(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    assert_eq!(read(&driver, 0), 0);
    driver.interrupts();
    handle.set_target((5 << 20) + 4095);
    driver.run();
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(read(&driver, 0), 5 << 8);
    handle.set_target(u64::MAX);
    assert_eq!(read(&driver, 0), u32::MAX);

    driver.device.write_config(4, &(3u32 << 8).to_le_bytes());
    assert_eq!(handle.actual(), 3 << 20);
    // The target is not the guest's to write, and neither is what follows.
    driver.device.write_config(0, &[0; 4]);
    driver.device.write_config(4, &[0; 2]);
    driver.device.write_config(5, &[0; 4]);
    driver.device.write_config(u64::MAX, &[0; 4]);
    assert_eq!(read(&driver, 0), u32::MAX);
    assert_eq!(handle.actual(), 3 << 20);

    driver.device.reset();
    assert_eq!(handle.actual(), 0);
}

#[test]
fn a_handle_outlives_its_device() {
    let (driver, handle) = driver();
    drop(driver);
    handle.set_target(1 << 20);
    assert_eq!(handle.actual(), 0);
}

#[test]
fn queues_and_features_follow_the_configuration() {
    let config = BalloonConfig {
        free_page_reporting: false,
        deflate_on_oom: false,
    };
    let (device, _handle) = BalloonDevice::new(config).unwrap();
    assert_eq!(device.queue_max_sizes().len(), 2);
    assert_eq!(device.features() & 0xff, 0);
    let (device, _handle) = BalloonDevice::new(BalloonConfig::default()).unwrap();
    assert_eq!(device.queue_max_sizes().len(), 3);
    assert_eq!(device.features() & 0xff, 1 << 2 | 1 << 5);
}

#[test]
fn the_reporting_queue_need_not_be_ready() {
    let (device, _handle) = BalloonDevice::new(BalloonConfig::default()).unwrap();
    let mut driver = Driver::attached(device);
    driver.activate(0, 0b011).unwrap();
    driver.run();
    driver.add(REPORTING, &[], &[(2 << 20, 2 << 20)]);
    driver.kick(REPORTING);
    assert!(driver.used(REPORTING).is_empty());
    driver.device.reset();
    assert!(driver.activate(0, 0b101).is_err());
}

#[test]
fn memory_of_a_private_file_is_the_files_again() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![0x11; 1 << 16], 0).unwrap();
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    let region = vm_memory::MmapRegion::build(
        Some(offset),
        1 << 16,
        nix::libc::PROT_READ | nix::libc::PROT_WRITE,
        nix::libc::MAP_PRIVATE | nix::libc::MAP_NORESERVE,
    )
    .unwrap();
    let region = vm_memory::GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
    memory
        .write_slice(&[0x22; 1 << 13], GuestAddress(0x2000))
        .unwrap();

    give_back(
        &memory,
        PageRange {
            start: GuestAddress(0x1000),
            length: 0x2000,
        },
    )
    .unwrap();
    let mut content = vec![0; 0x5000];
    memory.read_slice(&mut content, GuestAddress(0)).unwrap();
    assert_eq!(content[..0x1000], [0x11; 0x1000]);
    assert_eq!(content[0x1000..0x3000], [0x11; 0x2000]);
    assert_eq!(content[0x3000..0x4000], [0x22; 0x1000]);
    assert_eq!(content[0x4000..], [0x11; 0x1000]);
    // It is memory like any other, and the file is as it was.
    memory
        .write_slice(&[0x33; 0x1000], GuestAddress(0x1000))
        .unwrap();
    let mut content = vec![0; 0x5000];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, vec![0x11; 0x5000]);
}

proptest! {
    #[test]
    fn coalesced_ranges_are_the_same_pages(
        numbers in prop::collection::vec(prop_oneof![0u32..40, u32::MAX - 3..=u32::MAX], 0..60),
    ) {
        let mut sorted = numbers.clone();
        let ranges: Vec<PageRange> = coalesce(&mut sorted).collect();
        let mut pages = Vec::new();
        for range in &ranges {
            prop_assert_eq!(range.start.0 % PAGE_SIZE, 0);
            let first = range.start.0 / PAGE_SIZE;
            pages.extend(first..first + range.length / PAGE_SIZE);
        }
        let mut expected: Vec<u64> = numbers.iter().map(|&number| u64::from(number)).collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(pages, expected);
        // No two of them could be one.
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].start.0 + pair[0].length < pair[1].start.0);
        }
    }

    #[test]
    fn whole_pages_lie_within_their_buffer(address: u64, length: u32) {
        let buffer = Buffer { address: GuestAddress(address), length };
        if let Some(range) = whole_pages(buffer) {
            prop_assert!(range.start.0 >= address);
            prop_assert!(range.start.0 + range.length <= address + u64::from(length));
            prop_assert_eq!(range.start.0 % PAGE_SIZE, 0);
            prop_assert_eq!(range.length % PAGE_SIZE, 0);
        }
    }
}
