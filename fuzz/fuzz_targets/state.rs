//! A machine's state, as a snapshot has it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ember_snapshot::fuzzing::state(data));
