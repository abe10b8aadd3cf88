//! Real TAP interfaces. Needs `/dev/net/tun` and the right to create interfaces, so it runs where
//! the tests that need KVM do.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use ember_net::{HEADER_SIZE, Tap, TapError};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x42];

fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

#[test]
fn an_interface_lives_as_long_as_its_descriptor() {
    let tap = Tap::create(None).unwrap();
    let name = tap.name().to_owned();
    assert!(exists(&name), "{name}");
    drop(tap);
    assert!(!exists(&name), "{name} was left behind");

    let tap = Tap::create(Some("ember-test0")).unwrap();
    assert_eq!(tap.name(), "ember-test0");
    let descriptor = tap.into_fd();
    assert!(exists("ember-test0"));
    drop(descriptor);
    assert!(!exists("ember-test0"));
}

#[test]
fn a_name_is_not_taken_over() {
    let _tap = Tap::create(Some("ember-test1")).unwrap();
    let error = Tap::create(Some("ember-test1")).unwrap_err();
    assert!(
        matches!(&error, TapError::Taken(name) if name == "ember-test1"),
        "{error:?}"
    );
    // Nor that of an interface of another kind.
    Tap::create(Some("lo")).unwrap_err();
    assert!(exists("lo"));
}

#[test]
fn a_prefix_has_at_most_32_bits() {
    let tap = Tap::create(None).unwrap();
    let error = tap
        .set_address(Ipv4Addr::new(198, 18, 0, 1), 33)
        .unwrap_err();
    assert!(matches!(error, TapError::Prefix(33)), "{error:?}");
    for prefix in [0, 1, 24, 31, 32] {
        tap.set_address(Ipv4Addr::new(198, 18, 0, 1), prefix)
            .unwrap();
    }
}

#[test]
fn the_host_answers_through_the_interface() {
    let host = Ipv4Addr::new(198, 18, 7, 1);
    let guest = Ipv4Addr::new(198, 18, 7, 2);
    let tap = Tap::create(None).unwrap();
    tap.set_address(host, 30).unwrap();
    tap.bring_up().unwrap();
    let mut wire = File::from(tap.as_fd().try_clone_to_owned().unwrap());

    // Who has the host's address?
    let mut request = Vec::new();
    request.extend([0; HEADER_SIZE]);
    request.extend([0xff; 6]);
    request.extend(GUEST_MAC);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(GUEST_MAC);
    request.extend(guest.octets());
    request.extend([0; 6]);
    request.extend(host.octets());
    assert_eq!(wire.write(&request).unwrap(), request.len());
    // An answer (2), to this card.
    let reply = receive(&mut wire, |frame| {
        frame[12..14] == [8, 6] && frame[20..22] == [0, 2]
    });
    assert_eq!(reply[..6], GUEST_MAC);
    assert_eq!(reply[28..32], host.octets());
    let host_mac = &reply[6..12];

    // An echo request, without its checksum: the host is asked to fill it in.
    // The virtio header: a checksum is needed (1) from byte 34 on, to be put 2 bytes behind that.
    let mut echo = vec![1, 0, 0, 0, 0, 0, 34, 0, 2, 0, 0, 0];
    echo.extend(host_mac);
    echo.extend(GUEST_MAC);
    echo.extend([8, 0]);
    let mut ip = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0];
    ip.extend(guest.octets());
    ip.extend(host.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    echo.extend(&ip);
    echo.extend([8, 0, 0, 0, 0x12, 0x34, 0, 1, b'e', b'm', b'b', b'r']);
    assert_eq!(wire.write(&echo).unwrap(), echo.len());
    let reply = receive(&mut wire, |frame| frame[12..14] == [8, 0] && frame[23] == 1);
    assert_eq!(reply[34..36], [0, 0], "an echo reply");
    assert_eq!(reply[38..46], echo[HEADER_SIZE + 38..HEADER_SIZE + 46]);
    assert_eq!(checksum(&reply[34..46]), [0, 0]);
}

/// The next frame without its header that `wanted` is true of.
fn receive(wire: &mut File, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut bytes = [0; 2048];
    loop {
        match wire.read(&mut bytes) {
            Ok(length) if wanted(&bytes[HEADER_SIZE..length]) => {
                return bytes[HEADER_SIZE..length].to_vec();
            }
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                assert!(Instant::now() < deadline, "no answer");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The checksum of the Internet protocols.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
