//! What a guest does with its disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ember_vmm::fuzzing::block(data));
