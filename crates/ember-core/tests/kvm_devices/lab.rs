//! What `cargo xtask lab` promises of the machine that these tests run on.

use crate::machine::shared;

/// Interrupts that a CPU has sent itself, as the lab's guard does (docs/lab.md).
fn sent_to_itself() -> u64 {
    let text = std::fs::read_to_string("/proc/interrupts").unwrap();
    let line = text.lines().find(|line| line.trim().starts_with("IWI:"));
    let counts = line.unwrap().split_whitespace();
    counts.filter_map(|word| word.parse::<u64>().ok()).sum()
}

#[test]
fn the_lab_keeps_guests_from_interrupts_that_come_twice() {
    if std::env::var_os("EMBER_LAB").is_none() {
        // A real processor delivers them once.
        return;
    }
    let before = sent_to_itself();
    let machine = &shared().machine;
    machine.python("import time\nfor _ in range(50): time.sleep(0.001)");
    let count = sent_to_itself() - before;
    assert!(count >= 50, "{count} interrupts for at least 50 timers");
}
