//! The first frame, and texts.

use super::*;

#[test]
fn versions_agree_or_say_why_not() {
    let hello = |min_version, version| Hello {
        min_version,
        version,
        ..Hello::ours(0)
    };
    assert_eq!(hello(2, 2).agree(), Ok(2));
    assert_eq!(hello(0, 9).agree(), Ok(VERSION));
    let message = hello(3, 9).agree().unwrap_err().to_string();
    assert!(message.contains("speaks versions 3 to 9"), "{message}");
    assert!(
        hello(1, 1).agree().is_err(),
        "that one is not spoken any more"
    );
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
