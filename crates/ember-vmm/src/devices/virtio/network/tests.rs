use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use super::NetworkConfig;
use super::device::{NetworkDevice, RECEIVE, TRANSMIT};
use super::header::{HEADER_SIZE, Header, Negotiated, Offload};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::queue::EVENT_IDX;
use crate::devices::virtio::testing::{BUFFERS, Driver, HIGH_START, LOW_END};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const VERSION_1: u64 = 1 << 32;
const MERGEABLE: u64 = 1 << 15;

const ALL: Offload = Offload {
    checksum: true,
    tcp4: true,
    tcp6: true,
};
const NONE: Offload = Offload {
    checksum: false,
    tcp4: false,
    tcp6: false,
};

/// A driver with `features`, and the other end of what stands in for the interface.
fn driver(features: u64) -> (Driver<NetworkDevice>, File) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .unwrap();
    let device = NetworkDevice::over_socket(ours, MAC).unwrap();
    (
        Driver::with_features(device, features | VERSION_1),
        File::from(theirs),
    )
}

/// A frame as the host's kernel hands it over: an empty header, then `length` different bytes.
fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_SIZE];
    frame.extend((0..length).map(|index| (index % 251) as u8));
    frame
}

fn received(mut host: &File) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 17];
    match host.read(&mut bytes) {
        Ok(length) => {
            bytes.truncate(length);
            Some(bytes)
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            None
        }
    }
}

#[test]
fn a_frame_from_the_guest_reaches_the_host() {
    let (mut driver, host) = driver(EVENT_IDX);
    let frame = frame(100);
    driver.write(LOW_END - 20, &frame[..20]);
    driver.write(HIGH_START, &frame[20..]);
    driver.add(TRANSMIT, &[(LOW_END - 20, 20), (HIGH_START, 92)], &[]);
    driver.kick(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT), [(0, 0)]);
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_VRING);
    assert_eq!(received(&host).unwrap(), frame);
    assert_eq!(received(&host), None);
}

#[test]
fn frames_of_impossible_lengths_are_dropped() {
    let (mut driver, host) = driver(EVENT_IDX);
    driver.add(TRANSMIT, &[(BUFFERS, 25)], &[]);
    driver.add(TRANSMIT, &[(BUFFERS, 0)], &[]);
    driver.add(TRANSMIT, &[(BUFFERS, 12 + 14 + 65537)], &[]);
    driver.add(TRANSMIT, &[(BUFFERS, u32::MAX)], &[]);
    driver.add(TRANSMIT, &[], &[(BUFFERS, 100)]);
    driver.add(TRANSMIT, &[(BUFFERS, 26)], &[]);
    driver.kick(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT).len(), 6);
    assert_eq!(received(&host).unwrap().len(), 26);
    assert_eq!(received(&host), None);
}

#[test]
fn a_header_that_was_not_negotiated_drops_the_frame() {
    let (mut driver, host) = driver(EVENT_IDX);
    let offload = Header {
        flags: 1,
        checksum_start: 14,
        checksum_offset: 16,
        ..Header::default()
    };
    let mut bytes = frame(200);
    bytes[..HEADER_SIZE].copy_from_slice(&offload.bytes());
    driver.write(BUFFERS, &bytes);
    driver.add(TRANSMIT, &[(BUFFERS, 212)], &[]);
    driver.kick(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT).len(), 1);
    assert_eq!(received(&host), None);

    // The same frame, negotiated.
    let (mut driver, host) = self::driver(EVENT_IDX | 1);
    driver.write(BUFFERS, &bytes);
    driver.add(TRANSMIT, &[(BUFFERS, 212)], &[]);
    driver.kick(TRANSMIT);
    assert_eq!(received(&host).unwrap(), bytes);
}

#[test]
fn a_frame_from_the_host_reaches_the_guest() {
    let (mut driver, mut host) = driver(EVENT_IDX);
    driver.add(RECEIVE, &[], &[(LOW_END - 50, 50), (HIGH_START, 1476)]);
    driver.kick(RECEIVE);
    assert!(driver.used(RECEIVE).is_empty());
    assert_eq!(driver.interrupts(), 0);

    let frame = frame(300);
    host.write_all(&frame).unwrap();
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(0, 312)]);
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_VRING);
    let mut expected = frame;
    // One buffer, says the header.
    expected[10] = 1;
    let got = [driver.read(LOW_END - 50, 50), driver.read(HIGH_START, 262)].concat();
    assert_eq!(got, expected);
    assert_eq!(
        driver.read(HIGH_START + 262, 100),
        [0; 100],
        "more than the frame was written"
    );
}

#[test]
fn frames_wait_until_the_guest_has_buffers() {
    for features in [0, EVENT_IDX, MERGEABLE | EVENT_IDX] {
        let (mut driver, mut host) = driver(features);
        for length in [100, 200, 300] {
            host.write_all(&frame(length)).unwrap();
        }
        driver.run();
        // Nothing is watched while nothing can be done.
        assert_eq!(driver.run(), 0);
        driver.add(RECEIVE, &[], &[(BUFFERS, 1526)]);
        driver.add(RECEIVE, &[], &[(BUFFERS + 2048, 1526)]);
        driver.kick(RECEIVE);
        assert_eq!(driver.used(RECEIVE), [(0, 112), (1, 212)]);
        assert_eq!(driver.run(), 0);
        driver.add(RECEIVE, &[], &[(BUFFERS, 1526)]);
        driver.kick(RECEIVE);
        assert_eq!(driver.used(RECEIVE), [(2, 312)]);
        // And it goes on as before.
        driver.add(RECEIVE, &[], &[(BUFFERS, 1526)]);
        host.write_all(&frame(50)).unwrap();
        driver.run();
        assert_eq!(driver.used(RECEIVE), [(3, 62)]);
    }
}

#[test]
fn a_reset_forgets_the_frame_that_waits() {
    let (mut driver, mut host) = driver(EVENT_IDX);
    host.write_all(&frame(100)).unwrap();
    host.write_all(&frame(200)).unwrap();
    driver.run();
    driver.device.reset();
    assert_eq!(
        driver.run(),
        0,
        "a device that was reset watches its interface"
    );
    driver.activate(VERSION_1, u32::MAX).unwrap();
    driver.add(RECEIVE, &[], &[(BUFFERS, 1526)]);
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(0, 212)]);
}

#[test]
fn a_long_frame_is_spread_over_merged_buffers() {
    let (mut driver, mut host) = driver(EVENT_IDX | MERGEABLE);
    let frame = frame(60_000);
    host.write_all(&frame).unwrap();
    driver.run();
    // 39 buffers of 1536 bytes are not enough, and stay where they are.
    for index in 0..39 {
        driver.add(RECEIVE, &[], &[(BUFFERS + index * 2048, 1536)]);
    }
    driver.kick(RECEIVE);
    assert!(driver.used(RECEIVE).is_empty());
    assert_eq!(driver.run(), 0, "the device is busy while it waits");
    driver.add(RECEIVE, &[], &[(BUFFERS + 39 * 2048, 1536)]);
    driver.kick(RECEIVE);
    let used = driver.used(RECEIVE);
    assert_eq!(used.len(), 40);
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_VRING);
    assert_eq!(
        used[..39],
        (0..39).map(|head| (head, 1536)).collect::<Vec<_>>()
    );
    assert_eq!(used[39], (39, 60_012 - 39 * 1536));
    let mut got = Vec::new();
    for (index, (_, length)) in used.iter().enumerate() {
        got.extend(driver.read(BUFFERS + index as u64 * 2048, *length as usize));
    }
    assert_eq!(got[10..12], [40, 0]);
    assert_eq!(got[12..], frame[12..]);
}

#[test]
fn a_frame_that_never_fits_is_dropped() {
    let (mut driver, mut host) = driver(EVENT_IDX);
    driver.add(RECEIVE, &[], &[(BUFFERS, 100)]);
    host.write_all(&frame(89)).unwrap();
    host.write_all(&frame(88)).unwrap();
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(0, 100)]);

    // Not in all of the queue.
    let (mut driver, mut host) = self::driver(EVENT_IDX | MERGEABLE);
    for _ in 0..256 {
        driver.add(RECEIVE, &[], &[(BUFFERS, 12)]);
    }
    host.write_all(&frame(12 * 256)).unwrap();
    host.write_all(&frame(12 * 255)).unwrap();
    driver.run();
    assert_eq!(driver.used(RECEIVE).len(), 256);
}

#[test]
fn a_receive_buffer_must_hold_a_header() {
    for buffers in [&[(BUFFERS, 11)][..], &[], &[(LOW_END, 1526)]] {
        let (mut driver, mut host) = driver(EVENT_IDX | MERGEABLE);
        if buffers.is_empty() {
            driver.add(RECEIVE, &[(BUFFERS, 1526)], &[]);
        } else {
            driver.add(RECEIVE, &[], buffers);
        }
        driver.add(RECEIVE, &[], &[(BUFFERS, 1526)]);
        host.write_all(&frame(100)).unwrap();
        driver.run();
        assert!(driver.used(RECEIVE).is_empty());
        // The device is at rest, though frames keep coming.
        host.write_all(&frame(100)).unwrap();
        assert_eq!(driver.run(), 0);

        driver.device.reset();
        driver.activate(EVENT_IDX | VERSION_1, u32::MAX).unwrap();
        driver.add(RECEIVE, &[], &[(BUFFERS, 1526)]);
        driver.run();
        assert_eq!(driver.used(RECEIVE), [(0, 112)]);
    }
}

#[test]
fn a_flood_of_frames_is_received_in_turns() {
    let (mut driver, mut host) = driver(EVENT_IDX);
    for _ in 0..200 {
        driver.add(RECEIVE, &[], &[(BUFFERS, 1526)]);
    }
    let mut sent = 0;
    while sent < 200 && host.write_all(&frame(14)).is_ok() {
        sent += 1;
    }
    assert!(sent > 64, "the socket holds only {sent} frames");
    driver.run_once(0);
    assert_eq!(driver.used(RECEIVE).len(), 64);
    driver.run();
    assert_eq!(driver.used(RECEIVE).len(), sent - 64);
}

#[test]
fn an_interface_that_vanishes_is_a_link_that_is_down() {
    let (mut driver, host) = driver(EVENT_IDX);
    let status = |driver: &Driver<NetworkDevice>| {
        let mut bytes = [0; 16];
        driver.device.read_config(0, &mut bytes);
        assert_eq!(bytes[..6], MAC);
        assert_eq!(bytes[8..], [0; 8]);
        bytes[6]
    };
    assert_eq!(status(&driver), 1);
    drop(host);
    driver.run();
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_CONFIG);
    assert_eq!(status(&driver), 0);
    assert_eq!(driver.run(), 0);
    // Sending goes nowhere, and is no reason to stop.
    driver.add(TRANSMIT, &[(BUFFERS, 100)], &[]);
    driver.kick(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT).len(), 1);
}

#[test]
fn a_host_that_takes_no_frames_loses_them() {
    let (mut driver, _host) = driver(EVENT_IDX);
    for _ in 0..20 {
        for _ in 0..256 {
            driver.add(TRANSMIT, &[(BUFFERS, 1500)], &[]);
        }
        driver.kick(TRANSMIT);
        assert_eq!(driver.used(TRANSMIT).len(), 256);
    }
}

#[test]
fn only_a_tap_interface_will_do() {
    for file in [
        File::open("/dev/null").unwrap(),
        tempfile::tempfile().unwrap(),
    ] {
        let config = NetworkConfig {
            tap: OwnedFd::from(file),
            mac: MAC,
        };
        let message = NetworkDevice::new(config).unwrap_err().to_string();
        assert!(message.contains("IFF_VNET_HDR"), "{message}");
    }
}

#[test]
fn long_segments_need_checksums() {
    let tso_only = Negotiated::from_features(1 << 7 | 1 << 8 | 1 << 11 | 1 << 12);
    assert_eq!(tso_only, Negotiated::default());
    let all = Negotiated::from_features(u64::MAX);
    assert_eq!(
        all,
        Negotiated {
            to_host: ALL,
            to_guest: ALL,
            mergeable: true
        }
    );
}

#[test]
fn what_the_guest_may_ask_for() {
    let segment = Header {
        flags: 1,
        gso_type: 1,
        header_length: 54,
        gso_size: 1448,
        checksum_start: 34,
        checksum_offset: 16,
        buffers: 0,
    };
    assert_eq!(segment.to_host(4000, ALL), Some(segment));
    assert_eq!(segment.to_host(4000, Offload { tcp4: false, ..ALL }), None);
    assert_eq!(
        segment.to_host(
            4000,
            Offload {
                checksum: false,
                ..ALL
            }
        ),
        None
    );
    assert_eq!(
        segment.to_host(51, ALL),
        None,
        "the checksum is behind the frame"
    );
    assert_eq!(
        segment.to_host(53, ALL),
        None,
        "the headers are longer than the frame"
    );
    for wrong in [
        Header {
            flags: 0,
            ..segment
        },
        Header {
            gso_size: 0,
            ..segment
        },
        Header {
            gso_type: 3,
            ..segment
        },
        Header {
            gso_type: 5,
            ..segment
        },
        Header {
            gso_type: 0x81,
            ..segment
        },
        Header {
            checksum_start: u16::MAX,
            checksum_offset: u16::MAX,
            ..segment
        },
    ] {
        assert_eq!(wrong.to_host(4000, ALL), None, "{wrong:?}");
    }
    // What means nothing is not passed on.
    let nonsense = Header {
        flags: 0xfe,
        buffers: 7,
        gso_size: 9,
        header_length: 8,
        ..segment
    };
    let nonsense = Header {
        gso_type: 0,
        ..nonsense
    };
    assert_eq!(nonsense.to_host(100, ALL), Some(Header::default()));
}

proptest! {
    #[test]
    fn headers_survive_their_bytes(bytes: [u8; HEADER_SIZE]) {
        prop_assert_eq!(Header::parse(bytes).bytes(), bytes);
    }

    #[test]
    fn the_host_is_told_only_what_holds(
        bytes: [u8; HEADER_SIZE],
        flags in 0u8..8,
        gso_type in prop_oneof![0u8..6, any::<u8>()],
        length in 0usize..66_000,
        checksum: bool,
        tcp4: bool,
        tcp6: bool,
    ) {
        let may = Offload { checksum, tcp4: tcp4 && checksum, tcp6: tcp6 && checksum };
        let header = Header { flags, gso_type, ..Header::parse(bytes) };
        if let Some(told) = header.to_host(length, may) {
            prop_assert!(told.flags == 0 || told.flags == 1 && checksum);
            let end = usize::from(told.checksum_start) + usize::from(told.checksum_offset) + 2;
            prop_assert!(told.flags == 0 || end <= length);
            match told.gso_type {
                0 => prop_assert_eq!((told.gso_size, told.header_length), (0, 0)),
                1 => prop_assert!(may.tcp4),
                4 => prop_assert!(may.tcp6),
                other => prop_assert!(false, "kind {}", other),
            }
            prop_assert_eq!(told.buffers, 0);
        }
        let told = header.to_guest(3, NONE);
        prop_assert_eq!(told, Header { buffers: 3, ..Header::default() });
    }
}
