//! Sandboxes one after another, and the gate behind the last.

use ember_core::Command;
use ember_leak::LeakGate;

use super::{builder, runtime};

/// Boots, runs a command in and closes `count` sandboxes; nothing of them may be left.
pub(crate) fn leave_nothing_behind(count: usize) {
    let cycles = |count| {
        let runtime = runtime();
        runtime.block_on(async {
            for cycle in 0..count {
                let sandbox = builder().boot().await.unwrap();
                let command = Command::from_argv(["echo", &cycle.to_string()]);
                let output = sandbox.exec(command).await.unwrap();
                assert_eq!(output.stdout, *format!("{cycle}\n"));
                sandbox.close().await;
                if cycle % 20 == 19 {
                    ember_leak::progress(&format!("booted and closed: {} of {count}", cycle + 1));
                }
            }
        });
    };
    // What the first of all leaves is the process's own: a signal handler, an allocator's arenas.
    cycles(1);
    let gate = LeakGate::arm().unwrap();
    cycles(count);
    gate.check().unwrap();
}
