//! The balloon: memory that goes back to the host.

use std::fs;

use crate::machine::{Equipped, Machine, shared, wait_for};

const MIB: u64 = 1 << 20;

fn available(machine: &Machine) -> u64 {
    let program = r#"
for line in open("/proc/meminfo"):
    if line.startswith("MemAvailable:"):
        print(int(line.split()[1]) << 10)
"#;
    machine.python(program).parse().unwrap()
}

/// How much memory this process, and with it the guest, has of the host's.
fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn the_guest_follows_the_target_and_gets_its_memory_back() {
    follows_its_target(shared());
}

pub(crate) fn follows_its_target(equipped: &Equipped) {
    let machine = &equipped.machine;
    let balloon = machine.vm.balloon().unwrap();
    let size = 32 * MIB;
    let before = available(machine);

    balloon.set_target(size);
    wait_for("inflating", || balloon.actual(), |now| *now == size);
    // The guest's other memory is not still meanwhile, and pages that it is just reporting as free
    // do not count as such for a moment.
    let slack = 8 * MIB;
    let without = before - size;
    wait_for(
        "having less memory",
        || available(machine),
        |now| now.abs_diff(without) < slack,
    );

    balloon.set_target(0);
    wait_for("deflating", || balloon.actual(), |now| *now == 0);
    wait_for(
        "having the memory back",
        || available(machine),
        |now| *now > before - slack,
    );
}

#[test]
fn memory_that_the_guest_frees_is_the_hosts_again() {
    let machine = &shared().machine;
    let balloon = machine.vm.balloon().unwrap();
    let size = 64 * MIB;

    let (program, line) = machine.start_python(
        r#"
import sys
held = b"\x5a" * (64 << 20)
print("held", flush=True)
sys.stdin.read()
"#,
    );
    assert_eq!(line, "held");
    let (reported, held) = (balloon.reported(), resident());
    drop(program);
    // The guest reports some seconds later, and only large pieces.
    let enough = size / 2;
    wait_for(
        "reporting free pages",
        || balloon.reported() - reported,
        |grown| *grown >= enough,
    );
    wait_for("freeing", resident, |now| now + enough <= held);
    machine.ping();
}
