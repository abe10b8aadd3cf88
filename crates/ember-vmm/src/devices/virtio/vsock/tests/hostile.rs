//! Guests that do not play by the rules.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{Header, Operation};
use super::super::{ConnectError, VsockConfig};
use super::guest::{CID, Guest, Layout, Socket, packet};
use super::{another_stream, listen, read_all, stream, streams};
use crate::devices::virtio::VirtioDevice;

#[test]
fn packets_that_belong_nowhere_are_refused() {
    let mut guest = Guest::new();
    for operation in [
        Operation::Request,
        Operation::Response,
        Operation::Shutdown,
        Operation::ReadWrite,
        Operation::CreditUpdate,
        Operation::CreditRequest,
    ] {
        guest.send(&packet(operation, 1, 2), &[]);
        let (reset, _) = guest.expect(Operation::Reset);
        assert_eq!((reset.src_port, reset.dst_port, reset.kind), (2, 1, 1));
    }
    // An operation that does not exist is no better.
    guest.send(
        &Header {
            op: 77,
            ..packet(Operation::Request, 1, 2)
        },
        &[],
    );
    guest.expect(Operation::Reset);
    // A reset is not answered, or two sides could go on for ever.
    guest.send(&packet(Operation::Reset, 1, 2), &[]);
    guest.expect_nothing();
}

#[test]
fn addresses_and_types_are_checked() {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 80);
    let request = packet(Operation::Request, 1, 80);
    // Not the guest's own address.
    for src_cid in [0, 2, 41, 43, u64::MAX, u64::from(CID) + (1 << 32)] {
        guest.send(&Header { src_cid, ..request }, &[]);
        guest.expect_nothing();
    }
    // Nobody else can be reached from here.
    for dst_cid in [0, 1, 3, u64::from(CID), u64::MAX, 2 + (1 << 32)] {
        guest.send(&Header { dst_cid, ..request }, &[]);
        let (reset, _) = guest.expect(Operation::Reset);
        assert_eq!(reset.src_cid, dst_cid);
    }
    // Not a stream socket.
    for kind in [0, 2, 3, u16::MAX] {
        guest.send(&Header { kind, ..request }, &[]);
        let (reset, _) = guest.expect(Operation::Reset);
        assert_eq!(reset.kind, kind);
    }
    assert!(accepted.try_recv().is_err());
}

#[test]
fn rules_of_a_stream_are_enforced() {
    // Each breaks an open stream.
    let violations: [fn(&Socket) -> Header; 5] = [
        |socket| socket.header(Operation::Request, 0),
        |socket| socket.header(Operation::Response, 0),
        |socket| Header {
            op: 0,
            ..socket.header(Operation::Request, 0)
        },
        |socket| Header {
            op: 8,
            ..socket.header(Operation::Request, 0)
        },
        |socket| Header {
            op: u16::MAX,
            ..socket.header(Operation::Request, 0)
        },
    ];
    for violation in violations {
        let mut guest = Guest::new();
        let (socket, mut host) = stream(&mut guest);
        guest.send(&violation(&socket), &[]);
        guest.expect(Operation::Reset);
        guest.expect_nothing();
        assert!(read_all(&mut host).1);
        assert_eq!(streams(&guest), 0);
    }

    // Data after the sender said that there will be none.
    let mut guest = Guest::new();
    let (mut socket, _host) = stream(&mut guest);
    socket.control(&mut guest, Operation::Shutdown, 2);
    socket.send(&mut guest, b"one more thing");
    guest.expect(Operation::Reset);

    // Data before the stream is open.
    let (sender, result) = mpsc::channel();
    guest
        .handle
        .connect(22, Box::new(move |result| drop(sender.send(result))))
        .unwrap();
    let (request, _) = guest.expect(Operation::Request);
    let mut socket = Socket::established(22, request.src_port, &request);
    socket.send(&mut guest, b"impatient");
    guest.expect(Operation::Reset);
    assert!(matches!(
        result.try_recv().unwrap(),
        Err(ConnectError::Refused { port: 22 })
    ));
}

/// The device stands still, and a reset of the driver puts it right.
#[track_caller]
fn stands_still_until_reset(
    mut guest: Guest,
    mut host: UnixStream,
    accepted: &Receiver<UnixStream>,
) {
    guest.settle();
    assert!(read_all(&mut host).1);
    assert_eq!(streams(&guest), 0);
    // Doorbells are answered with silence.
    guest.device.queue_notified(0);
    guest.device.queue_notified(1);
    guest.settle();
    let (sender, result) = mpsc::channel();
    guest
        .handle
        .connect(22, Box::new(move |result| drop(sender.send(result))))
        .unwrap();
    guest.settle();
    assert!(matches!(
        result.try_recv().unwrap(),
        Err(ConnectError::NotReady { port: 22 })
    ));

    guest.reset();
    guest.refills = true;
    guest.start();
    let (mut socket, mut host) = another_stream(&mut guest, accepted, 5000);
    socket.send(&mut guest, b"as new");
    assert_eq!(read_all(&mut host).0, b"as new");
}

#[test]
fn a_packet_that_is_not_one_stops_the_device() {
    let header = packet(Operation::ReadWrite, 5000, 1024);
    // Less data than the header says.
    for len in [5, 100_000, u32::MAX] {
        let mut guest = Guest::new();
        let accepted = listen(&mut guest, 1024);
        let (_socket, host) = another_stream(&mut guest, &accepted, 5000);
        guest.send(&Header { len, ..header }, b"four");
        stands_still_until_reset(guest, host, &accepted);
    }
    // Less than a header; nothing to read; in no memory; data in no memory.
    let chains: [(&[(u64, u32)], bool); 4] = [
        (&[(0x100_0000, 43)], false),
        (&[(0x100_0000, 44)], true),
        (&[(u64::MAX - 20, 44)], false),
        (&[(0x100_0000, 44), (0x400_0000 - 5, 10)], false),
    ];
    for (chain, writable) in chains {
        let mut guest = Guest::new();
        let accepted = listen(&mut guest, 1024);
        let (_socket, host) = another_stream(&mut guest, &accepted, 5000);
        let bytes = Header { len: 10, ..header }.to_bytes();
        guest
            .memory
            .write_slice(&bytes, GuestAddress(0x100_0000))
            .unwrap();
        guest.tx.add(&guest.memory, chain, writable);
        guest.ring_tx();
        stands_still_until_reset(guest, host, &accepted);
    }
}

#[test]
fn more_than_the_header_says_is_not_data() {
    let mut guest = Guest::new();
    let (socket, mut host) = stream(&mut guest);
    guest.layout = Layout::One;
    let header = Header {
        len: 4,
        ..socket.header(Operation::ReadWrite, 0)
    };
    guest.send(&header, b"four and more");
    assert_eq!(read_all(&mut host), (b"four".to_vec(), false));
}

#[test]
fn acknowledging_what_was_never_sent_gives_no_credit() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    socket.forwarded = 1;
    socket.control(&mut guest, Operation::CreditUpdate, 0);
    host.write_all(b"data").unwrap();
    guest.expect(Operation::CreditRequest);
    guest.expect_nothing();
    socket.forwarded = 0;
    socket.control(&mut guest, Operation::CreditUpdate, 0);
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"data");
}

#[test]
fn opening_and_resetting_for_ever_uses_up_nothing() {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 80);
    guest.refills = false;
    // Use up the buffers, so that answers cannot be sent.
    for port in 0..200 {
        guest.send(&packet(Operation::Request, port, 80), &[]);
        guest.send(&packet(Operation::Reset, port, 80), &[]);
        guest.settle();
    }
    for round in 0..5_000 {
        guest.send(&packet(Operation::Request, 1000 + round % 7, 80), &[]);
        guest.send(&packet(Operation::Reset, 1000 + round % 7, 80), &[]);
        if round % 100 == 0 {
            guest.settle();
            assert!(accepted.try_iter().count() > 0);
        }
    }
    guest.settle();
    assert_eq!(streams(&guest), 0);
    assert!(guest.device.waiting() < 300);
}

#[test]
fn a_broken_ring_stops_the_device() {
    for queue in [0, 1] {
        let mut guest = Guest::new();
        let accepted = listen(&mut guest, 1024);
        let (_socket, mut host) = another_stream(&mut guest, &accepted, 5000);
        if queue == 0 {
            guest.rx.lie(&guest.memory);
            host.write_all(b"data").unwrap();
        } else {
            guest.tx.lie(&guest.memory);
            guest.ring_tx();
        }
        stands_still_until_reset(guest, host, &accepted);
    }
}

/// A guest that has used up its buffers for receiving, while the host has more for it.
fn starving() -> (Guest, Socket, UnixStream, Receiver<UnixStream>) {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 1024);
    let (mut socket, mut host) = another_stream(&mut guest, &accepted, 5000);
    socket.buf_alloc = u32::MAX;
    socket.control(&mut guest, Operation::CreditUpdate, 0);
    guest.refills = false;
    for _ in 0..256 {
        host.write_all(b"x").unwrap();
        guest.settle();
    }
    guest.inbox.clear();
    host.write_all(b"through").unwrap();
    guest.settle();
    assert_eq!(guest.rx.room(), 256);
    (guest, socket, host, accepted)
}

#[test]
fn a_head_outside_of_the_table_stops_the_device() {
    for queue in [0, 1] {
        let (mut guest, _socket, host, accepted) = starving();
        if queue == 0 {
            guest.rx.publish(&guest.memory, 256);
        } else {
            guest.tx.publish(&guest.memory, 256);
        }
        guest.device.queue_notified(queue);
        stands_still_until_reset(guest, host, &accepted);
    }
}

#[test]
fn a_buffer_for_receiving_that_is_of_no_use_stops_the_device() {
    // Too short for a header; without room for data; not writable; in no memory, or in part.
    let buffers = [
        (0x10_0000, 43, true),
        (0x10_0000, 44, true),
        (0x10_0000, 4096, false),
        (u64::MAX - 100, 4096, true),
        (0x400_0000 - 100, 4096, true),
    ];
    for (address, length, writable) in buffers {
        let (mut guest, _socket, mut host, accepted) = starving();
        // Also a read that fills all of the buffer reaches what is wrong with it.
        host.write_all(&[0; 8192]).unwrap();
        let (_, ring) = guest.rx.add(&guest.memory, &[(address, length)], writable);
        assert!(ring);
        guest.device.queue_notified(0);
        stands_still_until_reset(guest, host, &accepted);
    }
}

#[test]
fn buffers_for_receiving_may_be_cut_up_in_any_way() {
    let (mut guest, _socket, _host, _accepted) = starving();
    let bytes: Vec<(u64, u32)> = (0..60).map(|i| (0x20_0000 + i * 16, 1)).collect();
    let (_, ring) = guest.rx.add(&guest.memory, &bytes, true);
    assert!(ring);
    guest.device.queue_notified(0);
    let byte = |i: u64| -> u8 {
        guest
            .memory
            .read_obj(GuestAddress(0x20_0000 + i * 16))
            .unwrap()
    };
    let data: Vec<u8> = (44..51).map(byte).collect();
    assert_eq!(data, b"through");
}

#[derive(Clone, Debug)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        4 => 0x10_0000..0x200_0000u64,
        1 => 0..0x1_0000u64,
        1 => 0x3ff_f000..0x400_1000u64,
        1 => Just(0x1000u64),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![4 => 0..300u32, 2 => 40..48u32, 1 => any::<u32>()];
    // Mostly chained or not, sometimes writable or indirect.
    let flags = prop_oneof![6 => 0..2u16, 2 => 0..8u16, 1 => any::<u16>()];
    (address, length, flags, 0..20u16).prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    })
}

fn header() -> impl Strategy<Value = Header> {
    (
        (
            prop_oneof![9 => Just(u64::from(CID)), 1 => any::<u64>()],
            prop_oneof![9 => Just(2u64), 1 => any::<u64>()],
            prop_oneof![9 => 0..4u32, 1 => any::<u32>()],
            prop_oneof![9 => 80..82u32, 2 => (1u32 << 30)..(1 << 30) + 4, 1 => any::<u32>()],
            prop_oneof![9 => 0..300u32, 1 => any::<u32>()],
        ),
        (
            prop_oneof![9 => Just(1u16), 1 => any::<u16>()],
            prop_oneof![9 => 0..9u16, 1 => any::<u16>()],
            prop_oneof![9 => 0..4u32, 1 => any::<u32>()],
            prop_oneof![1 => any::<u32>(), 3 => 0..100_000u32],
            prop_oneof![1 => any::<u32>(), 3 => Just(0u32), 1 => 0..1000u32],
        ),
    )
        .prop_map(
            |(
                (src_cid, dst_cid, src_port, dst_port, len),
                (kind, op, flags, buf_alloc, fwd_cnt),
            )| {
                Header {
                    src_cid,
                    dst_cid,
                    src_port,
                    dst_port,
                    len,
                    kind,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                }
            },
        )
}

/// One thing that happens to the device.
#[derive(Clone, Debug)]
enum Act {
    Packet(Header, Vec<u8>, u32),
    Chain {
        queue: usize,
        descriptors: Vec<Descriptor>,
        head: u16,
    },
    Connect(u32),
    HostWrites(usize),
    HostReads,
    HostCloses,
    Run,
    Refill,
    Reset,
}

/// Things that a driver can do without breaking a queue.
fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (header(), proptest::collection::vec(any::<u8>(), 0..400), 20..600u32).prop_map(
            |(header, data, layout)| {
                let len = header.len.min(u32::try_from(data.len()).unwrap());
                Act::Packet(Header { len, ..header }, data, layout)
            },
        ),
        1 => (0..4u32).prop_map(Act::Connect),
        3 => (0..20_000usize).prop_map(Act::HostWrites),
        2 => Just(Act::HostReads),
        1 => Just(Act::HostCloses),
        4 => Just(Act::Run),
        2 => Just(Act::Refill),
        1 => Just(Act::Reset),
    ]
}

/// Things that a driver can do.
fn wild_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        10 => act(),
        1 => (header(), 0..400usize)
            .prop_map(|(header, data)| Act::Packet(header, vec![0; data], 100)),
        2 => (0..3usize, proptest::collection::vec(descriptor(), 1..20), 0..22u16)
            .prop_map(|(queue, descriptors, head)| Act::Chain { queue, descriptors, head }),
        2 => Just(Act::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_packet_breaks_the_device(acts in proptest::collection::vec(act(), 1..80)) {
        play(acts, false);
    }

    #[test]
    fn no_chain_breaks_the_device(acts in proptest::collection::vec(wild_act(), 1..60)) {
        play(acts, true);
    }
}

/// Whatever a guest and a host do, nothing panics, nothing grows without bound, and the device
/// comes to rest; and after a reset it serves a well-behaved guest. Only a `wild` guest needs one.
fn play(acts: Vec<Act>, wild: bool) {
    let mut guest = Guest::configured(VsockConfig {
        max_streams: 4,
        ..VsockConfig::new(CID)
    });
    let (sender, hosts) = mpsc::channel::<UnixStream>();
    for port in [80, 81] {
        let sender = sender.clone();
        guest
            .handle
            .listen(
                port,
                Box::new(move |stream| {
                    stream.set_nonblocking(true).unwrap();
                    sender.send(stream).unwrap();
                }),
            )
            .unwrap();
    }
    let mut open: Vec<UnixStream> = Vec::new();
    guest.tolerant = true;
    guest.settle();
    for act in acts {
        match act {
            Act::Packet(header, data, layout) => {
                guest.layout = Layout::Every(layout);
                if guest.tx.room() > 40 {
                    guest.send(&header, &data);
                }
            }
            Act::Chain {
                queue,
                descriptors,
                head,
            } => {
                let ring = if queue == 0 {
                    &mut guest.rx
                } else {
                    &mut guest.tx
                };
                for (index, descriptor) in (0..).zip(&descriptors) {
                    let Descriptor {
                        address,
                        length,
                        flags,
                        next,
                    } = descriptor.clone();
                    ring.descriptor(&guest.memory, index, (address, length, flags, next));
                }
                ring.publish(&guest.memory, head);
                guest.device.queue_notified(queue);
            }
            Act::Connect(port) => {
                let sender = sender.clone();
                guest
                    .handle
                    .connect(
                        port,
                        Box::new(move |result| {
                            if let Ok(stream) = result {
                                stream.set_nonblocking(true).unwrap();
                                sender.send(stream).unwrap();
                            }
                        }),
                    )
                    .unwrap();
            }
            Act::HostWrites(bytes) => {
                for stream in &mut open {
                    let _ = stream.write(&vec![1; bytes]);
                }
            }
            Act::HostReads => {
                for stream in &mut open {
                    let mut bytes = [0; 5000];
                    let _ = stream.read(&mut bytes);
                }
            }
            Act::HostCloses => drop(open.pop()),
            Act::Run => guest.settle(),
            Act::Refill => drop(guest.refill(10)),
            Act::Reset => {
                guest.reset();
                guest.start();
            }
        }
        open.extend(hosts.try_iter());
        assert!(streams(&guest) <= 4);
        assert!(guest.device.waiting() < 300);
    }
    guest.settle();
    if wild {
        guest.reset();
        guest.start();
    }
    drop(open);
    guest.refill(256);
    guest.settle();
    guest.inbox.clear();
    guest.tolerant = false;
    guest.layout = Layout::Two;
    // Forgets whatever streams there were: a free place for one that works.
    for (guest_port, host) in (0..4).flat_map(|port| [(port, 80), (port, 81)]) {
        guest.send(&packet(Operation::Reset, guest_port, host), &[]);
    }
    guest.settle();
    guest.inbox.clear();
    if streams(&guest) < 4 {
        let mut socket = Socket::connect(&mut guest, 9, 80);
        let mut host = hosts.try_iter().last().unwrap();
        socket.send(&mut guest, b"fine");
        assert_eq!(read_all(&mut host).0, b"fine");
    } else {
        assert!(!wild);
    }
}
