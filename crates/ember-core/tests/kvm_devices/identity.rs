//! Randomness, and the generation id that says when to have other randomness.

use crate::machine::{Equipped, Machine, shared, wait_for};

/// How often the guest's kernel has said that it reseeded because it became another guest.
fn reseeded(machine: &Machine) -> usize {
    let program = r#"
import os
log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
count = 0
try:
    while True:
        count += b"crng reseeded due to virtual machine fork" in os.read(log, 8192)
except BlockingIOError:
    print(count)
"#;
    machine.python(program).parse().unwrap()
}

#[test]
fn a_new_generation_id_makes_the_guest_reseed() {
    reseeds_for_a_new_generation_id(shared());
}

pub(crate) fn reseeds_for_a_new_generation_id(equipped: &Equipped) {
    let machine = &equipped.machine;
    let id = machine.vm.generation_id().unwrap();
    assert_eq!(reseeded(machine), 0);
    id.set([2; 16]).unwrap();
    wait_for("reseeding", || reseeded(machine), |count| *count == 1);
    // The same once more is no news.
    id.set([2; 16]).unwrap();
    id.set([3; 16]).unwrap();
    wait_for("reseeding again", || reseeded(machine), |count| *count == 2);
}

#[test]
fn the_entropy_device_gives_bytes_that_are_not_constant() {
    has_entropy(shared());
}

pub(crate) fn has_entropy(equipped: &Equipped) {
    let printed = equipped.machine.python(
        r#"
import os
print(open("/sys/class/misc/hw_random/rng_current").read().strip())
source = os.open("/dev/hwrng", os.O_RDONLY)
def take(size):
    data = b""
    while len(data) < size:
        data += os.read(source, size - len(data))
    return data
first, second = take(4096), take(4096)
assert first != second
# 4096 random bytes lack each value with a chance of one in ten million.
print(min(len(set(first)), len(set(second))) > 250)
"#,
    );
    assert_eq!(printed, "virtio_rng.0\nTrue");
}
