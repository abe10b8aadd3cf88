//! A snapshot file: everything that is read of it, and its memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ember_snapshot::fuzzing::snapshot(data));
