//! Frames and messages of the guest channel, as either end reads them.
#![no_main]

use ember_guest::protocol::{Decoder, HEADER_LEN, MAX_SPAWN, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte says in what pieces the stream arrives.
    let Some((piece, stream)) = data.split_first() else {
        return;
    };
    let piece = usize::from(*piece) + 1;
    let mut decoder = Decoder::new();
    for bytes in stream.chunks(piece) {
        decoder.feed(bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    let request = frame.request;
                    if let Ok(message) = Message::decode(frame) {
                        check_encoding(&message, request);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // There is no way on from here, and it is said again.
                    assert_eq!(decoder.next_frame(), Err(error));
                    return;
                }
            }
        }
        assert!(decoder.pending() < HEADER_LEN + MAX_SPAWN + piece);
    }
});

/// What was understood can be said, and is understood again.
fn check_encoding(message: &Message<'_>, request: u32) {
    let mut bytes = Vec::new();
    if message.encode(request, &mut bytes).is_err() {
        assert!(bytes.is_empty(), "half a frame was left");
        return;
    }
    let mut decoder = Decoder::new();
    decoder.feed(&bytes);
    let frame = decoder.next_frame().unwrap().unwrap();
    assert_eq!(frame.request, request);
    assert_eq!(&Message::decode(frame).unwrap(), message);
}
