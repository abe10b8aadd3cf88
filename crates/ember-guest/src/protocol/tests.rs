//! Golden frames, round trips, and bytes that nobody would send.

use std::borrow::Cow;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn encode(request: u32, message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(request, &mut out).unwrap();
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn outcome() -> Outcome {
    Outcome {
        status: Status::Signaled(9),
        timed_out: true,
        out_of_memory: false,
        wall: Duration::from_millis(1500),
        user: Duration::from_micros(1),
        system: Duration::from_micros(2),
        peak_rss: 4096,
    }
}

fn spawn() -> Spawn {
    Spawn {
        argv: vec![b"sh".to_vec(), b"-c".to_vec()],
        env: vec![(b"A".to_vec(), b"1".to_vec())],
        clear_env: true,
        cwd: b"/t".to_vec(),
        user: b"u".to_vec(),
        stdin: false,
        pty: Some(PtySize {
            rows: 24,
            columns: 80,
        }),
        timeout: Some(Duration::from_secs(1)),
        limits: Limits {
            memory: Some(1),
            ..Limits::default()
        },
    }
}

fn program() -> Warm {
    Warm {
        runner: "py".into(),
        code: b"1".to_vec(),
        command: Spawn {
            argv: vec![INLINE.to_vec()],
            ..Spawn::default()
        },
    }
}

fn runner() -> Warm {
    Warm {
        code: vec![],
        command: Spawn {
            argv: vec![b"p".to_vec()],
            user: b"u".to_vec(),
            ..Spawn::default()
        },
        ..program()
    }
}

fn identity() -> Identity {
    Identity {
        entropy: [0xee; ENTROPY],
        realtime: Duration::from_nanos(0x0102_0304_0506_0708),
        hostname: b"h".to_vec(),
        machine_id: [0xaa; 16],
        boot_id: [0xbb; 16],
        env: vec![(b"A".to_vec(), b"1".to_vec())],
        secrets: vec![(b"S".to_vec(), b"hush".to_vec())],
    }
}

/// The bytes of every kind of frame.
///
/// Agents that run inside snapshots speak exactly this. If this test fails, do not update the
/// bytes: raise `VERSION` and keep the old form readable for as long as `MIN_VERSION` says.
#[test]
fn golden_frames() {
    assert_eq!((MIN_VERSION, VERSION), (1, 1));
    let hello = Hello {
        min_version: 1,
        version: 1,
        features: FEATURE_PTY | FEATURE_CGROUP,
        software: "x".into(),
    };
    let none = "ffffffffffffffff";
    let spawn_bytes = [
        "6e000000 10 00 0000 07000000",
        "0d 1800 5000 40420f0000000000",
        "0100000000000000",
        none,
        none,
        none,
        none,
        none,
        none,
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
    let no_limits = none.repeat(7);
    let runner_bytes = [
        "65000000 19 00 0000 08000000 02000000 7079 00000000",
        "00 0000 0000 0000000000000000",
        &no_limits,
        "01000000 75 00000000 01000000 01000000 70 00000000",
    ]
    .concat();
    let program_bytes = [
        "66000000 1b 00 0000 08000000 02000000 7079 01000000 31",
        "00 0000 0000 0000000000000000",
        &no_limits,
        "00000000 00000000 01000000 02000000 2d63 00000000",
    ]
    .concat();
    let release_memory = FreezeOptions {
        release_memory: true,
    };
    let cases: &[(u32, Message<'_>, &str)] = &[
        (
            0,
            Message::Hello(hello),
            "19000000 01 00 0000 00000000 454d4245520d0a00 0100 0100 0300000000000000 01000000 78",
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
        (
            3,
            Message::Freeze(release_memory),
            "01000000 07 00 0000 03000000 01",
        ),
        (
            3,
            Message::Freeze(FreezeOptions::default()),
            "01000000 07 00 0000 03000000 00",
        ),
        (3, Message::Frozen, "00000000 08 00 0000 03000000"),
        (4, Message::Thaw, "00000000 09 00 0000 04000000"),
        (4, Message::Thawed, "00000000 0a 00 0000 04000000"),
        (
            4,
            Message::Identify(Cow::Owned(identity())),
            &identity_bytes,
        ),
        (4, Message::Identified, "00000000 0c 00 0000 04000000"),
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
            "23000000 18 00 0000 07000000 01 09 01 60e3160000000000 0100000000000000 \
             0200000000000000 0010000000000000",
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

/// What a stream of bytes means, in short.
fn decode_all(bytes: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut decoder = Decoder::new();
    decoder.feed(bytes);
    let mut all = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        let text = match Message::decode(frame)? {
            Message::Error(failure) => format!("{} Error {:?}", frame.request, failure.code()),
            message => format!("{} {:?}", frame.request, message.kind()),
        };
        all.push(text);
    }
    Ok(all)
}

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
        (Kind::Freeze, 1),
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
    assert_eq!(out_of_range(decode(Kind::Freeze, 0, &[2])), ("options", 2));
    assert!(matches!(
        decode(Kind::Freeze, 0, &[]),
        Malformed::Truncated { .. }
    ));
    let mut bytes = encode(1, &Message::Spawn(Cow::Owned(spawn())));
    let payload = &mut bytes[HEADER_LEN..];
    payload[0] = 0x10;
    assert_eq!(
        out_of_range(decode(Kind::Spawn, 0, payload)),
        ("options", 0x10)
    );
}

/// A count of strings is not believed: nothing is allocated for strings that do not follow.
#[test]
fn a_count_without_strings_is_refused() {
    let mut bytes = encode(1, &Message::Spawn(Cow::Owned(spawn())));
    // Behind the fixed fields and the strings "u" and "/t".
    let count = HEADER_LEN + 1 + 4 + 8 + 56 + 5 + 6;
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
fn commands_that_cannot_be_say_why() {
    let plain = || Spawn {
        argv: vec![b"true".to_vec()],
        ..Spawn::default()
    };
    let refused = |spawn: Spawn| {
        let mut out = vec![1, 2, 3];
        let message = Message::Spawn(Cow::Owned(spawn));
        let Err(EncodeError::Spawn(error)) = message.encode(1, &mut out) else {
            panic!()
        };
        assert_eq!(out, [1, 2, 3], "a refused message leaves nothing behind");
        (error.code(), error.to_string())
    };
    plain().validate().unwrap();

    let (code, _) = refused(Spawn::default());
    assert_eq!(code, ErrorCode::EmptyCommand);
    let (code, _) = refused(Spawn {
        argv: vec![vec![]],
        ..plain()
    });
    assert_eq!(code, ErrorCode::EmptyCommand);

    let long = Spawn {
        argv: vec![b"echo".to_vec(), vec![b'x'; 1_000_000]],
        ..plain()
    };
    let (code, message) = refused(long);
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert!(
        message.starts_with("argument 1 has 1000000 bytes; Linux takes 131071"),
        "{message}"
    );
    let longest = Spawn {
        argv: vec![b"echo".to_vec(), vec![b'x'; MAX_ARGUMENT]],
        ..plain()
    };
    longest.validate().unwrap();

    let (code, message) = refused(Spawn {
        argv: vec![vec![b'x'; 100_000]; 21],
        ..plain()
    });
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert!(message.contains("2100169 bytes together"), "{message}");

    let (code, message) = refused(Spawn {
        argv: vec![b"x".to_vec(); MAX_STRINGS + 1],
        ..plain()
    });
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert_eq!(message, "65537 arguments are over the limit of 65536");

    let variable = |name: &[u8], value: &[u8]| Spawn {
        env: vec![(name.to_vec(), value.to_vec())],
        ..plain()
    };
    let (code, message) = refused(variable(b"BIG", &vec![b'x'; MAX_ARGUMENT]));
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert!(
        message.starts_with("the environment variable BIG has 131075 bytes"),
        "{message}"
    );
    for name in [&b""[..], b"A=B"] {
        let (code, message) = refused(variable(name, b""));
        assert_eq!(code, ErrorCode::InvalidRequest);
        assert!(
            message.ends_with("cannot be the name of an environment variable"),
            "{message}"
        );
    }

    let invalid = [
        (
            Spawn {
                argv: vec![b"a\0b".to_vec()],
                ..plain()
            },
            "argument 0 contains a zero byte",
        ),
        (
            variable(b"A", b"\0"),
            "the environment variable A contains a zero byte",
        ),
        (
            Spawn {
                cwd: b"\0".to_vec(),
                ..plain()
            },
            "the working directory contains a zero byte",
        ),
        (
            Spawn {
                user: b"\0".to_vec(),
                ..plain()
            },
            "the user contains a zero byte",
        ),
        (
            Spawn {
                cwd: vec![b'/'; 4096],
                ..plain()
            },
            "the working directory's path has 4096 bytes, the limit is 4095",
        ),
        (
            Spawn {
                user: vec![b'u'; 256],
                ..plain()
            },
            "the user has 256 bytes, the limit is 255",
        ),
        (
            Spawn {
                pty: Some(PtySize {
                    rows: 0,
                    columns: 80,
                }),
                ..plain()
            },
            "a terminal of 0 rows and 80 columns cannot be",
        ),
    ];
    for (spawn, expected) in invalid {
        assert_eq!(
            refused(spawn),
            (ErrorCode::InvalidRequest, expected.to_owned())
        );
    }
}

/// Cut anywhere, too long, or with counts and lengths that nothing follows.
#[test]
fn identities_that_are_malformed() {
    let bytes = encode(1, &Message::Identify(Cow::Owned(identity())));
    let payload = &bytes[HEADER_LEN..];
    fn decode(payload: &[u8]) -> Result<Message<'_>, Malformed> {
        Message::decode(Frame {
            kind: Kind::Identify,
            flags: 0,
            request: 1,
            payload,
        })
    }
    for cut in 0..payload.len() {
        assert!(
            matches!(decode(&payload[..cut]), Err(Malformed::Truncated { .. })),
            "cut at {cut}"
        );
    }
    let longer = [payload, &[0]].concat();
    assert!(matches!(
        decode(&longer),
        Err(Malformed::Trailing { extra: 1, .. })
    ));
    let hostname = ENTROPY + 8 + 32;
    for (place, field) in [
        (hostname, "host name"),
        (hostname + 5, "environment"),
        (hostname + 9, "environment"),
        (hostname + 14, "environment"),
        (hostname + 19, "secrets"),
    ] {
        let mut payload = payload.to_vec();
        payload[place..place + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        match decode(&payload) {
            Err(Malformed::OutOfRange { field: it, .. }) => assert_eq!(it, field, "at {place}"),
            other => panic!("{other:?} at {place}"),
        }
    }
}

#[test]
fn identities_that_cannot_be_say_why() {
    let refused = |identity: Identity| {
        let mut out = vec![1, 2, 3];
        let message = Message::Identify(Cow::Owned(identity));
        let Err(EncodeError::Identity(error)) = message.encode(1, &mut out) else {
            panic!()
        };
        assert_eq!(out, [1, 2, 3], "a refused message leaves nothing behind");
        (error.code(), error.to_string())
    };
    identity().validate().unwrap();
    let plain = Identity {
        hostname: vec![],
        env: vec![],
        secrets: vec![],
        ..identity()
    };
    plain.validate().unwrap();
    let invalid = [
        (
            Identity {
                entropy: [0; ENTROPY],
                ..identity()
            },
            "the entropy of an identity is all zeroes",
        ),
        (
            Identity {
                machine_id: [0; 16],
                ..identity()
            },
            "the machine id of an identity is all zeroes",
        ),
        (
            Identity {
                boot_id: [0; 16],
                ..identity()
            },
            "the boot id of an identity is all zeroes",
        ),
        (
            Identity {
                realtime: Duration::from_nanos(1 << 63),
                ..identity()
            },
            "the wall clock cannot be set to 9223372036 s after 1970",
        ),
        (
            Identity {
                hostname: vec![b'x'; MAX_HOSTNAME + 1],
                ..identity()
            },
            "cannot be a host name",
        ),
        (
            Identity {
                hostname: b"a/b".to_vec(),
                ..identity()
            },
            "\"a/b\" cannot be a host name",
        ),
        (
            Identity {
                env: vec![(b"A=B".to_vec(), vec![])],
                ..identity()
            },
            "cannot be the name of an environment variable",
        ),
        (
            Identity {
                secrets: vec![(b"A".to_vec(), b"\0".to_vec())],
                ..identity()
            },
            "the environment variable A contains a zero byte",
        ),
    ];
    for (identity, expected) in invalid {
        let (code, message) = refused(identity);
        assert_eq!(code, ErrorCode::InvalidRequest);
        assert!(message.contains(expected), "{message}");
    }
    let many = Identity {
        env: vec![(b"A".to_vec(), vec![b'x'; 100_000]); 6],
        ..identity()
    };
    assert_eq!(refused(many).0, ErrorCode::ArgumentTooLong);
}

#[test]
fn programs_for_runners_that_cannot_be_say_why() {
    let refused = |message: &Message<'_>| {
        let mut out = vec![];
        let Err(EncodeError::Warm(error)) = message.encode(1, &mut out) else {
            panic!()
        };
        (error.code(), error.to_string())
    };
    let run = |warm| Message::Run(Cow::Owned(warm));
    let warm = |warm| Message::Warm(Cow::Owned(warm));
    for name in ["", "a b", &"x".repeat(MAX_RUNNER + 1)] {
        let runner = name.to_owned();
        let (code, message) = refused(&run(Warm {
            runner,
            ..program()
        }));
        assert_eq!(code, ErrorCode::InvalidRequest);
        assert!(
            message.contains("cannot be the name of a runner"),
            "{message}"
        );
    }
    let (code, message) = refused(&run(Warm {
        code: vec![b' '; MAX_CODE + 1],
        ..program()
    }));
    assert_eq!(code, ErrorCode::ArgumentTooLong);
    assert!(message.contains("the limit is 1048576"), "{message}");
    let (_, message) = refused(&run(Warm {
        code: vec![b' '],
        command: Spawn {
            argv: vec![b"x.py".to_vec()],
            ..Spawn::default()
        },
        ..program()
    }));
    assert!(message.contains("\"x.py\""), "{message}");
    let (_, message) = refused(&run(Warm {
        command: Spawn {
            user: b"root".to_vec(),
            ..program().command
        },
        ..program()
    }));
    assert!(message.contains("not as \"root\""), "{message}");
    let (_, message) = refused(&warm(Warm {
        command: Spawn {
            stdin: true,
            ..runner().command
        },
        ..runner()
    }));
    assert!(message.contains("cannot have standard input"), "{message}");
    let (code, _) = refused(&run(Warm {
        command: Spawn::default(),
        ..program()
    }));
    assert_eq!(code, ErrorCode::EmptyCommand);
}

#[test]
fn secrets_and_entropy_do_not_show() {
    let shown = format!("{:?}", Message::Identify(Cow::Owned(identity())));
    assert!(!shown.contains("hush") && !shown.contains("104, 117, 115, 104"));
    assert!(
        !shown.contains("238, 238") && !shown.contains("eeee"),
        "{shown}"
    );
    assert!(shown.contains("\"S\"") && shown.contains("bbbb"), "{shown}");
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
fn versions_agree_or_say_why_not() {
    let hello = |min_version, version| Hello {
        min_version,
        version,
        ..Hello::ours(0)
    };
    assert_eq!(hello(1, 1).agree(), Ok(1));
    assert_eq!(hello(0, 9).agree(), Ok(VERSION));
    let message = hello(2, 9).agree().unwrap_err().to_string();
    assert!(message.contains("speaks versions 2 to 9"), "{message}");
    assert!(hello(0, 0).agree().is_err());
    assert!(hello(5, 1).agree().is_err(), "a range that is none");
}

/// A later version may add fields to its hello; this one reads what it knows.
#[test]
fn a_longer_hello_is_read() {
    let mut bytes = encode(0, &Message::Hello(Hello::ours(0)));
    bytes.extend_from_slice(&[1, 2, 3, 4]);
    bytes[0] += 4;
    assert_eq!(decode_all(&bytes).unwrap(), ["0 Hello"]);
    bytes[HEADER_LEN] = b'X';
    assert!(
        decode_all(&bytes)
            .unwrap_err()
            .to_string()
            .contains("magic")
    );
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let failure = Failure::new(ErrorCode::Internal, "ü".repeat(MAX_MESSAGE));
    assert_eq!(failure.message().len(), MAX_MESSAGE);
    let failure = Failure::new(ErrorCode::Internal, format!("x{}", "ü".repeat(MAX_MESSAGE)));
    assert_eq!(failure.message().len(), MAX_MESSAGE - 1);
    let hello = Hello {
        software: "ü".repeat(100),
        ..Hello::ours(0)
    };
    assert_eq!(
        decode_all(&encode(0, &Message::Hello(hello))).unwrap(),
        ["0 Hello"]
    );
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

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1..=255u8, 0..max)
}

prop_compose! {
    fn limits()(list in proptest::array::uniform7(proptest::option::of(0..u64::MAX))) -> Limits {
        let [memory, processes, address_space, user_processes, open_files, file_size, cpu_seconds] =
            list;
        Limits {
            memory, processes, address_space, user_processes, open_files, file_size, cpu_seconds,
        }
    }
}

prop_compose! {
    fn spawns()(
        program in "[a-z/]{1,20}",
        arguments in proptest::collection::vec(bytes(40), 0..8),
        env in proptest::collection::vec(("[A-Z_]{1,9}", bytes(40)), 0..8),
        clear_env: bool,
        cwd in bytes(100),
        user in bytes(100),
        stdin: bool,
        pty in proptest::option::of((1..=u16::MAX, 1..=u16::MAX)),
        timeout in proptest::option::of(any::<u64>()),
        limits in limits(),
    ) -> Spawn {
        let mut argv = vec![program.into_bytes()];
        argv.extend(arguments);
        Spawn {
            argv,
            env: env.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
            clear_env,
            cwd,
            user,
            stdin,
            pty: pty.map(|(rows, columns)| PtySize { rows, columns }),
            timeout: timeout.map(Duration::from_micros),
            limits,
        }
    }
}

fn streams() -> impl Strategy<Value = Stream> {
    prop_oneof![
        Just(Stream::Stdin),
        Just(Stream::Stdout),
        Just(Stream::Stderr)
    ]
}

prop_compose! {
    fn outcomes()(
        exited: bool,
        code: u8,
        timed_out: bool,
        out_of_memory: bool,
        times: [u64; 3],
        peak_rss: u64,
    ) -> Outcome {
        let [wall, user, system] = times.map(Duration::from_micros);
        let status = if exited { Status::Exited(code) } else { Status::Signaled(code) };
        Outcome { status, timed_out, out_of_memory, wall, user, system, peak_rss }
    }
}

prop_compose! {
    fn identities()(
        seed in 1..=255u8,
        realtime in 0..1u64 << 63,
        hostname in "[a-z.-]{0,64}",
        env in proptest::collection::vec(("[A-Z_]{1,9}", bytes(40)), 0..8),
        secrets in proptest::collection::vec(("[A-Z_]{1,9}", bytes(40)), 0..8),
    ) -> Identity {
        let variables = |list: Vec<(String, Vec<u8>)>| {
            list.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect()
        };
        Identity {
            entropy: [seed; ENTROPY],
            realtime: Duration::from_nanos(realtime),
            hostname: hostname.into_bytes(),
            machine_id: [seed; 16],
            boot_id: [seed; 16],
            env: variables(env),
            secrets: variables(secrets),
        }
    }
}

fn messages() -> impl Strategy<Value = Message<'static>> {
    prop_oneof![
        any::<bool>().prop_map(|release_memory| Message::Freeze(FreezeOptions { release_memory })),
        Just(Message::Frozen),
        Just(Message::Thaw),
        Just(Message::Thawed),
        spawns().prop_map(|command| Message::Run(Cow::Owned(Warm {
            command: Spawn {
                user: vec![],
                ..command
            },
            code: vec![],
            ..program()
        }))),
        Just(Message::Warmed),
        identities().prop_map(|identity| Message::Identify(Cow::Owned(identity))),
        Just(Message::Identified),
        Just(Message::Ping),
        Just(Message::Pong),
        Just(Message::Kill),
        Just(Message::PowerOff),
        spawns().prop_map(|spawn| Message::Spawn(Cow::Owned(spawn))),
        any::<u32>().prop_map(|pid| Message::Started { pid }),
        (streams(), bytes(300), any::<bool>()).prop_map(|(stream, bytes, end)| Message::Data {
            stream,
            bytes: bytes.leak(),
            end,
        }),
        (streams(), any::<u32>()).prop_map(|(stream, bytes)| Message::Window { stream, bytes }),
        streams().prop_map(|stream| Message::Reset { stream }),
        (1..=64u8).prop_map(|number| Message::Signal { number }),
        any::<(u16, u16)>().prop_map(|(rows, columns)| Message::Resize(PtySize { rows, columns })),
        outcomes().prop_map(Message::Exited),
        "\\PC{0,200}".prop_map(|text| Message::Error(Failure::new(ErrorCode::NoSuchUser, text))),
    ]
}

proptest! {
    /// Whatever is sent arrives, however the stream is cut.
    #[test]
    fn messages_survive_any_cuts(
        sent in proptest::collection::vec((1..=u32::MAX, messages()), 1..20),
        cuts in proptest::collection::vec(1..200usize, 1..200),
    ) {
        let mut stream = Vec::new();
        for (request, message) in &sent {
            message.encode(*request, &mut stream).unwrap();
        }
        let mut decoder = Decoder::new();
        let mut arrived = 0;
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            rest = later;
            decoder.feed(now);
            while let Some(frame) = decoder.next_frame().unwrap() {
                let (request, message) = &sent[arrived];
                prop_assert_eq!(frame.request, *request);
                prop_assert_eq!(&Message::decode(frame).unwrap(), message);
                arrived += 1;
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(arrived, sent.len());
        prop_assert_eq!(decoder.pending(), 0);
    }

    /// Bytes from anywhere are read or refused, and what is read can be written again.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_all(&bytes);
    }

    /// The same with a header that passes, so that every payload decoder is reached.
    #[test]
    fn any_payload_is_read_or_refused(
        kind in prop_oneof![
            Just(Kind::Hello), Just(Kind::Error), Just(Kind::Spawn), Just(Kind::Started),
            Just(Kind::Data), Just(Kind::Window), Just(Kind::Reset), Just(Kind::Signal),
            Just(Kind::Resize), Just(Kind::Exited), Just(Kind::Freeze), Just(Kind::Identify),
            Just(Kind::Warm), Just(Kind::Run),
        ],
        flags in 0..8u8,
        payload in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..300),
    ) {
        let request = u32::from(kind != Kind::Hello);
        if let Ok(message) = Message::decode(Frame { kind, flags, request, payload: &payload })
            && !matches!(&message, Message::Spawn(spawn) if spawn.validate().is_err())
            && !matches!(&message, Message::Identify(it) if it.validate().is_err())
            && !matches!(&message, Message::Warm(it) if it.validate_runner().is_err())
            && !matches!(&message, Message::Run(it) if it.validate_program().is_err())
        {
            let again = encode(request, &message);
            let mut decoder = Decoder::new();
            decoder.feed(&again);
            let frame = decoder.next_frame().unwrap().unwrap();
            prop_assert_eq!(Message::decode(frame).unwrap(), message);
        }
    }

    /// One wrong byte in a good frame is read or refused.
    #[test]
    fn a_damaged_frame_is_read_or_refused(
        message in messages(),
        index: prop::sample::Index,
        value: u8,
    ) {
        let mut bytes = encode(1, &message);
        let index = index.index(bytes.len());
        bytes[index] = value;
        let _ = decode_all(&bytes);
    }
}
