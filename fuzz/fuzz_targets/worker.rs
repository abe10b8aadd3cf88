//! Frames between a worker and its owner, as either side reads them.
#![no_main]

use ember_worker::protocol::{Call, MAX_DESCRIPTORS, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // What was understood can be said, and is understood again.
    for count in 0..=MAX_DESCRIPTORS {
        if let Ok(call) = Call::decode(data, count) {
            let frame = call.encode().unwrap();
            assert_eq!(Call::decode(&frame, count).unwrap(), call);
        }
    }
    if let Ok(message) = Message::decode(data) {
        let frame = message.encode().unwrap();
        assert_eq!(Message::decode(&frame).unwrap(), message);
    }
});
