use proptest::prelude::*;

use super::*;

fn budget() -> Budget {
    Budget::new(10, 200)
}

#[test]
fn what_a_driver_says_is_read() {
    let value = parse(br#"{"type":"value","data":{"text/plain":"42","image/png":"iVBO"}}"#);
    let Some(CellEvent::Value(data)) = value else {
        panic!("{value:?}");
    };
    assert_eq!(data.text(), Some("42"));
    assert_eq!(data.get("image/png"), Some("iVBO"));
    let error = parse(
        br#"{"type":"error","name":"E","message":"m","traceback":"t",
            "frames":[{"file":"<cell 1>","line":3,"function":"f","text":"1/0"}]}"#,
    );
    let Some(CellEvent::Error(error)) = error else {
        panic!("{error:?}");
    };
    assert_eq!((error.name.as_str(), error.frames[0].line), ("E", 3));
}

#[test]
fn what_makes_no_sense_is_dropped() {
    let many = |count: usize| {
        let kinds: Vec<String> = (0..count).map(|n| format!(r#""a/{n}":"""#)).collect();
        format!(r#"{{"type":"value","data":{{{}}}}}"#, kinds.join(","))
    };
    let frames = |count: usize| {
        let frames = vec!["{}"; count].join(",");
        format!(r#"{{"type":"error","frames":[{frames}]}}"#)
    };
    assert!(parse(many(MAX_KINDS).as_bytes()).is_some());
    assert!(parse(frames(MAX_FRAMES).as_bytes()).is_some());
    let deep = format!("{{\"type\":{}", "[".repeat(100_000));
    for wrong in [
        "",
        "{}",
        "null",
        r#"{"type":"value"}"#,
        r#"{"type":"value","data":{}}"#,
        r#"{"type":"value","data":{"text/plain":1}}"#,
        r#"{"type":"value","data":{"\u001b[2J":""}}"#,
        r#"{"type":"value","data":{"":""}}"#,
        r#"{"type":"else","data":{"a":""}}"#,
        r#"{"type":"error","frames":[{"line":-1}]}"#,
        r#"{"type":"error","frames":[{"line":4294967296}]}"#,
        "{\"type\":\"error\",\"name\":\"\u{0}\"}",
        &many(MAX_KINDS + 1),
        &frames(MAX_FRAMES + 1),
        &deep,
    ] {
        assert_eq!(
            parse(wrong.as_bytes()),
            None,
            "{}",
            &wrong[..wrong.len().min(80)]
        );
    }
}

#[test]
fn more_than_may_be_is_dropped_and_told() {
    let mut cell = budget();
    let bytes = |text: &str| text.as_bytes().to_vec();
    let wrote = cell.output(bytes("12345"), true);
    assert_eq!(wrote, Some(CellEvent::Stdout(bytes("12345"))));
    assert!(!cell.truncated);
    let wrote = cell.output(bytes("678901"), true);
    assert_eq!(wrote, Some(CellEvent::Stdout(bytes("67890"))));
    assert!(cell.truncated);
    assert_eq!(cell.output(bytes("x"), true), None);
    let wrote = cell.output(bytes("x"), false);
    assert_eq!(wrote, Some(CellEvent::Stderr(bytes("x"))));

    let mut cell = budget();
    let value = br#"{"type":"value","data":{"a":"b"}}"#;
    assert_eq!(cell.event(&value[..7], true), None);
    assert!(cell.event(&value[7..], false).is_some());
    assert!(!cell.truncated);
    // One that is too long is dropped as a whole, and the next is one again.
    for _ in 0..100 {
        assert_eq!(cell.event(&[b' '; 50], true), None);
        assert!(cell.line.len() <= 200);
    }
    assert_eq!(cell.event(b"}", false), None);
    assert!(cell.truncated);
    assert!(cell.event(value, false).is_some());
    // There is room for so many.
    let left = (0..20).filter(|_| cell.event(value, false).is_some());
    assert_eq!(left.count(), 4);
}

proptest! {
    #[test]
    fn nothing_that_is_said_is_too_much(
        parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<bool>()), 0..50)
    ) {
        let mut cell = budget();
        for (part, more) in parts {
            let _ = cell.event(&part, more);
            prop_assert!(cell.line.len() <= 200);
        }
    }
}
