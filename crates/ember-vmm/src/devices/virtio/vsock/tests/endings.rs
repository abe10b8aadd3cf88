//! How streams end: one direction at a time or both, by the guest, the host, or with the device.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::Duration;

use super::super::packet::{Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::{ConnectError, ListenError, VsockClosed, VsockConfig};
use super::guest::{CID, Guest, Socket};
use super::{another_stream, host_connect, listen, read_all, stream, streams};

#[test]
fn the_guest_closes_its_sending_half() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    socket.send(&mut guest, b"last words");
    socket.control(&mut guest, Operation::Shutdown, SHUTDOWN_SEND);
    assert_eq!(read_all(&mut host), (b"last words".to_vec(), true));
    // The other direction goes on.
    host.write_all(b"and yet").unwrap();
    guest.settle();
    socket.take_in(&mut guest);
    assert_eq!(socket.received, b"and yet");
    // Until the host is done, too.
    drop(host);
    let (shutdown, _) = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
    socket.control(&mut guest, Operation::Reset, 0);
    guest.expect_nothing();
    assert_eq!(streams(&guest), 0);
}

#[test]
fn the_guest_closes_its_sending_half_while_the_host_lags() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    let mut sent = 0;
    while usize::try_from(socket.credit()).unwrap() >= 10_000 {
        socket.send(&mut guest, &[1; 10_000]);
        sent += 10_000;
        guest.settle();
        socket.take_in(&mut guest);
    }
    socket.control(&mut guest, Operation::Shutdown, SHUTDOWN_SEND);
    let mut received = 0;
    loop {
        let (bytes, end) = read_all(&mut host);
        received += bytes.len();
        if end {
            break;
        }
        assert!(guest.step() || !bytes.is_empty(), "stuck");
    }
    assert_eq!(received, sent);
}

#[test]
fn the_guest_closes_its_receiving_half() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    socket.control(&mut guest, Operation::Shutdown, SHUTDOWN_RECEIVE);
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    socket.send(&mut guest, b"data");
    assert_eq!(read_all(&mut host), (b"data".to_vec(), false));
    assert!(!guest.run_device_thread(0));
}

#[test]
fn the_host_closes_its_sending_half() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    host.write_all(b"end").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"end");
    let (shutdown, _) = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags, SHUTDOWN_SEND);
    socket.send(&mut guest, b"more");
    assert_eq!(read_all(&mut host), (b"more".to_vec(), false));
    // Both directions are over when the guest has sent all: it is to confirm that.
    socket.control(&mut guest, Operation::Shutdown, SHUTDOWN_SEND);
    assert!(read_all(&mut host).1);
    let (shutdown, _) = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
    socket.control(&mut guest, Operation::Reset, 0);
    assert_eq!(streams(&guest), 0);
}

#[test]
fn the_host_closes_its_receiving_half() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    host.shutdown(Shutdown::Read).unwrap();
    socket.send(&mut guest, b"nobody reads this");
    let (shutdown, _) = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags, SHUTDOWN_RECEIVE);
    host.write_all(b"still sending").unwrap();
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"still sending");
    drop(host);
    let (shutdown, _) = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
}

#[test]
fn the_guest_closes() {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 1024);
    let (mut socket, mut host) = another_stream(&mut guest, &accepted, 5000);
    socket.send(&mut guest, b"bye");
    socket.control(&mut guest, Operation::Shutdown, SHUTDOWN_BOTH);
    guest.expect(Operation::Reset);
    assert_eq!(read_all(&mut host), (b"bye".to_vec(), true));
    assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(streams(&guest), 0);
    // Its port can be used again.
    another_stream(&mut guest, &accepted, 5000);
}

#[test]
fn the_guest_closes_or_resets_while_the_host_lags_and_nothing_is_lost() {
    for (operation, flags) in [(Operation::Shutdown, SHUTDOWN_BOTH), (Operation::Reset, 0)] {
        let mut guest = Guest::new();
        let accepted = listen(&mut guest, 1024);
        let (mut socket, mut host) = another_stream(&mut guest, &accepted, 5000);
        let mut sent = 0;
        while usize::try_from(socket.credit()).unwrap() >= 10_000 {
            socket.send(&mut guest, &[1; 10_000]);
            sent += 10_000;
            guest.settle();
            socket.take_in(&mut guest);
        }
        socket.control(&mut guest, operation, flags);
        if operation == Operation::Shutdown {
            guest.expect(Operation::Reset);
        }
        guest.expect_nothing();
        assert_eq!(streams(&guest), 1);
        // The same ports serve another stream meanwhile.
        let (mut other, _other_host) = another_stream(&mut guest, &accepted, 5000);
        other.send(&mut guest, b"new");
        let mut received = 0;
        loop {
            let (bytes, end) = read_all(&mut host);
            received += bytes.len();
            if end {
                break;
            }
            assert!(guest.step() || !bytes.is_empty(), "stuck");
        }
        assert_eq!(received, sent);
        assert_eq!(streams(&guest), 1);
        other.control(&mut guest, Operation::CreditRequest, 0);
        guest.expect(Operation::CreditUpdate);
    }
}

#[test]
fn the_guest_closes_without_taking_all_and_the_host_sees_a_clean_end() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    socket.buf_alloc = 10;
    socket.send(&mut guest, b"all I say");
    host.write_all(&vec![0; 50_000]).unwrap();
    guest.settle();
    socket.control(&mut guest, Operation::Shutdown, SHUTDOWN_BOTH);
    assert_eq!(read_all(&mut host), (b"all I say".to_vec(), true));
}

#[test]
fn the_guest_resets() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    socket.send(&mut guest, b"oops");
    socket.control(&mut guest, Operation::Reset, 0);
    guest.expect_nothing();
    assert_eq!(read_all(&mut host), (b"oops".to_vec(), true));
    assert_eq!(streams(&guest), 0);
}

#[test]
fn the_host_closes() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    host.write_all(b"bye").unwrap();
    drop(host);
    assert_eq!(guest.expect(Operation::ReadWrite).1, b"bye");
    let (shutdown, _) = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
    assert_eq!(streams(&guest), 1);
    assert!(
        !guest.run_device_thread(0),
        "a hang-up is reported only once"
    );
    // What the guest sent before it knew is dropped without a word.
    socket.send(&mut guest, b"too late");
    guest.expect_nothing();
    socket.control(&mut guest, Operation::Reset, 0);
    guest.expect_nothing();
    assert_eq!(streams(&guest), 0);
}

#[test]
fn the_host_closes_with_unread_data_and_the_guest_without_buffers() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = stream(&mut guest);
    socket.send(&mut guest, b"never read");
    guest.refills = false;
    host.write_all(&vec![3; 100_000]).unwrap();
    drop(host);
    guest.settle();
    let mut data = 0;
    let mut shutdown = 0;
    while shutdown != SHUTDOWN_BOTH {
        let refilled = guest.refill(5);
        guest.settle();
        assert!(!guest.inbox.is_empty() || refilled == 0, "stuck");
        for (header, bytes) in guest.inbox.drain(..) {
            data += bytes.len();
            shutdown |= header.flags;
        }
    }
    assert_eq!(data, 100_000);
}

#[test]
fn a_guest_that_never_confirms_the_end_is_forgotten() {
    let mut guest = Guest::configured(VsockConfig {
        close_timeout: Duration::from_millis(20),
        ..VsockConfig::new(CID)
    });
    let (_socket, host) = stream(&mut guest);
    drop(host);
    guest.expect(Operation::Shutdown);
    assert_eq!(streams(&guest), 1);
    assert!(guest.run_device_thread(5000));
    guest.expect(Operation::Reset);
    assert_eq!(streams(&guest), 0);
}

#[test]
fn a_driver_reset_ends_streams_and_keeps_listeners() {
    let mut guest = Guest::new();
    let accepted = listen(&mut guest, 1024);
    Socket::connect(&mut guest, 5000, 1024);
    let mut host = accepted.try_recv().unwrap();
    let pending = host_connect(&mut guest, 22);
    guest.reset();
    assert!(read_all(&mut host).1);
    assert_eq!(streams(&guest), 0);
    guest.run_device_thread(0);
    assert!(matches!(
        pending.try_recv().unwrap(),
        Err(ConnectError::Reset { port: 22 })
    ));
    let early = host_connect(&mut guest, 22);
    assert!(matches!(
        early.try_recv().unwrap(),
        Err(ConnectError::NotReady { port: 22 })
    ));
    guest.start();
    guest.expect_nothing();
    let mut socket = Socket::connect(&mut guest, 5000, 1024);
    let mut host = accepted.try_recv().unwrap();
    socket.send(&mut guest, b"back again");
    assert_eq!(read_all(&mut host).0, b"back again");
}

#[test]
fn after_the_device_is_gone_handles_say_so() {
    let mut guest = Guest::new();
    let (_socket, mut host) = stream(&mut guest);
    let pending = host_connect(&mut guest, 22);
    let handle = guest.handle.clone();
    // A command that was not carried out yet is answered, too.
    let (sender, waiting) = mpsc::channel();
    handle
        .connect(23, Box::new(move |result| drop(sender.send(result))))
        .unwrap();
    drop(guest);
    for receiver in [pending, waiting] {
        assert!(matches!(
            receiver.try_recv().unwrap(),
            Err(ConnectError::Closed)
        ));
    }
    assert!(read_all(&mut host).1);
    assert_eq!(handle.connect(1, Box::new(drop)), Err(VsockClosed));
    assert!(matches!(
        handle.connect_blocking(1, Duration::from_secs(1)),
        Err(ConnectError::Closed)
    ));
    assert_eq!(handle.listen(1, Box::new(drop)), Err(ListenError::Closed));
    handle.unlisten(1024);
}

#[test]
fn a_write_to_a_closed_end_raises_no_signal() {
    use nix::sys::signal::{SigSet, Signal};

    // A blocked signal stays pending where it can be seen, even if the process ignores it.
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    pipe.thread_block().unwrap();
    let mut guest = Guest::new();
    let (mut socket, host) = stream(&mut guest);
    drop(host);
    socket.send(&mut guest, b"to nobody");
    guest.expect(Operation::Shutdown);
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let pending = status
        .lines()
        .find_map(|line| line.strip_prefix("SigPnd:"))
        .unwrap();
    assert_eq!(u64::from_str_radix(pending.trim(), 16).unwrap(), 0);
}
