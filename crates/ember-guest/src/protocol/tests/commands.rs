//! Commands that cannot be.

use super::*;

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
    assert!(message.contains("2100185 bytes together"), "{message}");

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
