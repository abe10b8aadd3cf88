//! A snapshot with something different in every field.

use std::time::{Duration, SystemTime};

use serde_bytes::ByteBuf;

use crate::format::{Artefact, Contents, CpuRequirements, Manifest};
use crate::memory::{MemoryBuilder, MemoryImage};
use crate::pages::{PAGE_SIZE, PageRun};
use crate::state::{
    BalloonState, BlockState, ChipState, ClockState, ConnectionState, CpuidEntry, DeviceState,
    KvmBytes, Msr, NetworkState, PhaseState, QueueState, SerialState, TransportState, VcpuState,
    VirtioState, VmState, VsockState,
};
use crate::working_set::WorkingSet;

pub(super) const PAGES: u64 = 8;

/// Bytes that are not all the same.
fn bytes<const N: usize>(seed: u8) -> [u8; N] {
    std::array::from_fn(|index| seed.wrapping_add((index % 7) as u8))
}

fn kvm<const N: usize>(seed: u8) -> KvmBytes<N> {
    KvmBytes::new(bytes(seed))
}

fn vcpu(seed: u8) -> VcpuState {
    VcpuState {
        mp_state: 3,
        regs: kvm(seed),
        sregs: kvm(seed + 1),
        xsave: ByteBuf::from(bytes::<4096>(seed + 2).to_vec()),
        xcrs: kvm(seed + 3),
        debugregs: kvm(seed + 4),
        lapic: kvm(seed + 5),
        events: kvm(seed + 6),
        tsc_khz: 2_400_000,
        cpuid: vec![CpuidEntry {
            function: 0x8000_0001,
            index: 1,
            flags: 2,
            eax: 3,
            ebx: 4,
            ecx: 5,
            edx: 6,
        }],
        msrs: vec![Msr {
            index: 0x6e0,
            value: u64::MAX,
        }],
    }
}

fn device(seed: u32, device: DeviceState) -> VirtioState {
    let address = u64::from(seed) << 12;
    VirtioState {
        transport: TransportState {
            status: seed,
            interrupt_status: 1,
            active: true,
            broken: false,
            device_features_select: 1,
            driver_features_select: 0,
            driver_features: 1 << 32,
            queue_select: 2,
        },
        queues: vec![QueueState {
            size: 256,
            ready: true,
            descriptor_table: address,
            available_ring: address + 1,
            used_ring: address + 2,
            next_available: 0xfffe,
            next_used: 0xffff,
            announced: 0xfffd,
        }],
        device,
    }
}

fn vsock() -> VsockState {
    let connection = |phase, seed| ConnectionState {
        guest_port: seed,
        host_port: seed + 1,
        phase,
        guest_shutdown: 1,
        host_shutdown: 2,
        told_shutdown: 3,
        owes_request: true,
        owes_response: false,
        owes_credit_update: true,
        asked_for_credit: false,
        buffer_bytes: 262_144,
        received: seed + 2,
        forwarded: seed + 3,
        told: seed + 4,
        peer_buffer_bytes: seed + 5,
        peer_forwarded: seed + 6,
        sent: u32::MAX,
        backlog: ByteBuf::from(b"backlog".to_vec()),
    };
    VsockState {
        guest_cid: 3,
        next_port: 0x4000_0000,
        connections: vec![
            connection(PhaseState::Connecting, 100),
            connection(PhaseState::Open, 200),
            connection(PhaseState::Closing, 300),
        ],
        answers: vec![ByteBuf::from(bytes::<44>(9).to_vec())],
    }
}

pub(super) fn state() -> VmState {
    VmState {
        memory_bytes: PAGES * PAGE_SIZE,
        vcpus: vec![vcpu(10), vcpu(20)],
        chips: ChipState {
            pic_master: kvm(30),
            pic_slave: kvm(31),
            ioapic: kvm(32),
        },
        clock: ClockState {
            nanoseconds: 1_234_567_890_123,
        },
        serial: SerialState {
            baud_divisor_low: 12,
            baud_divisor_high: 1,
            interrupt_enable: 2,
            interrupt_identification: 3,
            line_control: 4,
            line_status: 5,
            modem_control: 6,
            modem_status: 7,
            scratch: 8,
            in_buffer: ByteBuf::from(b"input".to_vec()),
        },
        generation_id: true,
        virtio: vec![
            device(
                1,
                DeviceState::Block(BlockState {
                    sectors: 77,
                    read_only: true,
                    serial: "disk-0".to_owned(),
                }),
            ),
            device(2, DeviceState::Vsock(vsock())),
            device(3, DeviceState::Network(NetworkState { mac: bytes(2) })),
            device(4, DeviceState::Entropy),
            device(
                5,
                DeviceState::Balloon(BalloonState {
                    target_pages: 6,
                    actual_pages: 7,
                    deflate_on_oom: true,
                    free_page_reporting: true,
                }),
            ),
        ],
    }
}

pub(super) fn contents() -> Contents {
    let run = |start, pages| PageRun::new(start, pages).unwrap();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let artefact = |name: &str| Artefact {
        name: name.to_owned(),
        digest: format!("sha256:{}", "ab".repeat(32)),
    };
    Contents {
        manifest: Manifest {
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            created_by: "ember 0.1.0".to_owned(),
            architecture: "x86_64".to_owned(),
            vcpus: 2,
            memory_bytes: PAGES * PAGE_SIZE,
            memory_hash: None,
            kernel: Some(artefact("vmlinux")),
            images: vec![artefact("python"), artefact("data")],
            cpu: CpuRequirements {
                vendor: Some("AuthenticAMD".to_owned()),
                features: names(&["avx2", "sse4_2"]),
                capabilities: names(&["KVM_CAP_XSAVE2"]),
            },
            parent: None,
            built_from: [("warm_up".to_owned(), "import numpy".to_owned())].into(),
        },
        state: state(),
        guest: b"what the layers above know".to_vec(),
        working_set: Some(WorkingSet {
            written: [run(0, 1), run(3, 2)].into_iter().collect(),
            read: [run(7, 1)].into_iter().collect(),
        }),
    }
}

/// A memory with one value a page.
pub(super) fn image(values: [u8; PAGES as usize]) -> MemoryImage {
    let mut builder = MemoryBuilder::new(PAGES * PAGE_SIZE).unwrap();
    for (offset, value) in (0..).step_by(PAGE_SIZE as usize).zip(values) {
        builder.write(offset, &[value; PAGE_SIZE as usize]).unwrap();
    }
    builder.seal().unwrap()
}

pub(super) fn base_image() -> MemoryImage {
    image([0, 1, 0, 2, 3, 0, 0, 0])
}

pub(super) fn diff_image() -> MemoryImage {
    image([0, 1, 9, 2, 0, 0, 0, 0])
}
