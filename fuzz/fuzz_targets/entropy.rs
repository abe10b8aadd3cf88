//! What a guest does with its entropy device.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ember_vmm::fuzzing::entropy(data));
