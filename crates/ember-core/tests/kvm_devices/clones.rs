//! A VM that was saved goes on in others.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ember_guest::protocol::Message;
use ember_snapshot::memory::MemoryBuilder;
use ember_vmm::devices::virtio::block::BlockConfig;
use ember_vmm::{Checkpoint, RestoreConfig, Vm};

use super::machine::Machine;

#[test]
fn a_saved_guest_answers_in_a_clone() {
    for vcpus in [1, 2, 4] {
        let machine = Machine::boot(|config| config.vcpus = vcpus);
        machine.python("print(42)");
        machine.vm.pause().unwrap();
        let state = machine.vm.save().unwrap();
        let mut memory = MemoryBuilder::new(state.memory_bytes).unwrap();
        machine
            .vm
            .changed_memory(|offset, bytes| {
                memory.write(offset, bytes).map_err(std::io::Error::other)
            })
            .unwrap();
        let memory = memory.seal().unwrap();
        eprintln!(
            "{vcpus} vCPUs: {} KiB",
            memory.allocated_bytes().unwrap() >> 10
        );
        machine.vm.resume().unwrap();
        machine.ping();
        let file = Arc::new(memory.file().try_clone().unwrap());
        let checkpoint = Checkpoint::new(state, file).unwrap();
        for round in 0..3 {
            let start = Instant::now();
            let mut config = RestoreConfig::default();
            config.vsock.carried_ports = vec![1024];
            config.disks = vec![BlockConfig::read_only(machine.image.try_clone().unwrap())];
            let vm = Vm::restore(&checkpoint, config).unwrap();
            let mut stream = vm.vsock().unwrap().take_carried(1024).unwrap();
            let object = start.elapsed();
            vm.start().unwrap();
            let mut ping = Vec::new();
            Message::Ping.encode(7, &mut ping).unwrap();
            stream.write_all(&ping).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            let mut pong = [0; 64];
            let count = stream.read(&mut pong).unwrap_or_else(|error| {
                panic!(
                    "{error}; exit {:?}; console:\n{}",
                    vm.exit(),
                    String::from_utf8_lossy(&vm.console().tail())
                )
            });
            eprintln!(
                "round {round}: object {object:?}, reply {:?}: {count} bytes",
                start.elapsed()
            );
            assert!(count >= 8);
        }
    }
}
