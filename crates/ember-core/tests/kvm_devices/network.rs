//! The network card, on a TAP interface of the host.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

use crate::machine::{Equipped, GUEST_MAC, PATIENCE, noise, sha256, shared};

/// Gives eth0 its address, as `ip` would, and sends and receives at the same time.
const GUEST: &str = r#"
import fcntl, hashlib, os, socket, struct, threading
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def set_address(request, address):
    address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
    fcntl.ioctl(control, request, struct.pack("16s24s", b"eth0", address))
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS = 0x8916, 0x891C, 0x8914
set_address(SIOCSIFADDR, "GUEST_ADDRESS")
set_address(SIOCSIFNETMASK, "255.255.255.252")
IFF_UP = 1
fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", b"eth0", IFF_UP))

stream = socket.create_connection(("HOST_ADDRESS", PORT), timeout=60)
data = os.urandom(AMOUNT)
def send():
    stream.sendall(data)
    stream.shutdown(socket.SHUT_WR)
sender = threading.Thread(target=send)
sender.start()
received = b"".join(iter(lambda: stream.recv(1 << 16), b""))
sender.join()
print(hashlib.sha256(data).hexdigest(), hashlib.sha256(received).hexdigest())
print(open("/sys/class/net/eth0/address").read())
"#;

#[test]
fn tcp_goes_both_ways_at_once_and_nothing_is_lost() {
    carries_tcp_both_ways(shared(), 8 << 20);
}

pub(crate) fn carries_tcp_both_ways(equipped: &Equipped, amount: usize) {
    let (host_address, guest_address) = (equipped.host_address, equipped.guest_address);
    let listener = TcpListener::bind((host_address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let data = noise(4, amount);
    let program = GUEST
        .replace("GUEST_ADDRESS", &guest_address.to_string())
        .replace("HOST_ADDRESS", &host_address.to_string())
        .replace("PORT", &port.to_string())
        .replace("AMOUNT", &amount.to_string());

    let (printed, received) = thread::scope(|scope| {
        let data = &data;
        let host = scope.spawn(move || {
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), guest_address);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut sender = stream.try_clone().unwrap();
            thread::scope(|scope| {
                scope.spawn(move || {
                    sender.write_all(data).unwrap();
                    sender.shutdown(Shutdown::Write).unwrap();
                });
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                received
            })
        });
        let printed = equipped.machine.python(&program);
        (printed, host.join().unwrap())
    });

    assert_eq!(received.len(), amount);
    let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let expected = format!("{} {}\n{mac}", sha256(&received), sha256(&data));
    assert_eq!(printed, expected);
}
