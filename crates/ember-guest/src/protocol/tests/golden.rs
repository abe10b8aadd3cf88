//! The bytes of every kind of frame.

use super::*;

/// The bytes of every kind of frame.
///
/// Agents that run inside snapshots speak exactly this. If this test fails, do not update the
/// bytes: raise `VERSION` and keep the old form readable for as long as `MIN_VERSION` says.
#[test]
fn golden_frames() {
    assert_eq!((MIN_VERSION, VERSION), (2, 2));
    let hello = Hello {
        min_version: 2,
        version: 2,
        features: FEATURE_PTY | FEATURE_CGROUP,
        software: "x".into(),
    };
    let none = "ffffffffffffffff";
    let spawn_bytes = [
        "7e000000 10 00 0000 07000000",
        "1d 1800 5000 40420f0000000000",
        "0100000000000000",
        &none.repeat(8),
        "01000000 75 02000000 2f74",
        "02000000 02000000 7368 02000000 2d63",
        "01000000 01000000 41 01000000 31",
    ]
    .concat();
    let identity_bytes = [
        "8c000000 0b 00 0000 04000000",
        &"ee".repeat(ENTROPY),
        "0807060504030201",
        &"aa".repeat(16),
        &"bb".repeat(16),
        "01000000 68",
        "01000000 01000000 41 01000000 31",
        "01000000 01000000 53 04000000 68757368",
    ]
    .concat();
    let no_limits = none.repeat(9);
    let runner_bytes = [
        "75000000 19 00 0000 08000000 02000000 7079 00000000",
        "00 0000 0000 0000000000000000",
        &no_limits,
        "01000000 75 00000000 01000000 01000000 70 00000000",
    ]
    .concat();
    let program_bytes = [
        "76000000 1b 00 0000 08000000 02000000 7079 01000000 31",
        "00 0000 0000 0000000000000000",
        &no_limits,
        "00000000 00000000 01000000 02000000 2d63 00000000",
    ]
    .concat();
    let cases: &[(u32, Message<'_>, &str)] = &[
        (
            0,
            Message::Hello(hello),
            "19000000 01 00 0000 00000000 454d4245520d0a00 0200 0200 0300000000000000 01000000 78",
        ),
        (1, Message::Ping, "00000000 02 00 0000 01000000"),
        (1, Message::Pong, "00000000 03 00 0000 01000000"),
        (
            0x0102_0304,
            Message::Error(Failure::new(ErrorCode::NotFound, "no")),
            "08000000 04 00 0000 04030201 1100 02000000 6e6f",
        ),
        (2, Message::PowerOff, "00000000 05 00 0000 02000000"),
        (2, Message::PoweringOff, "00000000 06 00 0000 02000000"),
        (3, Message::Freeze, "00000000 07 00 0000 03000000"),
        (3, Message::Frozen, "00000000 08 00 0000 03000000"),
        (4, Message::Thaw, "00000000 09 00 0000 04000000"),
        (4, Message::Thawed, "00000000 0a 00 0000 04000000"),
        (
            4,
            Message::Identify(Cow::Owned(identity())),
            &identity_bytes,
        ),
        (4, Message::Identified, "00000000 0c 00 0000 04000000"),
        (
            5,
            Message::Clock {
                nanoseconds: 0x0102_0304_0506_0708,
            },
            "08000000 0d 00 0000 05000000 0807060504030201",
        ),
        (5, Message::ClockSet, "00000000 0e 00 0000 05000000"),
        (7, Message::Spawn(Cow::Owned(spawn())), &spawn_bytes),
        (8, Message::Warm(Cow::Owned(runner())), &runner_bytes),
        (8, Message::Warmed, "00000000 1a 00 0000 08000000"),
        (8, Message::Run(Cow::Owned(program())), &program_bytes),
        (
            7,
            Message::Started { pid: 258 },
            "04000000 11 00 0000 07000000 02010000",
        ),
        (
            7,
            Message::Data {
                stream: Stream::Stdin,
                bytes: b"hi",
                end: false,
            },
            "02000000 12 00 0000 07000000 6869",
        ),
        (
            7,
            Message::Data {
                stream: Stream::Stderr,
                bytes: b"",
                end: true,
            },
            "00000000 12 06 0000 07000000",
        ),
        (
            7,
            Message::Window {
                stream: Stream::Stdout,
                bytes: 65536,
            },
            "05000000 13 00 0000 07000000 01 00000100",
        ),
        (
            7,
            Message::Reset {
                stream: Stream::Stdout,
            },
            "01000000 14 00 0000 07000000 01",
        ),
        (
            7,
            Message::Signal { number: 15 },
            "01000000 15 00 0000 07000000 0f",
        ),
        (
            7,
            Message::Resize(PtySize {
                rows: 1,
                columns: 2,
            }),
            "04000000 16 00 0000 07000000 0100 0200",
        ),
        (7, Message::Kill, "00000000 17 00 0000 07000000"),
        (
            7,
            Message::Exited(outcome()),
            "3b000000 18 00 0000 07000000 01 09 01 60e3160000000000 0100000000000000 \
             0200000000000000 0010000000000000 0300000000000000 0400000000000000 \
             0500000000000000",
        ),
        (7, Message::Measure, "00000000 1c 00 0000 07000000"),
        (
            7,
            Message::Measured(usage()),
            "48000000 1d 00 0000 07000000 60e3160000000000 0100000000000000 0200000000000000 \
             0010000000000000 0020000000000000 0300000000000000 0400000000000000 \
             0500000000000000 0600000000000000",
        ),
    ];
    for (request, message, expected) in cases {
        let bytes = encode(*request, message);
        assert_eq!(
            hex(&bytes),
            expected.replace(' ', ""),
            "{:?}",
            message.kind()
        );
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(frame.request, *request);
        assert_eq!(&Message::decode(frame).unwrap(), message);
        assert_eq!(decoder.pending(), 0);
    }
}

#[test]
fn error_codes_keep_their_numbers() {
    use ErrorCode::*;
    let all = [
        (Malformed, 1),
        (Version, 2),
        (TooManyRequests, 3),
        (Frozen, 4),
        (Identity, 5),
        (EmptyCommand, 16),
        (NotFound, 17),
        (PermissionDenied, 18),
        (NotExecutable, 19),
        (ArgumentTooLong, 20),
        (NoSuchUser, 21),
        (NoSuchDirectory, 22),
        (InvalidRequest, 23),
        (OutOfResources, 24),
        (Unsupported, 25),
        (Internal, 26),
        (WarmUp, 27),
    ];
    for (code, number) in all {
        let bytes = encode(1, &Message::Error(Failure::new(code, "")));
        assert_eq!(
            &bytes[HEADER_LEN..HEADER_LEN + 2],
            &u16::to_le_bytes(number)
        );
        assert_eq!(decode_all(&bytes).unwrap(), [format!("1 Error {code:?}")]);
    }
}
