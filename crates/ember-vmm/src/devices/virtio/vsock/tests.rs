//! The device, driven as a guest drives it, with real sockets on the host's side.

mod endings;
mod guest;
mod hostile;
mod pure;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use guest::{CID, Guest, Layout, Socket, packet};

use super::packet::{Header, Operation, SHUTDOWN_BOTH};
use super::{ConnectError, ListenError, VsockConfig};
use crate::devices::virtio::VirtioDevice;

/// Listens on `port`; what is accepted comes out of the receiver.
fn listen(guest: &mut Guest, port: u32) -> Receiver<UnixStream> {
    let (sender, receiver) = mpsc::channel();
    guest
        .handle
        .listen(port, Box::new(move |stream| drop(sender.send(stream))))
        .unwrap();
    guest.settle();
    receiver
}

/// A stream from the guest's port 5000 to the host's port 1024.
fn stream(guest: &mut Guest) -> (Socket, UnixStream) {
    let accepted = listen(guest, 1024);
    another_stream(guest, &accepted, 5000)
}

/// A stream from the guest's port `port` to the host's port 1024, where `accepted` comes from.
fn another_stream(
    guest: &mut Guest,
    accepted: &Receiver<UnixStream>,
    port: u32,
) -> (Socket, UnixStream) {
    let socket = Socket::connect(guest, port, 1024);
    let host = accepted.try_recv().unwrap();
    host.set_nonblocking(true).unwrap();
    (socket, host)
}

/// A stream that the host opened to the guest's port `port`.
fn host_connect(guest: &mut Guest, port: u32) -> Receiver<Result<UnixStream, ConnectError>> {
    let (sender, receiver) = mpsc::channel();
    guest
        .handle
        .connect(port, Box::new(move |result| drop(sender.send(result))))
        .unwrap();
    guest.settle();
    receiver
}

/// Reads what there is; `true` in the second place if that was the end.
fn read_all(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => (bytes, false),
        Err(error) => panic!("{error}"),
    }
}

/// Numbers that are random enough, and the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit).unwrap()).unwrap()
    }
}

fn streams(guest: &Guest) -> usize {
    guest.device.stream_count()
}

#[test]
fn configuration_space_holds_the_context_id() {
    let guest = Guest::new();
    let mut bytes = [0xff; 10];
    bytes[8..].fill(0);
    guest.device.read_config(0, &mut bytes);
    assert_eq!(bytes, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for offset in [8, 9, u64::MAX] {
        let mut bytes = [0; 4];
        guest.device.read_config(offset, &mut bytes);
        assert_eq!(bytes, [0; 4]);
    }
    for cid in [0, 1, 2, u32::MAX] {
        assert!(super::VsockDevice::new(VsockConfig::new(cid)).is_err());
    }
}

#[test]
fn an_end_that_was_given_is_used_once_and_needs_nobody_who_listens() {
    let (ours, mut host) = UnixStream::pair().unwrap();
    let mut guest = Guest::configured(VsockConfig {
        given: super::GivenEnds::one(1024, ours),
        ..VsockConfig::new(CID)
    });
    // Another port is nobody's.
    guest.send(&packet(Operation::Request, 5000, 1025), &[]);
    guest.expect(Operation::Reset);
    let mut socket = Socket::connect(&mut guest, 5000, 1024);
    socket.send(&mut guest, b"ping");
    assert_eq!(read_all(&mut host), (b"ping".to_vec(), false));
    guest.send(&packet(Operation::Request, 5001, 1024), &[]);
    guest.expect(Operation::Reset);
}

#[test]
fn guest_connects_and_data_goes_both_ways() {
    for layout in [Layout::One, Layout::Two, Layout::Every(7)] {
        let mut guest = Guest::new();
        guest.layout = layout;
        let (mut socket, mut host) = stream(&mut guest);
        socket.send(&mut guest, b"ping");
        assert_eq!(read_all(&mut host), (b"ping".to_vec(), false));
        host.write_all(b"pong!").unwrap();
        guest.settle();
        assert_eq!(socket.take_in(&mut guest), []);
        assert_eq!(socket.received, b"pong!");
        // The answer carried the credit.
        assert_eq!(socket.peer_forwarded, 4);
        assert_eq!(streams(&guest), 1);
    }
}

#[test]
fn host_connects_and_data_goes_both_ways() {
    let mut guest = Guest::new();
    let result = host_connect(&mut guest, 22);
    assert!(result.try_recv().is_err());
    let (request, _) = guest.expect(Operation::Request);
    assert_eq!(request.dst_port, 22);
    assert!(request.src_port >= 1 << 30);
    let mut socket = Socket::established(22, request.src_port, &request);
    socket.control(&mut guest, Operation::Response, 0);
    let mut host = result.try_recv().unwrap().unwrap();
    host.write_all(b"to the guest").unwrap();
    socket.send(&mut guest, b"to the host");
    guest.settle();
    socket.take_in(&mut guest);
    assert_eq!(socket.received, b"to the guest");
    assert_eq!(read_all(&mut host).0, b"to the host");

    // The next stream to the same port has another port of the host's.
    let _second = host_connect(&mut guest, 22);
    assert_ne!(
        guest.expect(Operation::Request).0.src_port,
        request.src_port
    );
}

#[test]
fn a_stream_can_have_a_pair_that_was_made_elsewhere() {
    let mut guest = Guest::new();
    let (ours, mut host) = UnixStream::pair().unwrap();
    let (sender, result) = mpsc::channel();
    let done = Box::new(move |result| drop(sender.send(result)));
    guest.handle.connect_given(22, ours, done).unwrap();
    guest.settle();
    // Before there is anybody to read it.
    host.write_all(b"to the guest").unwrap();
    assert!(result.try_recv().is_err());
    let (request, _) = guest.expect(Operation::Request);
    let mut socket = Socket::established(22, request.src_port, &request);
    socket.control(&mut guest, Operation::Response, 0);
    result.try_recv().unwrap().unwrap();
    socket.send(&mut guest, b"to the host");
    guest.settle();
    socket.take_in(&mut guest);
    assert_eq!(socket.received, b"to the guest");
    host.set_nonblocking(true).unwrap();
    assert_eq!(read_all(&mut host), (b"to the host".to_vec(), false));

    // One that is refused is at its end.
    let (ours, mut host) = UnixStream::pair().unwrap();
    let (sender, result) = mpsc::channel();
    let done = Box::new(move |result| drop(sender.send(result)));
    guest.handle.connect_given(22, ours, done).unwrap();
    guest.settle();
    let (request, _) = guest.expect(Operation::Request);
    guest.send(&packet(Operation::Reset, 22, request.src_port), &[]);
    let refused = result.try_recv().unwrap();
    assert!(matches!(refused, Err(ConnectError::Refused { port: 22 })));
    assert!(read_all(&mut host).1);
}

#[test]
fn a_refused_connection_says_so() {
    let mut guest = Guest::new();
    let result = host_connect(&mut guest, 22);
    let (request, _) = guest.expect(Operation::Request);
    guest.send(&packet(Operation::Reset, 22, request.src_port), &[]);
    assert!(matches!(
        result.try_recv().unwrap(),
        Err(ConnectError::Refused { port: 22 })
    ));
    assert_eq!(streams(&guest), 0);
}

#[test]
fn a_connection_that_is_not_answered_times_out() {
    let mut guest = Guest::configured(VsockConfig {
        connect_timeout: Duration::from_millis(20),
        ..VsockConfig::new(CID)
    });
    let result = host_connect(&mut guest, 22);
    let (request, _) = guest.expect(Operation::Request);
    assert!(guest.run_device_thread(5000));
    assert!(matches!(
        result.try_recv().unwrap(),
        Err(ConnectError::TimedOut { port: 22 })
    ));
    // The guest is told, so that it does not keep its end, and the timer rests.
    let (reset, _) = guest.expect(Operation::Reset);
    assert_eq!(reset.src_port, request.src_port);
    assert!(!guest.run_device_thread(50));
    // An answer that comes too late opens nothing.
    guest.send(&packet(Operation::Response, 22, request.src_port), &[]);
    guest.expect(Operation::Reset);
    assert_eq!(streams(&guest), 0);
}

#[test]
fn a_connection_before_the_driver_runs_is_refused_at_once() {
    let mut guest = Guest::not_running(VsockConfig::new(CID), 0);
    let result = host_connect(&mut guest, 22);
    assert!(matches!(
        result.try_recv().unwrap(),
        Err(ConnectError::NotReady { port: 22 })
    ));
    guest.start();
    let _result = host_connect(&mut guest, 22);
    guest.expect(Operation::Request);
}

#[test]
fn blocking_connect_from_another_thread() {
    let mut guest = Guest::new();
    let handle = guest.handle.clone();
    let thread =
        std::thread::spawn(move || handle.connect_blocking(9, Duration::from_secs(60)).unwrap());
    while guest.inbox.is_empty() {
        guest.run_device_thread(60_000);
        guest.settle();
    }
    let (request, _) = guest.expect(Operation::Request);
    let mut socket = Socket::established(9, request.src_port, &request);
    socket.control(&mut guest, Operation::Response, 0);
    let mut host = thread.join().unwrap();
    socket.send(&mut guest, b"hello");
    assert_eq!(read_all(&mut host).0, b"hello");

    // When nobody waits any more, the guest's end is closed as soon as it is there.
    let error = guest
        .handle
        .connect_blocking(9, Duration::ZERO)
        .unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { port: 9 }));
    let (request, _) = guest.expect(Operation::Request);
    guest.send(&packet(Operation::Response, 9, request.src_port), &[]);
    let (shutdown, _) = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
}

#[test]
fn listening_is_exclusive_and_ends() {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 80);
    let again = guest.handle.listen(80, Box::new(drop));
    assert_eq!(again, Err(ListenError::InUse(80)));
    Socket::connect(&mut guest, 1, 80);
    let _host = accepted.try_recv().unwrap();
    guest.handle.unlisten(80);
    guest.settle();
    guest.send(&packet(Operation::Request, 2, 80), &[]);
    let (reset, _) = guest.expect(Operation::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (80, 2));
    // The stream that was open still is.
    assert_eq!(streams(&guest), 1);
    let accepted = listen(&mut guest, 80);
    Socket::connect(&mut guest, 3, 80);
    assert!(accepted.try_recv().is_ok());
}

/// Ten megabytes each way at once, in pieces of random sizes, with a host that reads when it likes.
fn ten_megabytes(mut guest: Guest) {
    const TOTAL: usize = 10 << 20;
    let (mut socket, mut host) = stream(&mut guest);
    let mut random = Random(0x1234_5678_9abc_def1);
    let data: Vec<u8> = (0..TOTAL)
        .map(|_| u8::try_from(random.below(256)).unwrap())
        .collect();
    let (mut from_guest, mut from_host) = (0, 0);
    let mut at_host = Vec::with_capacity(TOTAL);
    let mut updates = 0;
    let started = Instant::now();
    while at_host.len() < TOTAL || socket.received.len() < TOTAL {
        assert!(started.elapsed() < Duration::from_secs(120), "stuck");
        // The guest sends as its credit allows.
        for _ in 0..random.below(4) {
            let credit = usize::try_from(socket.credit()).unwrap();
            let wanted = 1 + random.below(64 * 1024);
            let end = TOTAL.min(from_guest + wanted.min(credit));
            if end > from_guest {
                guest.layout = match random.below(3) {
                    0 => Layout::One,
                    1 => Layout::Two,
                    _ => Layout::Every(3000),
                };
                socket.send(&mut guest, &data[from_guest..end]);
                from_guest = end;
            }
        }
        // The host writes as the socket allows.
        let end = TOTAL.min(from_host + 1 + random.below(100_000));
        if let Ok(count) = host.write(&data[from_host..end]) {
            from_host += count;
        }
        // The host reads some of what is there.
        let mut piece = vec![0; 1 + random.below(200_000)];
        if let Ok(count) = host.read(&mut piece) {
            at_host.extend_from_slice(&piece[..count]);
        }
        guest.settle();
        let before = socket.received.len();
        for operation in socket.take_in(&mut guest) {
            assert!(matches!(
                operation,
                Operation::CreditUpdate | Operation::CreditRequest
            ));
        }
        if socket.received.len() > before && random.below(2) == 0 {
            socket.control(&mut guest, Operation::CreditUpdate, 0);
            updates += 1;
        }
    }
    assert!(updates > 10);
    assert!(at_host == data && socket.received == data, "data changed");
    assert_eq!(socket.sent, u32::try_from(TOTAL).unwrap());
}

#[test]
fn ten_megabytes_arrive_intact_both_ways() {
    ten_megabytes(Guest::new());
}

#[test]
fn ten_megabytes_arrive_intact_without_event_idx() {
    ten_megabytes(Guest::without_event_idx());
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_and_only_that_stream() {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 1024);
    let (mut socket, mut host) = another_stream(&mut guest, &accepted, 5000);
    let (mut other, _other_host) = another_stream(&mut guest, &accepted, 5001);
    let mut sent = 0;
    let piece = [7; 16 * 1024];
    // What the socket pair holds, and then the device's own buffer.
    while usize::try_from(socket.credit()).unwrap() >= piece.len() {
        socket.send(&mut guest, &piece);
        sent += piece.len();
        guest.settle();
        socket.take_in(&mut guest);
        assert!(sent < 2 << 20, "nothing stopped the guest");
    }
    assert!(sent >= 256 * 1024);
    // The other stream is not held up.
    other.send(&mut guest, b"still here");
    other.control(&mut guest, Operation::CreditRequest, 0);
    guest.expect(Operation::CreditUpdate);

    // As the host reads, the guest hears of it and can go on.
    let mut received = 0;
    while received < sent {
        let (bytes, end) = read_all(&mut host);
        assert!(bytes.iter().all(|byte| *byte == 7) && !end);
        received += bytes.len();
        guest.settle();
    }
    assert_eq!(received, sent);
    assert!(
        socket
            .take_in(&mut guest)
            .contains(&Operation::CreditUpdate)
    );
    assert!(socket.credit() >= 128 * 1024);
}

#[test]
fn a_guest_that_overruns_its_credit_is_cut_off() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    let piece = vec![7; 64 * 1024];
    for _ in 0..40 {
        socket.send(&mut guest, &piece);
    }
    guest.settle();
    assert!(
        guest
            .inbox
            .iter()
            .any(|(header, _)| header.op == Operation::Reset as u16)
    );
    assert_eq!(streams(&guest), 0);
    let (_, end) = read_all(&mut host);
    assert!(end);
}

#[test]
fn a_guest_without_room_stops_the_host_and_nothing_spins() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    socket.buf_alloc = 10_000;
    socket.control(&mut guest, Operation::CreditUpdate, 0);
    host.write_all(&vec![9; 30_000]).unwrap();
    guest.settle();
    // Exactly what there was room for, and one question.
    let mut operations = Vec::new();
    for (header, data) in guest.inbox.drain(..) {
        socket.received.extend_from_slice(&data);
        operations.extend(Operation::from_raw(header.op));
    }
    operations.retain(|operation| *operation != Operation::ReadWrite);
    assert_eq!(operations, [Operation::CreditRequest]);
    assert_eq!(socket.received.len(), 10_000);
    assert!(
        !guest.run_device_thread(0),
        "the device thread has nothing to do"
    );

    // An answer that changes nothing is not asked for again and again.
    socket.control(&mut guest, Operation::CreditUpdate, 0);
    guest.expect_nothing();

    socket.forwarded = 4000;
    socket.control(&mut guest, Operation::CreditUpdate, 0);
    guest.settle();
    let data: usize = guest.inbox.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(data, 4000);
    socket.buf_alloc = 100_000;
    socket.control(&mut guest, Operation::CreditUpdate, 0);
    guest.settle();
    let data: usize = guest.inbox.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(data, 20_000);
}

#[test]
fn streams_are_bounded() {
    let mut guest = Guest::configured(VsockConfig {
        max_streams: 10,
        ..VsockConfig::new(CID)
    });
    let accepted = listen(&mut guest, 80);
    for port in 0..10 {
        Socket::connect(&mut guest, port, 80);
    }
    guest.send(&packet(Operation::Request, 10, 80), &[]);
    guest.expect(Operation::Reset);
    let result = host_connect(&mut guest, 22);
    assert!(matches!(
        result.try_recv().unwrap(),
        Err(ConnectError::TooManyStreams { port: 22 })
    ));
    // One that ends makes room.
    guest.send(
        &Header {
            flags: SHUTDOWN_BOTH,
            ..packet(Operation::Shutdown, 4, 80)
        },
        &[],
    );
    guest.expect(Operation::Reset);
    Socket::connect(&mut guest, 10, 80);
    assert_eq!(accepted.try_iter().count(), 11);
}

#[test]
fn a_thousand_streams_each_carry_their_own() {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 80);
    let mut pairs = Vec::new();
    for port in 0..1024 {
        let socket = Socket::connect(&mut guest, port, 80);
        pairs.push((socket, accepted.try_recv().unwrap()));
    }
    for (socket, host) in &mut pairs {
        host.write_all(format!("to {}", socket.guest).as_bytes())
            .unwrap();
        let text = format!("from {}", socket.guest);
        socket.send(&mut guest, text.as_bytes());
    }
    guest.settle();
    assert_eq!(guest.inbox.len(), 1024);
    for (header, data) in guest.inbox.drain(..) {
        assert_eq!(data, format!("to {}", header.dst_port).as_bytes());
    }
    for (socket, host) in &mut pairs {
        assert_eq!(
            read_all(host).0,
            format!("from {}", socket.guest).as_bytes()
        );
    }
    drop(pairs);
    guest.settle();
    assert_eq!(guest.inbox.len(), 1024);
}

#[test]
fn streams_take_turns() {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 80);
    let mut hosts = Vec::new();
    for port in 0..3 {
        let mut socket = Socket::connect(&mut guest, port, 80);
        socket.buf_alloc = 10 << 20;
        socket.control(&mut guest, Operation::CreditUpdate, 0);
        hosts.push(accepted.try_recv().unwrap());
    }
    guest.refills = false;
    for host in &mut hosts {
        host.set_nonblocking(true).unwrap();
    }
    // Until all buffers are used up, and the sockets are full.
    for _ in 0..4 {
        for host in &mut hosts {
            while host.write(&[0; 10_000]).is_ok() {}
        }
        guest.settle();
    }
    assert_eq!(guest.inbox.len(), 256);
    guest.inbox.clear();
    // Now many come at once.
    guest.refill(100);
    guest.settle();
    let mut packets = [0; 3];
    for (header, _) in &guest.inbox {
        packets[usize::try_from(header.dst_port).unwrap()] += 1;
    }
    assert_eq!(packets.iter().sum::<usize>(), 100);
    assert!(packets.iter().all(|count| *count >= 20), "{packets:?}");
}

#[test]
fn without_buffers_everything_waits_and_nothing_spins() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    guest.refills = false;
    // Use up all buffers.
    for _ in 0..400 {
        host.write_all(&[5; 100]).unwrap();
        guest.settle();
    }
    assert_eq!(guest.inbox.len(), 256);
    assert!(
        !guest.run_device_thread(0),
        "the device thread has nothing to do"
    );
    // The other direction works.
    socket.send(&mut guest, b"hello");
    assert_eq!(read_all(&mut host).0, b"hello");
    guest.refills = true;
    guest.refill(256);
    guest.settle();
    let data: usize = guest.inbox.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(data, 40_000);
}

#[test]
fn answers_are_bounded_and_none_is_lost() {
    let mut guest = Guest::new();
    guest.refills = false;
    // Without buffers to answer, at some point no more packets are taken.
    let mut posted = 0;
    for port in 0..2000 {
        if guest.tx.room() == 0 && !guest.step() {
            break;
        }
        if guest.tx.room() > 0 {
            guest.send(&packet(Operation::Request, port, 99), &[]);
            posted += 1;
        }
    }
    guest.settle();
    assert!(posted > 256 && posted < 1200, "{posted}");
    assert!(
        !guest.run_device_thread(0),
        "the device thread has nothing to do"
    );
    guest.refills = true;
    guest.refill(256);
    guest.settle();
    assert_eq!(guest.inbox.len(), posted);
    assert_eq!(guest.tx.room(), 256);
}

#[test]
fn one_interrupt_for_a_batch() {
    let mut guest = Guest::new();
    let (socket, mut host) = stream(&mut guest);
    guest.settle();
    let before = guest.interrupts;
    for _ in 0..100 {
        let header = Header {
            len: 3,
            ..socket.header(Operation::ReadWrite, 0)
        };
        guest.post(&header, b"abc");
    }
    guest.ring_tx();
    guest.settle();
    assert_eq!(guest.interrupts - before, 1);
    assert_eq!(read_all(&mut host).0.len(), 300);
}

/// A stream on which nothing is under way.
fn quiet_stream(guest: &mut Guest) -> (Socket, UnixStream) {
    let (socket, host) = stream(guest);
    while guest.run_device_thread(50) {
        guest.settle();
    }
    assert_eq!(guest.tx.room(), 256);
    (socket, host)
}

#[test]
fn word_of_packets_taken_comes_with_the_next_packet() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = quiet_stream(&mut guest);
    let before = guest.interrupts;
    socket.send(&mut guest, b"ping");
    assert!(!guest.handle_interrupt());
    assert_eq!(guest.tx.room(), 254);
    host.write_all(b"pong").unwrap();
    guest.settle();
    assert_eq!(guest.inbox.len(), 1);
    assert_eq!(guest.tx.room(), 256);
    assert_eq!(guest.interrupts - before, 1);
}

#[test]
fn word_of_packets_taken_comes_soon_in_any_case() {
    let mut guest = Guest::new();
    let (mut socket, _host) = quiet_stream(&mut guest);
    for _ in 0..2 {
        socket.send(&mut guest, b"ping");
        assert!(!guest.handle_interrupt());
        assert!(guest.run_device_thread(5000));
        assert!(guest.handle_interrupt());
        assert_eq!(guest.tx.room(), 256);
        assert!(!guest.run_device_thread(50));
    }
}

#[test]
fn word_of_much_that_was_taken_comes_at_once() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = quiet_stream(&mut guest);
    socket.send(&mut guest, &vec![1; 64 * 1024]);
    assert!(guest.handle_interrupt());
    assert_eq!(guest.tx.room(), 256);
    assert_eq!(read_all(&mut host).0.len(), 64 * 1024);
    for _ in 0..31 {
        socket.send(&mut guest, b"two descriptors");
        assert!(!guest.handle_interrupt());
    }
    socket.send(&mut guest, b"two more");
    assert!(guest.handle_interrupt());
    assert_eq!(guest.tx.room(), 256);
}

#[test]
fn a_flood_is_served_in_rounds() {
    let mut guest = Guest::new();
    let (socket, mut host) = stream(&mut guest);
    // The device serves at most a ring full before it returns, and comes back by itself.
    for _ in 0..256 {
        let header = Header {
            len: 1,
            ..socket.header(Operation::ReadWrite, 0)
        };
        guest.layout = Layout::One;
        guest.post(&header, b"x");
    }
    guest.ring_tx();
    guest.settle();
    assert_eq!(guest.tx.room(), 256);
    assert_eq!(read_all(&mut host).0.len(), 256);
}
