//! What a guest and a network do with a card.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ember_vmm::fuzzing::network(data));
