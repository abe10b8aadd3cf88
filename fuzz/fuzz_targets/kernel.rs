//! A file that somebody says is a kernel.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ember_vmm::fuzzing::kernel(data));
