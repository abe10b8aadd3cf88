//! What a guest and its host do with sockets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ember_vmm::fuzzing::vsock(data));
