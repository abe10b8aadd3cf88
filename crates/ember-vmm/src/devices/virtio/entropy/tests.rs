use super::EntropyDevice;
use crate::devices::virtio::testing::{BUFFERS, Driver, HIGH_START, LOW_END};

fn driver() -> Driver<EntropyDevice> {
    Driver::new(EntropyDevice::new().unwrap())
}

#[test]
fn fills_the_buffers_and_no_more() {
    let mut driver = driver();
    driver.add(0, &[], &[(LOW_END - 64, 64), (HIGH_START, 64)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(0, 128)]);
    let low = driver.read(LOW_END - 64, 64);
    let high = driver.read(HIGH_START, 64);
    // Each would be equal by chance once in 2^512 runs.
    assert_ne!(low, [0; 64]);
    assert_ne!(high, [0; 64]);
    assert_ne!(low, high);
    assert_eq!(driver.read(LOW_END - 128, 64), [0; 64]);
    assert_eq!(driver.read(HIGH_START + 64, 64), [0; 64]);
}

#[test]
fn a_request_gets_a_bounded_amount() {
    let mut driver = driver();
    driver.add(0, &[], &[(BUFFERS, 1 << 20)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(0, 4096)]);
    assert_eq!(driver.read(BUFFERS + 4096, 4096), [0; 4096]);
    assert_ne!(driver.read(BUFFERS + 4064, 32), [0; 32]);
}

#[test]
fn an_empty_request_gets_nothing() {
    let mut driver = driver();
    driver.add(0, &[(BUFFERS, 100)], &[]);
    driver.add(0, &[], &[(BUFFERS, 0)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(0, 0), (1, 0)]);
}

#[test]
fn a_buffer_outside_memory_stops_the_device_until_reset() {
    let mut driver = driver();
    driver.add(0, &[], &[(LOW_END, 16)]);
    driver.add(0, &[], &[(BUFFERS, 16)]);
    driver.kick(0);
    assert!(driver.used(0).is_empty());

    crate::devices::virtio::VirtioDevice::reset(&mut driver.device);
    driver.activate(0, u32::MAX).unwrap();
    driver.add(0, &[], &[(BUFFERS, 16)]);
    driver.kick(0);
    assert_eq!(driver.used(0), [(0, 16)]);
}
