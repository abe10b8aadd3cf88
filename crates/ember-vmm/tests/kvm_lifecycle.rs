//! A VM as a value: started, paused, resumed, stopped and dropped from any thread, and the reason
//! of its end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends by panicking"
)]

mod common;

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{HALT, SPIN, out, vm};
use ember_vmm::{BuildError, ExitReason, Vm, VmConfig};

/// Long enough for anything here on the slowest machine.
const LONG: Duration = Duration::from_secs(60);
/// Long enough for a running guest to show that it runs.
const SHORT: Duration = Duration::from_millis(100);

/// `mov eax, 0x200000; loop: inc qword [rax]; jmp loop`: counts for ever, in memory.
const COUNT: [u8; 10] = [0xb8, 0x00, 0x00, 0x20, 0x00, 0x48, 0xff, 0x00, 0xeb, 0xfb];

fn run(code: &[u8]) -> ExitReason {
    let vm = vm(code, |_| {});
    vm.start().unwrap();
    vm.wait_timeout(LONG).expect("the guest ends")
}

#[test]
fn a_guest_that_switches_itself_off_has_powered_off() {
    assert_eq!(run(&out(0x600, 0x34)), ExitReason::PoweredOff);
}

#[test]
fn every_way_to_reset_is_a_reset() {
    for code in [out(0x602, 1), out(0x64, 0xfe), out(0xcf9, 6)] {
        assert_eq!(run(&code), ExitReason::Reset);
    }
}

#[test]
fn a_panic_is_reported_with_the_consoles_words() {
    let mut code = Vec::new();
    for byte in b"Kernel panic - not syncing: out of coffee\n" {
        code.extend(out(0x3f8, *byte));
    }
    code.extend(out(0x505, 1));
    assert_eq!(
        run(&code),
        ExitReason::Panicked {
            message: "out of coffee".to_owned()
        }
    );
}

#[test]
fn a_triple_fault_shows_where_it_was() {
    // `ud2`, without an interrupt table.
    let ExitReason::TripleFault { vcpu: 0, registers } = run(&[0x0f, 0x0b]) else {
        panic!("not a triple fault");
    };
    // What is left in the registers after a shutdown is the processor's choice; that there is a
    // report is ours.
    assert!(registers.to_string().contains("rip="));
}

#[test]
fn a_guest_that_never_exits_can_be_stopped_from_another_thread() {
    for code in [SPIN.as_slice(), &HALT] {
        let vm = Arc::new(vm(code, |config| config.vcpus = 2));
        vm.start().unwrap();
        assert_eq!(vm.wait_timeout(SHORT), None);
        let other = Arc::clone(&vm);
        let stopper = thread::spawn(move || other.stop());
        assert_eq!(vm.wait_timeout(LONG), Some(ExitReason::Stopped));
        stopper.join().unwrap();
        assert!(vm.start().is_err(), "a VM that ended stays ended");
        assert!(vm.pause().is_err());
        assert_eq!(vm.exit(), Some(ExitReason::Stopped));
    }
}

#[test]
fn a_paused_guest_does_nothing_and_a_resumed_one_goes_on() {
    let vm = vm(&COUNT, |_| {});
    let counter = || vm.read_memory(0x20_0000, 8).unwrap();
    vm.start().unwrap();
    let deadline = Instant::now() + LONG;
    while counter() == [0; 8] {
        assert!(Instant::now() < deadline, "the guest does not run");
        thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..20 {
        vm.pause().unwrap();
        let at_rest = counter();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(counter(), at_rest, "a paused guest wrote to its memory");
        vm.resume().unwrap();
        while counter() == at_rest {
            assert!(Instant::now() < deadline, "the guest does not go on");
            thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(vm.read_memory(u64::MAX - 2, 8).is_err());
}

#[test]
fn pausing_resuming_and_stopping_from_many_threads_never_hangs() {
    for round in 0..5 {
        let vm = Arc::new(vm(&SPIN, |config| config.vcpus = 2));
        vm.start().unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let vm = Arc::clone(&vm);
                thread::spawn(move || {
                    for _ in 0..50 {
                        if vm.pause().is_err() || vm.resume().is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        if round % 2 == 0 {
            thread::sleep(Duration::from_millis(20));
            vm.stop();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        vm.stop();
        assert_eq!(vm.wait_timeout(LONG), Some(ExitReason::Stopped));
    }
}

#[test]
fn the_end_is_told_once_to_everyone_who_asked() {
    let vm = vm(&out(0x600, 0x34), |_| {});
    let (sender, receiver) = mpsc::channel();
    for _ in 0..3 {
        let sender = sender.clone();
        vm.on_exit(Box::new(move |reason| sender.send(reason.clone()).unwrap()));
    }
    vm.start().unwrap();
    for _ in 0..3 {
        assert_eq!(receiver.recv_timeout(LONG).unwrap(), ExitReason::PoweredOff);
    }
    vm.on_exit(Box::new(move |reason| sender.send(reason.clone()).unwrap()));
    assert_eq!(
        receiver.recv_timeout(LONG).unwrap(),
        ExitReason::PoweredOff,
        "after the end"
    );
    assert!(receiver.try_recv().is_err());
}

#[test]
fn a_vm_that_was_never_started_can_be_dropped() {
    for vcpus in [1, 4, 32] {
        drop(vm(&HALT, |config| config.vcpus = vcpus));
    }
}

#[test]
fn memory_beyond_four_gigabytes_is_there() {
    // Writes 0x5a at 4 GiB - but long mode's tables map the first 4 GiB only, so the write goes
    // through the host: what counts is that the range exists on both sides of the hole.
    let vm = vm(&HALT, |config| config.memory_bytes = 5 << 30);
    assert_eq!(vm.memory_bytes(), 5 << 30);
    assert!(vm.read_memory(0xd000_0000 - 8, 8).is_ok());
    assert!(vm.read_memory(0xd000_0000, 8).is_err(), "the hole");
    assert!(vm.read_memory(1 << 32, 8).is_ok());
    assert!(
        vm.read_memory((1 << 32) + (5 << 30) - 0xd000_0000 - 8, 8)
            .is_ok()
    );
    assert!(
        vm.read_memory((1 << 32) + (5 << 30) - 0xd000_0000, 8)
            .is_err()
    );
}

#[test]
fn what_a_vm_cannot_be_is_refused_with_a_reason() {
    let refused = |change: &dyn Fn(&mut VmConfig)| {
        let kernel = ember_vmm::kernel::KernelImage::from_bytes(common::elf(&HALT)).unwrap();
        let mut config = VmConfig::new(kernel);
        change(&mut config);
        match Vm::new(config) {
            Err(BuildError::Configuration(message)) => message,
            other => panic!("not refused: {other:?}"),
        }
    };
    assert!(refused(&|config| config.vcpus = 0).contains("1 to 32 vCPUs, not 0"));
    assert!(refused(&|config| config.vcpus = 33).contains("not 33"));
    assert!(refused(&|config| config.memory_bytes = 1 << 20).contains("64 MiB"));
    assert!(refused(&|config| config.memory_bytes = (64 << 20) + 1).contains("multiple of 4096"));
    assert!(refused(&|config| config.command_line = "x".repeat(2048)).contains("2047"));
    let kernel = ember_vmm::kernel::KernelImage::from_bytes(common::elf(&HALT)).unwrap();
    let mut config = VmConfig::new(kernel);
    config.kick_signal = 9;
    let error = Vm::new(config).unwrap_err();
    assert!(
        format!("{:?}", error).contains("not a real-time signal"),
        "{error:?}"
    );
}
