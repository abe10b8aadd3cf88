//! Frames of the JSON protocol, as a guest's agent reads them of its clients.
#![no_main]

use ember_guest::agent::fuzz_json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzz_json(data);
    // As the content of one frame, too: a fuzzer is slow to find a length that fits.
    let Ok(length) = u32::try_from(data.len()) else {
        return;
    };
    fuzz_json(&[&length.to_be_bytes()[..], data].concat());
});
