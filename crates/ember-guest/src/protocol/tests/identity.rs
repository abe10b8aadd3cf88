//! Identities that cannot be, and secrets.

use super::*;

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
fn secrets_and_entropy_do_not_show() {
    let shown = format!("{:?}", Message::Identify(Cow::Owned(identity())));
    assert!(!shown.contains("hush") && !shown.contains("104, 117, 115, 104"));
    assert!(
        !shown.contains("238, 238") && !shown.contains("eeee"),
        "{shown}"
    );
    assert!(shown.contains("\"S\"") && shown.contains("bbbb"), "{shown}");
}
