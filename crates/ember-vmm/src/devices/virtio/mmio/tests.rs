//! Drives the transport as a driver does, through its registers only.

use std::sync::Mutex as StdMutex;

use ember_snapshot::state::DeviceState;
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::super::{ActivateError, Activation};
use super::*;
use crate::devices::virtio::queue::Active;

#[derive(Debug, Default)]
struct Seen {
    activations: Vec<u64>,
    notified: Vec<usize>,
    resets: usize,
    config: [u8; 8],
}

#[derive(Debug)]
struct TestDevice(Arc<StdMutex<Seen>>);

const QUEUES: [u16; 2] = [16, 8];
const FEATURES: u64 = 0b101 | (1 << VIRTIO_RING_F_EVENT_IDX);

impl VirtioDevice for TestDevice {
    fn name(&self) -> &'static str {
        "test"
    }

    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.0.lock().unwrap().config;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = config.get(offset as usize + index).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Some(place) = self
            .0
            .lock()
            .unwrap()
            .config
            .get_mut(offset as usize..offset as usize + data.len())
        {
            place.copy_from_slice(data);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if !activation.queues[0].ready() {
            return Err(ActivateError::QueueNotReady(0));
        }
        self.0.lock().unwrap().activations.push(activation.features);
        Ok(())
    }

    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }

    fn queue_notified(&mut self, index: usize) {
        self.0.lock().unwrap().notified.push(index);
    }

    fn active(&self) -> Option<&Active> {
        None
    }

    fn save(&self) -> DeviceState {
        DeviceState::Entropy
    }

    fn restore(&mut self, _saved: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

fn transport() -> (MmioTransport, Arc<StdMutex<Seen>>) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let seen = Arc::new(StdMutex::new(Seen::default()));
    let transport = MmioTransport::new(Box::new(TestDevice(Arc::clone(&seen))), memory).unwrap();
    (transport, seen)
}

fn read(transport: &MmioTransport, register: u32) -> u32 {
    let mut data = [0xaa; 4];
    transport.read(u64::from(register), &mut data);
    u32::from_le_bytes(data)
}

fn write(transport: &MmioTransport, register: u32, value: u32) {
    transport.write(u64::from(register), &value.to_le_bytes());
}

fn negotiate(transport: &MmioTransport, features: u64) -> u32 {
    for status in [1, 3] {
        write(transport, reg::VIRTIO_MMIO_STATUS, status);
    }
    for select in [0, 1] {
        write(transport, reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        write(
            transport,
            reg::VIRTIO_MMIO_DRIVER_FEATURES,
            feature_word(features, select),
        );
    }
    write(transport, reg::VIRTIO_MMIO_STATUS, 0xb);
    read(transport, reg::VIRTIO_MMIO_STATUS)
}

fn set_up_queue(transport: &MmioTransport, index: u32, size: u32, base: u32) {
    write(transport, reg::VIRTIO_MMIO_QUEUE_SEL, index);
    write(transport, reg::VIRTIO_MMIO_QUEUE_NUM, size);
    write(transport, reg::VIRTIO_MMIO_QUEUE_DESC_LOW, base);
    write(transport, reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, base + 0x1000);
    write(transport, reg::VIRTIO_MMIO_QUEUE_USED_LOW, base + 0x2000);
    write(transport, reg::VIRTIO_MMIO_QUEUE_READY, 1);
}

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

#[test]
fn a_driver_that_follows_the_rules_gets_an_active_device() {
    let (transport, seen) = transport();
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_MAGIC_VALUE), MAGIC);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_DEVICE_ID), 42);
    write(&transport, reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_DEVICE_FEATURES), 1);
    write(&transport, reg::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 8);
    write(&transport, reg::VIRTIO_MMIO_QUEUE_SEL, 2);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);

    assert_eq!(negotiate(&transport, VERSION_1 | 1), 0xb);
    set_up_queue(&transport, 0, 16, 0x10000);
    set_up_queue(&transport, 1, 8, 0x20000);
    transport.notified();
    assert!(
        seen.lock().unwrap().notified.is_empty(),
        "a doorbell before DRIVER_OK counts for nothing"
    );
    write(&transport, reg::VIRTIO_MMIO_STATUS, 0xf);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_STATUS), 0xf);
    assert_eq!(seen.lock().unwrap().activations, [VERSION_1 | 1]);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_QUEUE_READY), 1);

    transport.ready(DOORBELL_TOKEN, EventSet::IN);
    // One doorbell for all queues.
    assert_eq!(seen.lock().unwrap().notified, [0, 1]);

    write(&transport, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_STATUS), 0);
    transport.notified();
    let seen = seen.lock().unwrap();
    assert_eq!((seen.resets, seen.notified.len()), (1, 2));
}

#[test]
fn a_device_can_be_activated_again_after_a_reset() {
    let (transport, seen) = transport();
    for _ in 0..3 {
        negotiate(&transport, VERSION_1);
        set_up_queue(&transport, 0, 16, 0x10000);
        write(&transport, reg::VIRTIO_MMIO_STATUS, 0xf);
        write(&transport, reg::VIRTIO_MMIO_STATUS, 0);
    }
    assert_eq!(seen.lock().unwrap().activations.len(), 3);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let (transport, _) = transport();
    assert_eq!(negotiate(&transport, VERSION_1 | 0b10) & 8, 0);
    write(&transport, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(negotiate(&transport, 1) & 8, 0, "the legacy interface");
    write(&transport, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(negotiate(&transport, VERSION_1) & 8, 8);
}

#[test]
fn a_broken_queue_needs_a_reset_and_says_so() {
    let (transport, seen) = transport();
    negotiate(&transport, VERSION_1);
    // The descriptor table reaches beyond the memory's end.
    set_up_queue(&transport, 0, 16, (1 << 20) - 0x10);
    write(&transport, reg::VIRTIO_MMIO_STATUS, 0xf);
    assert_ne!(
        read(&transport, reg::VIRTIO_MMIO_STATUS) & status::NEEDS_RESET,
        0
    );
    assert_eq!(
        read(&transport, reg::VIRTIO_MMIO_INTERRUPT_STATUS),
        reg::VIRTIO_MMIO_INT_CONFIG
    );
    write(
        &transport,
        reg::VIRTIO_MMIO_INTERRUPT_ACK,
        reg::VIRTIO_MMIO_INT_CONFIG,
    );
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert!(seen.lock().unwrap().activations.is_empty());
}

#[test]
fn steps_out_of_order_do_nothing() {
    let (transport, seen) = transport();
    write(&transport, reg::VIRTIO_MMIO_STATUS, 0xf & !1);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_STATUS), 0);
    // Queues before the features are agreed on.
    set_up_queue(&transport, 0, 16, 0x10000);
    assert_eq!(read(&transport, reg::VIRTIO_MMIO_QUEUE_READY), 0);
    assert!(seen.lock().unwrap().activations.is_empty());
}

#[test]
fn configuration_space_is_bounded() {
    let (transport, seen) = transport();
    transport.write(0x100, &[7; 4]);
    assert_eq!(seen.lock().unwrap().config, [0; 8], "no driver yet");
    negotiate(&transport, VERSION_1);
    transport.write(0x100, &[7; 4]);
    let mut data = [9; 8];
    transport.read(0x102, &mut data);
    assert_eq!(data, [7, 7, 0, 0, 0, 0, 0, 0]);
    transport.read(0xff8, &mut data);
    assert_eq!(data, [0; 8]);
}

proptest! {
    /// Whatever a driver writes, in whatever order and width, the transport survives and still
    /// works for a driver that follows the rules afterwards.
    #[test]
    fn random_register_accesses_do_no_harm(
        accesses in prop::collection::vec((0u64..0x110, any::<u32>(), 0usize..9, any::<bool>()), 0..200)
    ) {
        let (transport, _) = transport();
        for (offset, value, width, is_write) in accesses {
            // Mostly small values: those are the ones that mean something.
            let value = if value % 3 == 0 { value } else { value % 32 };
            let mut data = [0; 8];
            data[..4].copy_from_slice(&value.to_le_bytes());
            if is_write {
                transport.write(offset, &data[..width]);
            } else {
                transport.read(offset, &mut data[..width]);
            }
            transport.ready(DOORBELL_TOKEN, EventSet::IN);
        }
        write(&transport, reg::VIRTIO_MMIO_STATUS, 0);
        prop_assert_eq!(negotiate(&transport, VERSION_1), 0xb);
        set_up_queue(&transport, 0, 16, 0x10000);
        write(&transport, reg::VIRTIO_MMIO_STATUS, 0xf);
        prop_assert_eq!(read(&transport, reg::VIRTIO_MMIO_STATUS), 0xf);
    }
}
