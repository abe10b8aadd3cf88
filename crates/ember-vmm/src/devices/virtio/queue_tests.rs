//! Rings and chains that break the rules, on the simplest device there is, and random ones on all.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use vm_memory::{Bytes, GuestAddress};

use super::EVENT_IDX;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{BalloonConfig, BalloonDevice};
use crate::devices::virtio::block::{BlockConfig, BlockDevice};
use crate::devices::virtio::chain::{Buffer, Chain};
use crate::devices::virtio::entropy::EntropyDevice;
use crate::devices::virtio::positioned_io::{Span, read_exact_at, write_all_at};
use crate::devices::virtio::testing::{
    BUFFERS, Driver, HIGH_END, HIGH_START, LOW_END, guest_memory, snapshot,
};
use crate::memory::GuestMemory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn driver() -> Driver<EntropyDevice> {
    Driver::new(EntropyDevice::new().unwrap())
}

/// Whether the device stands still after the chain that `build` makes available.
fn breaks(build: impl FnOnce(&mut Driver<EntropyDevice>)) -> bool {
    let mut driver = driver();
    build(&mut driver);
    driver.kick(0);
    let served = driver.used(0).len();
    driver.add(0, &[], &[(BUFFERS, 16)]);
    driver.kick(0);
    let goes_on = !driver.used(0).is_empty();
    assert_eq!(
        served > 0,
        goes_on,
        "a device serves a chain and goes on, or does neither"
    );
    assert_eq!(driver.run(), 0, "a device that stands still is at rest");
    !goes_on
}

#[test]
fn chains_that_break_the_rules_stop_the_device() {
    // A loop of one and of two.
    assert!(breaks(|driver| {
        driver.put_descriptor(0, 0, (BUFFERS, 16, WRITE | NEXT, 0));
        driver.make_available(0, 0);
    }));
    assert!(breaks(|driver| {
        driver.put_descriptor(0, 0, (BUFFERS, 16, WRITE | NEXT, 1));
        driver.put_descriptor(0, 1, (BUFFERS, 16, WRITE | NEXT, 0));
        driver.make_available(0, 0);
    }));
    // Indices beyond the table.
    assert!(breaks(|driver| driver.make_available(0, 16)));
    assert!(breaks(|driver| driver.make_available(0, u16::MAX)));
    assert!(breaks(|driver| {
        driver.put_descriptor(0, 0, (BUFFERS, 16, WRITE | NEXT, 16));
        driver.make_available(0, 0);
    }));
    // A table of its own, which was not offered.
    assert!(breaks(|driver| {
        driver.put_descriptor(0, 0, (BUFFERS, 16, INDIRECT, 0));
        driver.make_available(0, 0);
    }));
    // Readable behind writable.
    assert!(breaks(|driver| {
        driver.put_descriptor(0, 0, (BUFFERS, 16, WRITE | NEXT, 1));
        driver.put_descriptor(0, 1, (BUFFERS, 16, 0, 0));
        driver.make_available(0, 0);
    }));
    // 4 GiB and more.
    assert!(breaks(|driver| {
        driver.add(0, &[(0, u32::MAX)], &[(BUFFERS, 1)]);
    }));
    assert!(breaks(|driver| {
        driver.add(0, &[], &[(BUFFERS, 1 << 31); 2]);
    }));
    // More chains than the queue has descriptors.
    assert!(breaks(|driver| driver.put_available_index(0, 17)));
    assert!(breaks(|driver| driver.put_available_index(0, u16::MAX)));
}

#[test]
fn chains_at_the_limits_are_served() {
    // All of the table.
    assert!(!breaks(|driver| {
        driver.add(0, &[(BUFFERS, 0); 8], &[(BUFFERS, 16); 8]);
    }));
    // A byte less than 4 GiB.
    assert!(!breaks(|driver| {
        driver.add(0, &[(0, u32::MAX - 16)], &[(BUFFERS, 16)]);
    }));
    // The same head twice, which is the driver's own loss.
    assert!(!breaks(|driver| {
        driver.add(0, &[], &[(BUFFERS, 16)]);
        driver.make_available(0, 0);
    }));
}

/// A chain of readable buffers, read from a table in `memory`.
fn chain(memory: &GuestMemory, buffers: &[(u64, u32)]) -> Chain {
    let size = buffers.len() as u16;
    for (index, &(address, length)) in (0..).zip(buffers) {
        let next = if index + 1 < u64::from(size) {
            1 | (index + 1) << 16
        } else {
            0
        };
        let descriptor = [address, u64::from(length) | next << 32];
        memory
            .write_obj(descriptor, GuestAddress(index * 16))
            .unwrap();
    }
    let mut chain = Chain::default();
    chain.read(memory, GuestAddress(0), size, 0).unwrap();
    chain
}

#[test]
fn the_end_of_the_address_space_is_no_way_to_its_start() {
    let memory = guest_memory();
    let buffers = chain(&memory, &[(BUFFERS, 4), (u64::MAX - 3, 100)]).readable;
    // Behind the first 4 bytes of the second buffer.
    let parts: Vec<_> = buffers.slice(8, 20).collect();
    assert_eq!(
        parts,
        [Buffer {
            address: GuestAddress(u64::MAX),
            length: 20
        }]
    );
    buffers.read(&memory, 8, &mut [0; 20]).unwrap_err();
    buffers.write(&memory, 8, &[0x99; 20]).unwrap_err();
    assert_eq!(
        memory.read_obj::<[u8; 16]>(GuestAddress(0x1_0000)).unwrap(),
        [0; 16]
    );
}

#[test]
fn a_transfer_of_many_parts_takes_several_calls() {
    let memory = guest_memory();
    // 300 buffers of 7 bytes, apart.
    let list: Vec<_> = (0..300).map(|index| (BUFFERS + index * 16, 7)).collect();
    let buffers = chain(&memory, &list).readable;
    let content: Vec<u8> = (0..2200).map(|index| (index % 253) as u8).collect();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&content, 0).unwrap();

    let span = Span {
        memory: &memory,
        buffers: &buffers,
        offset: 3,
        length: 2090,
    };
    read_exact_at(&file, 50, span).unwrap();
    let mut got = vec![0; 2100];
    buffers.read(&memory, 0, &mut got).unwrap();
    assert_eq!(got[..3], [0; 3]);
    assert_eq!(got[3..2093], content[50..2140]);
    assert_eq!(got[2093..], [0; 7]);

    let copy = tempfile::tempfile().unwrap();
    write_all_at(&copy, 1000, span).unwrap();
    let mut got = vec![0; 3090];
    copy.read_exact_at(&mut got, 0).unwrap();
    assert_eq!(got[1000..], content[50..2140]);
    assert_eq!(copy.metadata().unwrap().len(), 3090);

    // The file ends within the second call.
    let error = read_exact_at(&file, 1000, span).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn rings_wrap_around() {
    let mut driver = driver();
    for round in 0..70_000 {
        driver.add(0, &[], &[(BUFFERS, 1)]);
        driver.kick(0);
        assert_eq!(driver.used(0).len(), 1, "round {round}");
        assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_VRING, "round {round}");
    }
}

#[test]
fn an_interrupt_comes_at_the_index_the_driver_named() {
    let mut driver = driver();
    // Asks for an interrupt at the next one, then takes three without looking.
    driver.used(0);
    driver.add(0, &[], &[(BUFFERS, 1)]);
    driver.kick(0);
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_VRING);
    driver.add(0, &[], &[(BUFFERS, 1)]);
    driver.kick(0);
    assert_eq!(driver.interrupts(), 0, "the driver has not asked again");
    assert_eq!(driver.used(0).len(), 2);
    driver.add(0, &[], &[(BUFFERS, 1)]);
    driver.add(0, &[], &[(BUFFERS, 1)]);
    driver.kick(0);
    assert_eq!(driver.interrupts(), VIRTIO_MMIO_INT_VRING);
}

/// One random descriptor: mostly sensible, at the edges of memory, or anything.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        4 => BUFFERS..BUFFERS + 0x8000,
        1 => LOW_END - 600..LOW_END + 10,
        1 => HIGH_START - 10..HIGH_START + 600,
        1 => HIGH_END - 600..HIGH_END + 10,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        4 => prop_oneof![Just(1u32), Just(16), Just(20), Just(512), Just(1024)],
        2 => 0u32..2000,
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => 0u16..4, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0u16..12, 1 => any::<u16>()];
    (address, length, flags, next)
}

/// Block requests that the random descriptors above can hit.
fn headers() -> impl Strategy<Value = Vec<(u64, u32, u64)>> {
    let kind = prop_oneof![Just(0u32), Just(1), Just(4), Just(8), Just(11), Just(13)];
    prop::collection::vec((BUFFERS..BUFFERS + 0x8000, kind, 0u64..20), 0..64)
}

fn hostile<D: VirtioDevice>(
    device: D,
    descriptors: &[(u64, u32, u16, u16)],
    heads: &[u16],
    headers: &[(u64, u32, u64)],
) -> Result<(), TestCaseError> {
    let mut driver = Driver::new(device);
    driver.write(BUFFERS, &vec![0x55; 0x9000]);
    for &(address, kind, sector) in headers {
        driver.write(address, &kind.to_le_bytes());
        driver.write(address + 8, &sector.to_le_bytes());
    }
    let queues = driver.device.queue_max_sizes().len();
    let before = snapshot(&driver.memory);
    for queue in 0..queues {
        for (index, &descriptor) in (0..).zip(descriptors) {
            driver.put_descriptor(queue, index, descriptor);
        }
        for &head in heads {
            driver.make_available(queue, head);
        }
        driver.kick(queue);
        prop_assert!(driver.used(queue).len() <= heads.len());
    }
    let after = snapshot(&driver.memory);

    // Only what a device-writable buffer covers may have changed, or what a balloon was told.
    let writable = |address: u64| {
        descriptors.iter().any(|&(start, length, flags, _)| {
            flags & WRITE != 0 && address.wrapping_sub(start) < u64::from(length)
        })
    };
    let low = (LOW_END - BUFFERS) as usize;
    for (chunk, (old, new)) in before.chunks(4096).zip(after.chunks(4096)).enumerate() {
        if old == new {
            continue;
        }
        for (offset, (old, new)) in old.iter().zip(new).enumerate() {
            let at = chunk * 4096 + offset;
            let address = if at < low {
                BUFFERS + at as u64
            } else {
                HIGH_START + (at - low) as u64
            };
            prop_assert!(old == new || writable(address), "{address:#x} was written");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_chains_harm_the_block_device(
        descriptors in prop::collection::vec(descriptor(), 12),
        heads in prop::collection::vec(0u16..13, 1..8),
        headers in headers(),
    ) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 * 512).unwrap();
        let device = BlockDevice::new(BlockConfig::read_write(file.try_clone().unwrap())).unwrap();
        hostile(device, &descriptors, &heads, &headers)?;
        prop_assert_eq!(file.metadata().unwrap().len(), 16 * 512);
    }

    #[test]
    fn no_chains_harm_the_entropy_device(
        descriptors in prop::collection::vec(descriptor(), 12),
        heads in prop::collection::vec(0u16..13, 1..8),
    ) {
        hostile(EntropyDevice::new().unwrap(), &descriptors, &heads, &[])?;
    }

    #[test]
    fn no_chains_harm_the_reporting_balloon(
        descriptors in prop::collection::vec(descriptor(), 12),
        heads in prop::collection::vec(0u16..13, 1..8),
    ) {
        // 0x55555 is no page of this guest, so that inflating changes nothing.
        let (device, _handle) = BalloonDevice::new(BalloonConfig::default()).unwrap();
        hostile(device, &descriptors, &heads, &[])?;
    }

    #[test]
    fn no_rings_harm_a_device(
        descriptors in prop::collection::vec(descriptor(), 12),
        available in any::<u16>(),
        features in prop_oneof![Just(0), Just(EVENT_IDX)],
    ) {
        let mut driver = Driver::with_features(EntropyDevice::new().unwrap(), features);
        for (index, &descriptor) in (0..).zip(&descriptors) {
            driver.put_descriptor(0, index, descriptor);
        }
        driver.put_available_index(0, available);
        driver.kick(0);
        prop_assert!(driver.used(0).len() <= usize::from(available));
    }
}
