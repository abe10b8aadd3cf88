//! What the fuzzers of `fuzz/` call: whatever the bytes are, nothing here may panic, take long or
//! take much memory. Not part of the library's interface; only there with the feature `fuzzing`.
#![allow(missing_docs, reason = "not part of the library's interface")]
#![allow(
    clippy::unwrap_used,
    reason = "the fuzzer's own set-up cannot go on without the host"
)]

mod machine;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use vm_memory::GuestAddress;

use crate::devices::virtio::balloon::{BalloonConfig, BalloonDevice};
use crate::devices::virtio::block::{BlockConfig, BlockDevice};
use crate::devices::virtio::entropy::EntropyDevice;
use crate::devices::virtio::network::NetworkDevice;
use crate::devices::virtio::vsock::{VsockConfig, VsockDevice};
use crate::memory::GuestMemory;
use machine::{Input, Machine};

/// A file that somebody says is a kernel.
pub fn kernel(data: &[u8]) {
    let mut file = data.to_vec();
    // A bzImage says how much it may unpack to. A little shows as much as a lot, and sooner.
    if let Some(init_size) = file.get_mut(0x260..0x264)
        && !data.starts_with(b"\x7fELF")
    {
        init_size.copy_from_slice(&0x10_0000u32.to_le_bytes());
    }
    let Ok(image) = crate::kernel::KernelImage::from_bytes(file) else {
        return;
    };
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
    let Ok(loaded) = image.load(&memory) else {
        return;
    };
    let rsdp = GuestAddress(0xE_0000);
    let initramfs = data[..data.len().min(5000)].to_vec().into();
    let _ = crate::arch::write_boot_structures(&memory, &loaded, &initramfs, "quiet", rsdp);
}

/// A guest with a disk. The first byte says whether it may write.
pub fn block(data: &[u8]) {
    let mut input = Input::new(data);
    let disk = memfd_create("disk", MFdFlags::MFD_CLOEXEC).unwrap();
    let disk = File::from(disk);
    disk.set_len(64 << 10).unwrap();
    let config = match input.u8() & 1 {
        0 => BlockConfig::read_only(disk),
        _ => BlockConfig::read_write(disk),
    };
    let device = BlockDevice::new(config).unwrap();
    Machine::new(Box::new(device)).run(&mut input, block_request, |_| {});
}

/// `struct virtio_blk_req` (virtio 1.2, 5.2.6), with data behind it.
fn block_request(input: &mut Input<'_>) -> Vec<u8> {
    let kind = u32::from(input.u8() % 16);
    let mut request = Vec::from(kind.to_le_bytes());
    request.extend(0u32.to_le_bytes());
    // The disk has 128 sectors.
    request.extend(u64::from(input.u8()).to_le_bytes());
    match input.u8() % 4 {
        0 => {}
        1 => request.extend(input.bytes()),
        2 => request.resize(16 + 512, 0x5A),
        // A range to discard or to write zeroes to.
        _ => {
            request.extend(u64::from(input.u8()).to_le_bytes());
            request.extend(u32::from(input.u8()).to_le_bytes());
            request.extend(u32::from(input.u8() % 3).to_le_bytes());
        }
    }
    request
}

/// A guest with an entropy device.
pub fn entropy(data: &[u8]) {
    let device = EntropyDevice::new().unwrap();
    let anything = |input: &mut Input<'_>| input.bytes().to_vec();
    Machine::new(Box::new(device)).run(&mut Input::new(data), anything, |_| {});
}

/// A guest with a balloon, whose target changes.
pub fn balloon(data: &[u8]) {
    let (device, handle) = BalloonDevice::new(BalloonConfig::default()).unwrap();
    // Numbers of pages, most of which the guest has.
    let pages = |input: &mut Input<'_>| {
        let pages = input.bytes().iter();
        pages
            .flat_map(|page| u32::from(*page).to_le_bytes())
            .collect()
    };
    Machine::new(Box::new(device)).run(&mut Input::new(data), pages, |input| {
        handle.set_target(u64::from(input.u32()) << 8);
        let _ = (handle.actual(), handle.reported());
    });
}

/// A guest with a network card, to which frames come.
pub fn network(data: &[u8]) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let mut ours = File::from(ours);
    let device = NetworkDevice::over_socket(theirs, [2, 0, 0, 0, 0, 1]).unwrap();
    Machine::new(Box::new(device)).run(&mut Input::new(data), network_frame, |input| {
        // Neither a full nor an empty socket is of interest.
        let _ = ours.write(input.bytes());
        let _ = ours.read(&mut [0; 2048]);
    });
}

/// `struct virtio_net_hdr` (virtio 1.2, 5.1.6) and a frame.
fn network_frame(input: &mut Input<'_>) -> Vec<u8> {
    let mut frame = vec![input.u8() % 4, input.u8() % 6];
    // Header length, segment size, and where the checksum begins and goes.
    for _ in 0..4 {
        frame.extend(u16::from(input.u8()).to_le_bytes());
    }
    frame.extend(0u16.to_le_bytes());
    frame.extend(input.bytes());
    frame
}

/// A guest with sockets, whose other ends are used meanwhile.
pub fn vsock(data: &[u8]) {
    /// Streams that the host keeps, the oldest first.
    type Streams = Arc<Mutex<VecDeque<UnixStream>>>;
    fn keep(streams: &Streams, stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        streams.lock().unwrap().push_back(stream);
    }

    let config = VsockConfig {
        max_streams: 8,
        buffer_bytes: 4096,
        ..VsockConfig::new(3)
    };
    let (device, handle) = VsockDevice::new(config).unwrap();
    let streams = Streams::default();
    for port in [1, 2] {
        let streams = Arc::clone(&streams);
        handle
            .listen(port, Box::new(move |stream| keep(&streams, stream)))
            .unwrap();
    }
    let mut machine = Machine::new(Box::new(device));
    machine.run(&mut Input::new(data), vsock_packet, |input| {
        let kept = streams.lock().unwrap().pop_front();
        match (input.u8() % 6, kept) {
            (0, kept) => {
                let done = Arc::clone(&streams);
                let done = move |result| {
                    if let Ok(stream) = result {
                        keep(&done, stream);
                    }
                };
                let _ = handle.connect(u32::from(input.u8()), Box::new(done));
                kept.into_iter().for_each(|stream| keep(&streams, stream));
            }
            (1, Some(stream)) => {
                let _ = (&stream).write(input.bytes());
                keep(&streams, stream);
            }
            (2, Some(stream)) => {
                let _ = (&stream).read(&mut [0; 4096]);
                keep(&streams, stream);
            }
            (3, Some(stream)) => {
                let _ = stream.shutdown(Shutdown::Write);
                keep(&streams, stream);
            }
            (4, Some(stream)) => {
                let _ = stream.shutdown(Shutdown::Read);
                keep(&streams, stream);
            }
            // The stream is dropped, if there was one.
            _ => {}
        }
    });
}

/// `struct virtio_vsock_hdr` (virtio 1.2, 5.10.6) from this guest to the host, and data.
fn vsock_packet(input: &mut Input<'_>) -> Vec<u8> {
    const GUEST: u64 = 3;
    const HOST: u64 = 2;
    const STREAM: u16 = 1;
    // Few ports, so that packets meet: those that the host listens at and connects from.
    let mut packet = Vec::new();
    packet.extend(GUEST.to_le_bytes());
    packet.extend(HOST.to_le_bytes());
    packet.extend(vsock_port(input).to_le_bytes());
    packet.extend(vsock_port(input).to_le_bytes());
    let (operation, flags) = (input.u8() % 9, input.u8() % 4);
    let (credit, used) = (input.u16(), input.u16());
    let data = input.bytes();
    packet.extend((data.len() as u32).to_le_bytes());
    packet.extend(STREAM.to_le_bytes());
    packet.extend(u16::from(operation).to_le_bytes());
    packet.extend(u32::from(flags).to_le_bytes());
    packet.extend(u32::from(credit).to_le_bytes());
    packet.extend(u32::from(used).to_le_bytes());
    packet.extend(data);
    packet
}

fn vsock_port(input: &mut Input<'_>) -> u32 {
    /// What the device gives a stream that the host opens first.
    const FIRST_HOST_PORT: u32 = 1 << 30;
    let port = input.u8();
    match port {
        0..192 => u32::from(port % 4),
        // Where the numbers of the host's own begin.
        _ => FIRST_HOST_PORT + u32::from(port % 4),
    }
}
