//! The parts without I/O.

use proptest::prelude::*;

use super::super::connection::{Connection, Event, Next, Phase, Ports};
use super::super::packet::{HEADER_SIZE, Header, Operation, SHUTDOWN_SEND};
use super::guest::packet;

const PORTS: Ports = Ports { guest: 1, host: 2 };

#[test]
fn a_header_lies_as_the_specification_says() {
    let header = Header {
        src_cid: 0x0102_0304_0506_0708,
        dst_cid: 0x1112_1314_1516_1718,
        src_port: 0x2122_2324,
        dst_port: 0x3132_3334,
        len: 0x4142_4344,
        kind: 0x5152,
        op: 0x6162,
        flags: 0x7172_7374,
        buf_alloc: 0x8182_8384,
        fwd_cnt: 0x9192_9394,
    };
    let bytes: [u8; HEADER_SIZE] = [
        8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22,
        0x21, 0x34, 0x33, 0x32, 0x31, 0x44, 0x43, 0x42, 0x41, 0x52, 0x51, 0x62, 0x61, 0x74, 0x73,
        0x72, 0x71, 0x84, 0x83, 0x82, 0x81, 0x94, 0x93, 0x92, 0x91,
    ];
    assert_eq!(header.to_bytes(), bytes);
    assert_eq!(Header::parse(&bytes), header);
}

#[test]
fn operations_keep_their_numbers() {
    for raw in 0..=u16::MAX {
        let operation = Operation::from_raw(raw);
        assert_eq!(operation.is_some(), (1..=7).contains(&raw));
        assert!(operation.is_none_or(|operation| operation as u16 == raw));
    }
}

#[test]
fn the_answer_comes_before_data_and_the_end_after_it() {
    let request = packet(Operation::Request, 1, 2);
    let mut connection = Connection::accepted(PORTS, 1000, &request);
    connection.host_done_sending();
    assert_eq!(connection.next(false), Next::Control(Operation::Response));
    let mut connection = Connection::accepted(PORTS, 1000, &request);
    assert_eq!(connection.next(true), Next::Control(Operation::Response));
    connection.sent(Operation::Response, 0);
    connection.host_done_receiving();
    assert_eq!(connection.next(true), Next::Data(256 * 1024));
    connection.host_done_sending();
    assert_eq!(connection.next(true), Next::Control(Operation::Shutdown));
    connection.sent(Operation::Shutdown, 0);
    assert_eq!(connection.next(true), Next::Nothing);
}

#[test]
fn a_requested_stream_says_nothing_until_it_is_open() {
    let mut connection = Connection::requested(PORTS, 1000);
    assert_eq!(connection.next(false), Next::Control(Operation::Request));
    connection.sent(Operation::Request, 0);
    assert_eq!(connection.next(true), Next::Nothing);
    assert_eq!(connection.phase, Phase::Connecting);
    let response = packet(Operation::Response, 1, 2);
    assert_eq!(
        connection.receive(Operation::Response, &response),
        Event::Established
    );
    assert_eq!(connection.next(true), Next::Data(256 * 1024));
}

#[test]
fn counters_wrap_around() {
    let request = packet(Operation::Request, 1, 2);
    let mut connection = Connection::accepted(PORTS, 1 << 20, &request);
    connection.sent(Operation::Response, 0);
    let mut sent: u32 = 0;
    let mut header = packet(Operation::ReadWrite, 1, 2);
    header.len = 1 << 20;
    for _ in 0..5000 {
        assert_eq!(
            connection.receive(Operation::ReadWrite, &header),
            Event::Data
        );
        connection.delivered(1 << 20);
        assert_eq!(
            connection.next(false),
            Next::Control(Operation::CreditUpdate)
        );
        connection.sent(Operation::CreditUpdate, 0);

        assert_eq!(connection.next(true), Next::Data(256 * 1024));
        connection.sent(Operation::ReadWrite, 256 * 1024);
        sent = sent.wrapping_add(256 * 1024);
        assert_eq!(
            connection.next(true),
            Next::Control(Operation::CreditRequest)
        );
        header.fwd_cnt = sent;
        header.len = 0;
        connection.receive(Operation::CreditUpdate, &header);
        header.len = 1 << 20;
    }
    let told = connection.header(Operation::CreditUpdate, 3);
    assert_eq!(told.fwd_cnt, 5000u32.wrapping_mul(1 << 20));
    // One byte more than there is room for.
    header.len = (1 << 20) + 1;
    assert_eq!(
        connection.receive(Operation::ReadWrite, &header),
        Event::Violation
    );
}

#[test]
fn a_guest_is_told_of_room_only_when_it_may_run_out() {
    let request = packet(Operation::Request, 1, 2);
    let mut connection = Connection::accepted(PORTS, 1000, &request);
    connection.sent(Operation::Response, 0);
    let mut header = packet(Operation::ReadWrite, 1, 2);
    header.len = 499;
    assert_eq!(
        connection.receive(Operation::ReadWrite, &header),
        Event::Data
    );
    connection.delivered(499);
    assert_eq!(connection.next(false), Next::Nothing);
    header.len = 1;
    connection.receive(Operation::ReadWrite, &header);
    connection.delivered(1);
    assert_eq!(
        connection.next(false),
        Next::Control(Operation::CreditUpdate)
    );
    // Data says it as well.
    connection.sent(Operation::ReadWrite, 10);
    assert_eq!(connection.next(false), Next::Nothing);
}

#[test]
fn shutdown_flags_add_up_and_others_are_ignored() {
    let request = packet(Operation::Request, 1, 2);
    let mut connection = Connection::accepted(PORTS, 1000, &request);
    let mut shutdown = packet(Operation::Shutdown, 1, 2);
    shutdown.flags = SHUTDOWN_SEND | 0xffff_fffc;
    assert_eq!(
        connection.receive(Operation::Shutdown, &shutdown),
        Event::Shutdown
    );
    assert!(connection.guest_is_done_sending() && !connection.guest_is_done());
    shutdown.flags = 1;
    connection.receive(Operation::Shutdown, &shutdown);
    assert!(connection.guest_is_done());
}

proptest! {
    #[test]
    fn headers_survive_the_trip(bytes in proptest::array::uniform32(any::<u8>()), rest in any::<[u8; 12]>()) {
        let mut all = [0; HEADER_SIZE];
        all[..32].copy_from_slice(&bytes);
        all[32..].copy_from_slice(&rest);
        prop_assert_eq!(Header::parse(&all).to_bytes(), all);
    }
}
