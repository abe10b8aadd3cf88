//! Frames that cannot be, and what the decoder keeps.

use super::*;

#[test]
fn headers_that_cannot_be() {
    let refused = |bytes: [u8; HEADER_LEN]| Header::decode(&bytes).unwrap_err();
    let good = encode(1, &Message::Ping);
    let good: [u8; HEADER_LEN] = good.try_into().unwrap();
    let with = |index: usize, value: u8| {
        let mut bytes = good;
        bytes[index] = value;
        bytes
    };
    assert!(matches!(refused(with(4, 0)), Malformed::UnknownKind(0)));
    assert!(matches!(refused(with(4, 255)), Malformed::UnknownKind(255)));
    assert!(matches!(
        refused(with(5, 1)),
        Malformed::Flags {
            kind: Kind::Ping,
            flags: 1
        }
    ));
    assert!(matches!(refused(with(7, 1)), Malformed::Reserved(0x100)));
    assert!(matches!(
        refused(with(0, 1)),
        Malformed::TooLong {
            length: 1,
            limit: 0,
            ..
        }
    ));
    assert!(matches!(
        refused(with(8, 0)),
        Malformed::Request { request: 0, .. }
    ));
    assert!(matches!(
        refused(with(4, 1)),
        Malformed::Request {
            kind: Kind::Hello,
            request: 1
        }
    ));
}

/// A length that no frame may have is refused before a byte of it is waited for.
#[test]
fn a_long_frame_is_refused_by_its_header() {
    for (kind, limit) in [
        (Kind::Spawn, MAX_SPAWN),
        (Kind::Identify, MAX_IDENTIFY),
        (Kind::Freeze, 0),
        (Kind::Clock, 8),
        (Kind::Exited, 59),
        (Kind::Measure, 0),
        (Kind::Measured, 72),
        (Kind::Thaw, 0),
        (Kind::Data, MAX_DATA),
        (Kind::Pong, 0),
    ] {
        for length in [limit as u32 + 1, u32::MAX] {
            let mut decoder = Decoder::new();
            decoder.feed(
                &Header {
                    length,
                    kind,
                    flags: 0,
                    request: 1,
                }
                .encode(),
            );
            let error = decoder.next_frame().unwrap_err();
            assert_eq!(
                error,
                Malformed::TooLong {
                    kind,
                    length,
                    limit
                }
            );
            assert_eq!(decoder.next_frame().unwrap_err(), error, "it stays refused");
        }
    }
}

#[test]
fn payloads_that_cannot_be() {
    let decode = |kind, flags, payload| {
        Message::decode(Frame {
            kind,
            flags,
            request: 1,
            payload,
        })
        .unwrap_err()
    };
    let out_of_range = |error| match error {
        Malformed::OutOfRange { field, value, .. } => (field, value),
        other => panic!("{other:?}"),
    };
    assert_eq!(out_of_range(decode(Kind::Signal, 0, &[0])), ("signal", 0));
    assert_eq!(out_of_range(decode(Kind::Signal, 0, &[65])), ("signal", 65));
    assert_eq!(out_of_range(decode(Kind::Reset, 0, &[3])), ("stream", 3));
    assert_eq!(out_of_range(decode(Kind::Data, 3, &[])), ("stream", 3));
    assert!(matches!(
        decode(Kind::Signal, 0, &[]),
        Malformed::Truncated { .. }
    ));
    assert!(matches!(
        decode(Kind::Signal, 0, &[1, 2]),
        Malformed::Trailing { extra: 1, .. }
    ));
    assert!(matches!(
        decode(Kind::Error, 0, &[1, 0, 1, 0, 0, 0, 0xff]),
        Malformed::NotText {
            field: "message",
            ..
        }
    ));
    assert_eq!(
        out_of_range(decode(Kind::Error, 0, &[1, 0, 0, 0, 0, 0x80])),
        ("message", 0x8000_0000)
    );
    assert_eq!(
        out_of_range(decode(Kind::Exited, 0, &[2, 0, 0])),
        ("status", 2)
    );
    assert_eq!(
        out_of_range(decode(Kind::Exited, 0, &[0, 0, 8])),
        ("limit", 8)
    );
    let mut bytes = encode(1, &Message::Spawn(Cow::Owned(spawn())));
    let payload = &mut bytes[HEADER_LEN..];
    payload[0] = 0x40;
    assert_eq!(
        out_of_range(decode(Kind::Spawn, 0, payload)),
        ("options", 0x40)
    );
}

/// A count of strings is not believed: nothing is allocated for strings that do not follow.
#[test]
fn a_count_without_strings_is_refused() {
    let mut bytes = encode(1, &Message::Spawn(Cow::Owned(spawn())));
    // Behind the fixed fields and the strings "u" and "/t".
    let count = HEADER_LEN + 1 + 4 + 8 + Limits::LENGTH + 5 + 6;
    bytes[count..count + 4].copy_from_slice(&(MAX_STRINGS as u32).to_le_bytes());
    assert!(matches!(
        decode_all(&bytes),
        Err(Malformed::Truncated { .. } | Malformed::OutOfRange { .. })
    ));
    bytes[count..count + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(
        decode_all(&bytes),
        Err(Malformed::OutOfRange {
            field: "arguments",
            ..
        })
    ));
}

#[test]
fn a_wiped_decoder_has_nothing_of_what_it_gave() {
    let mut decoder = Decoder::new();
    decoder.feed(&encode(1, &Message::Identify(Cow::Owned(identity()))));
    let ping = encode(2, &Message::Ping);
    decoder.feed(&ping[..5]);
    assert!(decoder.next_frame().unwrap().is_some());
    decoder.wipe();
    assert!(!format!("{decoder:?}").contains("104, 117, 115, 104"));
    decoder.feed(&ping[5..]);
    assert_eq!(decoder.next_frame().unwrap().unwrap().kind, Kind::Ping);
}

#[test]
fn more_than_a_frame_of_data_is_refused() {
    let bytes = vec![0; MAX_DATA + 1];
    let mut out = Vec::new();
    let data = Message::Data {
        stream: Stream::Stdout,
        bytes: &bytes,
        end: false,
    };
    assert_eq!(
        data.encode(1, &mut out),
        Err(EncodeError::Data(MAX_DATA + 1))
    );
    assert!(out.is_empty());
}

/// The decoder gives back what a large frame needed.
#[test]
fn the_decoder_does_not_keep_a_large_frame() {
    let mut decoder = Decoder::new();
    let large = Spawn {
        argv: vec![vec![b'x'; 100_000]; 20],
        ..Spawn::default()
    };
    decoder.feed(&encode(1, &Message::Spawn(Cow::Owned(large))));
    assert!(decoder.next_frame().unwrap().is_some());
    decoder.feed(&encode(1, &Message::Ping));
    assert!(decoder.next_frame().unwrap().is_some());
    assert!(format!("{decoder:?}").len() < 1000, "{decoder:?}");
}
