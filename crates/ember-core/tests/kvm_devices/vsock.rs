//! The socket device: streams both ways between host and guest.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Barrier, mpsc};
use std::thread;

use ember_vmm::devices::virtio::vsock::ConnectError;

use crate::machine::{Equipped, Machine, PATIENCE, Running, noise, sha256, shared};

const SERVER_PORT: u32 = 5000;
const LISTENER_PORT: u32 = 5001;
const NOBODYS_PORT: u32 = 5999;
const AMOUNT: usize = 1 << 20;

/// Serves every stream in a thread of its own. The first byte says how.
const SERVER: &str = r#"
import hashlib, os, socket, threading

def pieces(stream):
    return iter(lambda: stream.recv(1 << 16), b"")

def echo(stream):
    # The host ends its half first; after that there is still something to say.
    seen = hashlib.sha256()
    for piece in pieces(stream):
        seen.update(piece)
        stream.sendall(piece)
    stream.sendall(seen.hexdigest().encode())

def ends_first(stream):
    data = os.urandom(1 << 20)
    stream.sendall(data)
    stream.shutdown(socket.SHUT_WR)
    seen = hashlib.sha256(b"".join(pieces(stream)))
    # Nothing can be said here any more, so a stream the other way tells.
    call = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    call.connect((socket.VMADDR_CID_HOST, 5001))
    call.sendall((hashlib.sha256(data).hexdigest() + " " + seen.hexdigest()).encode())
    call.close()

def serve(stream):
    with stream:
        {b"e": echo, b"f": ends_first}[stream.recv(1)](stream)

server = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
server.bind((socket.VMADDR_CID_ANY, 5000))
server.listen(128)
print("ready", flush=True)
while True:
    stream, (cid, port) = server.accept()
    assert cid == socket.VMADDR_CID_HOST, cid
    threading.Thread(target=serve, args=(stream,)).start()
"#;

fn server(machine: &Machine) -> Running<'_> {
    let (server, line) = machine.start_python(SERVER);
    assert_eq!(line, "ready");
    server
}

fn connect(machine: &Machine) -> UnixStream {
    let stream = machine
        .vsock()
        .connect_blocking(SERVER_PORT, PATIENCE)
        .unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends all of `data` while it receives to the end.
fn exchange(mut stream: UnixStream, data: &[u8]) -> Vec<u8> {
    let mut sender = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            sender.write_all(b"e").unwrap();
            sender.write_all(data).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    })
}

#[test]
fn fifty_streams_at_once_keep_their_bytes_apart() {
    const STREAMS: usize = 50;
    let machine = &shared().machine;
    let _server = server(machine);
    // Each stream's data is another part of this.
    let all = noise(5, AMOUNT + STREAMS * 4096);
    let open = Barrier::new(STREAMS);
    thread::scope(|scope| {
        for stream in 0..STREAMS {
            let data = &all[stream * 4096..][..AMOUNT];
            let open = &open;
            scope.spawn(move || {
                let connected = connect(machine);
                open.wait();
                let received = exchange(connected, data);
                let (echo, digest) = received.split_at(AMOUNT.min(received.len()));
                assert!(echo == data, "stream {stream}: {} bytes", echo.len());
                assert_eq!(digest.len(), 64, "stream {stream}");
                // The rest would take longer than the streams.
                if stream == 0 {
                    assert_eq!(digest, sha256(data).as_bytes());
                }
            });
        }
    });
}

#[test]
fn the_guest_can_end_its_half_first_and_call_the_host() {
    calls_both_ways(shared());
}

pub(crate) fn calls_both_ways(equipped: &Equipped) {
    let machine = &equipped.machine;
    let vsock = machine.vsock();
    let (sender, calls) = mpsc::channel::<UnixStream>();
    let accept = Box::new(move |stream| drop(sender.send(stream)));
    vsock.listen(LISTENER_PORT, accept).unwrap();
    let _server = server(machine);

    let mut stream = connect(machine);
    stream.write_all(b"f").unwrap();
    let mut theirs = Vec::new();
    stream.read_to_end(&mut theirs).unwrap();
    assert_eq!(theirs.len(), AMOUNT);
    let ours = noise(6, AMOUNT);
    stream.write_all(&ours).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();

    let mut call = calls.recv_timeout(PATIENCE).unwrap();
    call.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut said = String::new();
    call.read_to_string(&mut said).unwrap();
    assert_eq!(said, format!("{} {}", sha256(&theirs), sha256(&ours)));
    vsock.unlisten(LISTENER_PORT);
}

#[test]
fn a_port_where_nobody_listens_is_refused_on_both_sides() {
    let machine = &shared().machine;
    let error = machine
        .vsock()
        .connect_blocking(NOBODYS_PORT, PATIENCE)
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::Refused { port: NOBODYS_PORT }),
        "{error:?}"
    );
    let printed = machine.python(
        r#"
import socket
call = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
try:
    call.connect((socket.VMADDR_CID_HOST, 5999))
except ConnectionError as error:
    print("refused")
"#,
    );
    assert_eq!(printed, "refused");
}
