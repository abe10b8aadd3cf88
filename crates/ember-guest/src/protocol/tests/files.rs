//! Files: requests, records and notes.

use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;

fn entry() -> FileEntry {
    FileEntry {
        mode: 0o777,
        user: 1000,
        group: 100,
        modified: UNIX_EPOCH + Duration::new(3, 4),
        target: Some("t".into()),
        ..FileEntry::new("n".into(), FileKind::Symlink, 5)
    }
}

/// The bytes of records, as agents inside snapshots write them. If this fails, do not update the
/// bytes: raise `VERSION`.
#[test]
fn golden_records() {
    let mut bytes = Vec::new();
    entry().encode(&mut bytes);
    let expected = "2c000000 03 ff010000 e8030000 64000000 0500000000000000 0300000000000000 \
                    04000000 01000000 6e 01 01000000 74";
    assert_eq!(hex(&bytes), expected.replace(' ', ""));
    let event = FileEvent::new(FileChange::Written, "n".into());
    let mut more = Vec::new();
    event.encode(&mut more);
    assert_eq!(hex(&more), "06000000 03 01000000 6e".replace(' ', ""));

    // However they are cut.
    for cut in 0..bytes.len() {
        let mut records = FileRecords::default();
        records.feed(&bytes[..cut]);
        assert_eq!(records.next_entry(), Ok(None));
        records.feed(&bytes[cut..]);
        assert_eq!(records.next_entry(), Ok(Some(entry())));
        assert!(records.is_empty());
    }
    let mut records = FileRecords::default();
    records.feed(&more);
    assert_eq!(records.next_event(), Ok(Some(event)));
}

#[test]
fn records_that_cannot_be() {
    let refused = |bytes: &[u8]| {
        let mut records = FileRecords::default();
        records.feed(bytes);
        records.next_entry().unwrap_err()
    };
    // A length is not believed: nothing is waited for that cannot be.
    assert!(matches!(
        refused(&u32::MAX.to_le_bytes()),
        Malformed::OutOfRange { .. }
    ));
    let mut bytes = Vec::new();
    entry().encode(&mut bytes);
    // Kinds, a flag, nanoseconds and a time beyond all clocks.
    for (index, value) in [(4, 0), (4, 5), (42, 2), (36, 0xff), (32, 0xff), (0, 3)] {
        let mut bytes = bytes.clone();
        bytes[index] = value;
        if index == 36 {
            bytes[33..37].fill(0xff);
        }
        if index == 32 {
            bytes[25..33].fill(0xff);
        }
        refused(&bytes);
    }
}

/// The arguments that agents inside snapshots know. If this fails, do not update them: the old ones
/// have to be understood as long as `MIN_VERSION` says.
#[test]
fn golden_requests() {
    let path = || b"p".to_vec();
    let cases = [
        (
            FileRequest::Read {
                path: path(),
                offset: 1,
                length: 2,
            },
            "read p 1 2",
        ),
        (
            FileRequest::Write {
                path: path(),
                append: true,
                mode: 0o644,
            },
            "write p 1 420",
        ),
        (
            FileRequest::List {
                path: path(),
                most: 3,
            },
            "list p 3",
        ),
        (
            FileRequest::Stat {
                path: path(),
                follow: false,
            },
            "stat p 0",
        ),
        (FileRequest::CreateDir { path: path() }, "create-dir p"),
        (FileRequest::Remove { path: path() }, "remove p"),
        (
            FileRequest::Rename {
                from: path(),
                to: b"q".to_vec(),
            },
            "rename p q",
        ),
        (FileRequest::Watch { path: path() }, "watch p"),
        (
            FileRequest::Pack {
                path: path(),
                bytes: 4,
                entries: 5,
                lenient: true,
                patterns: vec![b"*.x".to_vec()],
            },
            "pack p 4 5 1 *.x",
        ),
        (FileRequest::Unpack { path: path() }, "unpack p"),
    ];
    for (request, expected) in cases {
        let arguments = request.arguments();
        assert_eq!(arguments[0], b"ember-files");
        let text = arguments[1..].join(&b' ');
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert_eq!(FileRequest::parse(&arguments[1..]), Some(request));
    }
    for wrong in [
        "",
        "read p",
        "read p 1 x",
        "stat p 2",
        "stat p 0 0",
        "unpack",
        "fly p",
        "pack p 1 2",
        "write p 0 99999999999",
    ] {
        let words: Vec<Vec<u8>> = wrong.split(' ').map(|it| it.as_bytes().to_vec()).collect();
        assert_eq!(FileRequest::parse(&words), None, "{wrong}");
    }
}

#[test]
fn only_what_the_agent_has_is_its_own() {
    let request = FileRequest::Unpack {
        path: b"p".to_vec(),
    };
    let spawn = Spawn {
        argv: request.arguments(),
        builtin: true,
        ..Spawn::default()
    };
    let bytes = encode(1, &Message::Spawn(Cow::Owned(spawn.clone())));
    // The options are the first byte of the payload.
    assert_eq!(bytes[HEADER_LEN], 1 << 5);
    assert_eq!(decode_all(&bytes).unwrap().len(), 1);
    let other = Spawn {
        argv: vec![b"sh".to_vec()],
        ..spawn.clone()
    };
    assert_eq!(other.validate().unwrap_err().code(), ErrorCode::NotFound);
    let runner = Warm {
        command: spawn,
        ..runner()
    };
    assert_eq!(
        runner.validate_runner().unwrap_err().code(),
        ErrorCode::InvalidRequest
    );
}

fn notes() -> impl Strategy<Value = FileNote> {
    let path = proptest::collection::vec(1..=255u8, 0..40);
    prop_oneof![
        (path, "[a-z ]{1,10}").prop_map(|(path, why)| FileNote::LeftOut { path, why }),
        "[^\0]{0,40}".prop_map(FileNote::Failed),
    ]
}

proptest! {
    #[test]
    fn notes_survive(sent in proptest::collection::vec(notes(), 0..10), cut: prop::sample::Index) {
        let mut text = Vec::new();
        for note in &sent {
            note.encode(&mut text);
        }
        prop_assert_eq!(FileNote::decode_all(&text).collect::<Vec<_>>(), sent.clone());
        // Of what is cut off, the whole ones.
        let cut = &text[..cut.index(text.len() + 1)];
        let whole: Vec<_> = FileNote::decode_all(cut).collect();
        prop_assert_eq!(&sent[..whole.len()], &whole[..]);
    }

    #[test]
    fn any_bytes_are_records_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut records = FileRecords::default();
        records.feed(&bytes);
        while let Ok(Some(entry)) = records.next_entry() {
            let mut again = Vec::new();
            entry.encode(&mut again);
            let mut records = FileRecords::default();
            records.feed(&again);
            let read = records.next_entry().unwrap().unwrap();
            prop_assert_eq!(read, entry);
        }
        let _ = FileNote::decode_all(&bytes).count();
    }
}
