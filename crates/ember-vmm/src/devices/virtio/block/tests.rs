use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;

use super::request::{Disk, Request, Status};
use super::{BlockConfig, BlockDevice};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::testing::{BUFFERS, Driver, HIGH_END, HIGH_START, LOW_END};

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What the status byte holds before the device writes it.
const UNTOUCHED: u8 = 0xee;

/// A file of `sectors` sectors, each filled with its number plus one.
fn image(sectors: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..sectors {
        file.write_all(&[(sector + 1) as u8; 512]).unwrap();
    }
    file
}

fn read_write(file: &File) -> Driver<BlockDevice> {
    let config = BlockConfig::read_write(file.try_clone().unwrap());
    Driver::new(BlockDevice::new(config).unwrap())
}

fn read_only(file: &File) -> Driver<BlockDevice> {
    let config = BlockConfig::read_only(file.try_clone().unwrap());
    Driver::new(BlockDevice::new(config).unwrap())
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// Does one request with `readable` and `writable` data buffers. Returns the status byte and the
/// bytes written according to the used ring.
fn request(
    driver: &mut Driver<BlockDevice>,
    kind: u32,
    sector: u64,
    readable: &[(u64, u32)],
    writable: &[(u64, u32)],
) -> (u8, u32) {
    driver.write(HEADER, &header(kind, sector));
    driver.write(STATUS, &[UNTOUCHED]);
    let readable = [&[(HEADER, 16)], readable].concat();
    let writable = [writable, &[(STATUS, 1)]].concat();
    let head = driver.add(0, &readable, &writable);
    driver.kick(0);
    let used = driver.used(0);
    assert_eq!(used.len(), 1, "one request, one answer");
    assert_eq!(used[0].0, head);
    (driver.read(STATUS, 1)[0], used[0].1)
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn reads_what_the_file_holds_into_scattered_buffers() {
    let mut driver = read_only(&image(16));
    // The first buffer ends exactly where low memory does, the second starts above the hole.
    let buffers = [(LOW_END - 700, 700), (HIGH_START, 1), (DATA, 835)];
    assert_eq!(
        request(&mut driver, IN, 2, &[], &buffers),
        (OK, 3 * 512 + 1)
    );
    let read = [
        driver.read(LOW_END - 700, 700),
        driver.read(HIGH_START, 1),
        driver.read(DATA, 835),
    ]
    .concat();
    let expected = [[3; 512], [4; 512], [5; 512]].concat();
    assert_eq!(read, expected);
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_VRING);
}

#[test]
fn writes_scattered_buffers_to_the_file() {
    let file = image(16);
    let mut driver = read_write(&file);
    driver.write(DATA, &[0xaa; 100]);
    driver.write(HIGH_END - 924, &[0xbb; 924]);
    let buffers = [(DATA, 100), (HIGH_END - 924, 924)];
    assert_eq!(request(&mut driver, OUT, 14, &buffers, &[]), (OK, 1));
    let mut written = [0; 1024];
    file.read_exact_at(&mut written, 14 * 512).unwrap();
    assert_eq!(written[..100], [0xaa; 100]);
    assert_eq!(written[100..], [0xbb; 924]);
    assert_eq!(file.metadata().unwrap().len(), 16 * 512);
}

#[test]
fn the_framing_of_a_request_carries_no_meaning() {
    // Header and data share a buffer that is split in the middle of the header; data and status
    // share another.
    let file = image(4);
    let mut driver = read_write(&file);
    driver.write(DATA, &header(OUT, 1));
    driver.write(DATA + 16, &[7; 512]);
    driver.add(0, &[(DATA, 5), (DATA + 5, 11 + 512)], &[(STATUS, 1)]);
    driver.kick(0);
    assert_eq!(driver.used(0).len(), 1);
    assert_eq!(driver.read(STATUS, 1), [OK]);
    let mut written = [0; 512];
    file.read_exact_at(&mut written, 512).unwrap();
    assert_eq!(written, [7; 512]);

    driver.write(HEADER, &header(IN, 1));
    driver.add(0, &[(HEADER, 16)], &[(DATA, 513)]);
    driver.kick(0);
    assert_eq!(driver.used(0)[0].1, 513);
    assert_eq!(driver.read(DATA, 513), [&[7; 512][..], &[OK]].concat());
}

#[test]
fn a_shared_descriptor_keeps_its_position() {
    let mut file = image(8);
    file.seek(SeekFrom::Start(5)).unwrap();
    let mut one = read_only(&file);
    let mut other = read_only(&file);
    for driver in [&mut one, &mut other] {
        assert_eq!(request(driver, IN, 7, &[], &[(DATA, 512)]), (OK, 513));
        assert_eq!(driver.read(DATA, 512), [8; 512]);
    }
    assert_eq!(file.stream_position().unwrap(), 5);
}

#[test]
fn refuses_what_is_not_on_the_disk() {
    let file = image(8);
    let mut driver = read_write(&file);
    for sector in [7, 8, u64::MAX, u64::MAX / 512, 1 << 55] {
        assert_eq!(
            request(&mut driver, IN, sector, &[], &[(DATA, 1024)]),
            (IO_ERROR, 1)
        );
        assert_eq!(
            request(&mut driver, OUT, sector, &[(DATA, 1024)], &[]),
            (IO_ERROR, 1)
        );
    }
    assert_eq!(file.metadata().unwrap().len(), 8 * 512);
    // Not whole sectors.
    assert_eq!(request(&mut driver, IN, 0, &[], &[(DATA, 511)]).0, IO_ERROR);
    assert_eq!(
        request(&mut driver, OUT, 0, &[(DATA, 513)], &[]).0,
        IO_ERROR
    );
    // The last sector is on it, and so is nothing at its end.
    assert_eq!(request(&mut driver, IN, 7, &[], &[(DATA, 512)]).0, OK);
    assert_eq!(request(&mut driver, IN, 8, &[], &[]).0, OK);
}

#[test]
fn a_request_is_bounded() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 30).unwrap();
    let mut driver = read_write(&file);
    let most = [(0, 1 << 20); 64];
    assert_eq!(request(&mut driver, OUT, 0, &most, &[]), (OK, 1));
    let more = [&most[..], &[(0, 512)]].concat();
    assert_eq!(request(&mut driver, OUT, 0, &more, &[]), (IO_ERROR, 1));
    assert_eq!(request(&mut driver, IN, 0, &[], &more), (IO_ERROR, 1));
}

#[test]
fn a_buffer_outside_memory_is_an_io_error() {
    let file = image(8);
    let mut driver = read_write(&file);
    for address in [
        LOW_END,
        LOW_END - 1,
        HIGH_END - 511,
        u64::MAX,
        u64::MAX - 511,
    ] {
        assert_eq!(
            request(&mut driver, IN, 0, &[], &[(address, 512)]).0,
            IO_ERROR
        );
        assert_eq!(
            request(&mut driver, OUT, 0, &[(address, 512)], &[]).0,
            IO_ERROR
        );
        let expected = if address == HIGH_END - 511 {
            OK
        } else {
            IO_ERROR
        };
        assert_eq!(
            request(&mut driver, GET_ID, 0, &[], &[(address, 20)]).0,
            expected
        );
    }
    assert_eq!(request(&mut driver, IN, 0, &[], &[(DATA, 512)]), (OK, 513));
    assert_eq!(
        driver.read(DATA, 512),
        [1; 512],
        "a failed write changed the disk"
    );
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let file = image(8);
    let mut driver = read_only(&file);
    let features = driver.device.features();
    assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(
        features & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES),
        0
    );
    driver.write(DATA, &range(0, 8, 0));
    assert_eq!(
        request(&mut driver, OUT, 0, &[(DATA, 512)], &[]).0,
        IO_ERROR
    );
    assert_eq!(
        request(&mut driver, DISCARD, 0, &[(DATA, 16)], &[]).0,
        IO_ERROR
    );
    assert_eq!(
        request(&mut driver, WRITE_ZEROES, 0, &[(DATA, 16)], &[]).0,
        IO_ERROR
    );
    assert_eq!(request(&mut driver, FLUSH, 0, &[], &[]).0, OK);
    let mut content = [0; 512];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, [1; 512]);
}

#[test]
fn tells_its_serial_number() {
    let mut config = BlockConfig::read_only(image(1));
    config.serial = "ember-root".to_owned();
    let mut driver = Driver::new(BlockDevice::new(config).unwrap());
    assert_eq!(
        request(&mut driver, GET_ID, 0, &[], &[(DATA, 20)]),
        (OK, 21)
    );
    assert_eq!(driver.read(DATA, 20), *b"ember-root\0\0\0\0\0\0\0\0\0\0");
    // No room for it.
    assert_eq!(
        request(&mut driver, GET_ID, 0, &[], &[(DATA, 19)]),
        (IO_ERROR, 1)
    );
}

#[test]
fn flushes_and_refuses_what_it_does_not_know() {
    let mut driver = read_write(&image(1));
    assert_eq!(request(&mut driver, FLUSH, 0, &[], &[]), (OK, 1));
    for kind in [2, 3, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(request(&mut driver, kind, 0, &[], &[]), (UNSUPPORTED, 1));
    }
}

#[test]
fn discards_by_punching_holes() {
    let file = image(0);
    file.set_len(0).unwrap();
    (&file).write_all(&vec![0x5a; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    let mut driver = read_write(&file);
    driver.write(DATA, &range(8, 1024, 0));
    driver.write(DATA + 16, &range(2040, 8, 0));
    assert_eq!(
        request(&mut driver, DISCARD, 0, &[(DATA, 32)], &[]),
        (OK, 1)
    );
    assert!(
        file.metadata().unwrap().blocks() < before,
        "no space was given back"
    );
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    let mut content = vec![0; 1 << 20];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content[..8 * 512].iter().all(|&byte| byte == 0x5a));
    assert!(content[8 * 512..1032 * 512].iter().all(|&byte| byte == 0));
    assert!(
        content[1032 * 512..2040 * 512]
            .iter()
            .all(|&byte| byte == 0x5a)
    );
}

#[test]
fn zeroes_exactly_what_is_asked_for() {
    for unmap in [0, 1] {
        let file = image(64);
        let mut driver = read_write(&file);
        driver.write(DATA, &range(3, 50, unmap));
        assert_eq!(
            request(&mut driver, WRITE_ZEROES, 0, &[(DATA, 16)], &[]),
            (OK, 1)
        );
        let mut content = vec![0xff; 64 * 512];
        file.read_exact_at(&mut content, 0).unwrap();
        for (sector, bytes) in content.chunks(512).enumerate() {
            let expected = if (3..53).contains(&sector) {
                0
            } else {
                sector as u8 + 1
            };
            assert!(
                bytes.iter().all(|&byte| byte == expected),
                "sector {sector}, unmap {unmap}"
            );
        }
        assert_eq!(file.metadata().unwrap().len(), 64 * 512);
    }
}

#[test]
fn zeroes_where_the_file_system_has_no_help() {
    // A memory file can have holes but not zeroed ranges: without leave to unmap, zeroes are
    // written.
    let file = File::from(
        nix::sys::memfd::memfd_create("disk", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap(),
    );
    file.write_all_at(&vec![9; 1 << 20], 0).unwrap();
    let mut driver = read_write(&file);
    driver.write(DATA, &range(1, 2046, 0));
    assert_eq!(
        request(&mut driver, WRITE_ZEROES, 0, &[(DATA, 16)], &[]),
        (OK, 1)
    );
    let mut content = vec![0; 1 << 20];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(
        content[..512]
            .iter()
            .chain(&content[2047 * 512..])
            .all(|&byte| byte == 9)
    );
    assert!(content[512..2047 * 512].iter().all(|&byte| byte == 0));
    // What was written stays allocated.
    assert_eq!(file.metadata().unwrap().blocks(), 2048);
}

#[test]
fn refuses_malformed_ranges() {
    let mut driver = read_write(&image(64));
    let cases: [(u32, Vec<u8>, u8); 10] = [
        (DISCARD, range(0, 8, 1), UNSUPPORTED),
        (DISCARD, range(0, 8, 1 << 31), UNSUPPORTED),
        (WRITE_ZEROES, range(0, 8, 2), UNSUPPORTED),
        (DISCARD, range(63, 2, 0), IO_ERROR),
        (DISCARD, range(u64::MAX, 2, 0), IO_ERROR),
        (DISCARD, range(0, u32::MAX, 0), IO_ERROR),
        (WRITE_ZEROES, range(0, 1 << 16, 0), IO_ERROR),
        (
            WRITE_ZEROES,
            [range(0, 1, 0), range(1, 1, 0)].concat(),
            IO_ERROR,
        ),
        (DISCARD, vec![0; 33 * 16], IO_ERROR),
        (DISCARD, vec![0; 15], IO_ERROR),
    ];
    for (kind, data, expected) in cases {
        driver.write(DATA, &data);
        let buffers = [(DATA, data.len() as u32)];
        assert_eq!(
            request(&mut driver, kind, 0, &buffers, &[]).0,
            expected,
            "{kind} {data:?}"
        );
    }
    assert_eq!(request(&mut driver, DISCARD, 0, &[], &[]).0, IO_ERROR);
    // Nothing at all is fine.
    driver.write(DATA, &range(64, 0, 0));
    assert_eq!(request(&mut driver, DISCARD, 0, &[(DATA, 16)], &[]).0, OK);
}

#[test]
fn a_short_header_is_an_io_error() {
    let mut driver = read_write(&image(1));
    driver.write(STATUS, &[UNTOUCHED]);
    driver.add(0, &[(HEADER, 15)], &[(STATUS, 1)]);
    driver.add(0, &[], &[(STATUS + 1, 1)]);
    driver.kick(0);
    assert_eq!(driver.used(0).len(), 2);
    assert_eq!(driver.read(STATUS, 2), [IO_ERROR; 2]);
}

#[test]
fn a_request_without_a_status_stops_the_device_until_reset() {
    let mut driver = read_write(&image(1));
    driver.add(0, &[(HEADER, 16)], &[]);
    driver.kick(0);
    assert!(driver.used(0).is_empty());
    driver.add(0, &[(HEADER, 16)], &[(STATUS, 1)]);
    driver.kick(0);
    assert!(driver.used(0).is_empty(), "a broken device went on");

    driver.device.reset();
    let features = driver.device.features();
    driver.activate(features, u32::MAX).unwrap();
    assert_eq!(request(&mut driver, FLUSH, 0, &[], &[]).0, OK);
}

#[test]
fn requests_from_before_activation_are_served() {
    let mut driver = Driver::attached(BlockDevice::new(BlockConfig::read_only(image(1))).unwrap());
    let features = driver.device.features();
    driver.activate(features, u32::MAX).unwrap();
    driver.write(HEADER, &header(IN, 0));
    driver.add(0, &[(HEADER, 16)], &[(DATA, 512), (STATUS, 1)]);
    // No doorbell.
    driver.run();
    assert_eq!(driver.used(0), [(0, 513)]);
}

#[test]
fn activation_needs_the_queue() {
    let mut driver = Driver::attached(BlockDevice::new(BlockConfig::read_only(image(1))).unwrap());
    assert!(driver.activate(0, 0).is_err());
}

#[test]
fn the_configuration_space_describes_the_disk() {
    let device = BlockDevice::new(BlockConfig::read_write(image(24))).unwrap();
    let word = |offset| {
        let mut bytes = [0; 4];
        device.read_config(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    assert_eq!((word(0), word(4)), (24, 0), "capacity");
    assert_eq!(word(12), 126, "seg_max");
    assert_eq!(word(20), 512, "blk_size");
    assert!(word(36) > 0 && word(40) > 0 && word(48) > 0 && word(52) > 0);
    // Beyond the end, and across it.
    let mut bytes = [0xff; 8];
    device.read_config(u64::MAX, &mut bytes);
    device.read_config(60, &mut bytes);
    assert_eq!(bytes, [0xff; 8]);
    device.read_config(56, &mut bytes);
    assert_eq!(bytes, [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn refuses_files_that_cannot_be_disks() {
    let odd = tempfile::tempfile().unwrap();
    odd.set_len(1000).unwrap();
    let message = BlockDevice::new(BlockConfig::read_only(odd))
        .unwrap_err()
        .to_string();
    assert!(message.contains("1000"), "{message}");

    let directory = File::open("/").unwrap();
    assert!(BlockDevice::new(BlockConfig::read_only(directory)).is_err());

    let named = tempfile::NamedTempFile::new().unwrap();
    let only_reading = File::open(named.path()).unwrap();
    assert!(BlockDevice::new(BlockConfig::read_write(only_reading)).is_err());
    let appending = File::options()
        .read(true)
        .append(true)
        .open(named.path())
        .unwrap();
    assert!(BlockDevice::new(BlockConfig::read_write(appending)).is_err());

    let mut config = BlockConfig::read_only(image(1));
    config.serial = "a".repeat(21);
    assert!(BlockDevice::new(config).is_err());
}

#[test]
fn a_file_that_shrank_is_an_io_error() {
    let file = image(8);
    let mut driver = read_write(&file);
    file.set_len(512).unwrap();
    assert_eq!(request(&mut driver, IN, 4, &[], &[(DATA, 512)]).0, IO_ERROR);
    driver.write(DATA, &range(4, 2, 1));
    request(&mut driver, WRITE_ZEROES, 0, &[(DATA, 16)], &[]);
    request(&mut driver, DISCARD, 0, &[(DATA, 16)], &[]);
}

#[test]
fn a_long_queue_is_served_in_turns() {
    let mut driver = read_only(&image(1 << 14));
    driver.write(HEADER, &header(IN, 0));
    // 20 requests of 1 MiB: more than a turn's bytes.
    for _ in 0..20 {
        driver.add(0, &[(HEADER, 16)], &[(DATA, 1 << 20), (STATUS, 1)]);
    }
    driver.device.queue_notified(0);
    let first = driver.used(0).len();
    assert!((1..20).contains(&first), "{first} requests in one turn");
    driver.run();
    assert_eq!(first + driver.used(0).len(), 20);
}

#[test]
fn interrupts_can_be_suppressed_without_event_indices() {
    let mut driver = Driver::with_features(
        BlockDevice::new(BlockConfig::read_only(image(1))).unwrap(),
        1 << 32,
    );
    driver.suppress_interrupts(0, true);
    assert_eq!(request(&mut driver, FLUSH, 0, &[], &[]).0, OK);
    assert_eq!(driver.interrupts(), 0);
    driver.suppress_interrupts(0, false);
    assert_eq!(request(&mut driver, FLUSH, 0, &[], &[]).0, OK);
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_VRING);
}

#[test]
fn parsing_is_total() {
    use proptest::prelude::*;
    proptest!(|(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..20, any::<u64>()],
        readable in prop_oneof![0u32..2048, any::<u32>()],
        writable in prop_oneof![0u32..2048, any::<u32>()],
        read_only: bool,
    )| {
        let disk = Disk { sectors: 16, read_only };
        match Request::parse(header(kind, sector), readable, writable, disk) {
            Ok(Request::Read { position, length }) => {
                prop_assert!(position + u64::from(length) <= 16 * 512);
                prop_assert_eq!(length, writable);
            }
            Ok(Request::Write { position, length }) => {
                prop_assert!(!read_only);
                prop_assert!(position + u64::from(length) <= 16 * 512);
                prop_assert_eq!(length, readable);
            }
            Ok(Request::Discard { ranges } | Request::WriteZeroes { ranges }) => {
                prop_assert!(!read_only);
                prop_assert_eq!(ranges * 16, readable);
            }
            Ok(Request::Flush | Request::GetId) => {}
            Err(status) => prop_assert_ne!(status, Status::Ok),
        }
    });
}
