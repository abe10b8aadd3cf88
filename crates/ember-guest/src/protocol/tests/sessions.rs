//! Frames of sessions, good and hostile.

use proptest::prelude::*;

use crate::protocol::{
    MAX_SESSION_PART, SESSION_PROGRAM, SessionDecoder, SessionFrame, SessionMalformed, SessionRole,
    Spawn, Status,
};

fn all() -> Vec<SessionFrame> {
    let part = || b"part".to_vec();
    vec![
        SessionFrame::Run {
            part: part(),
            more: true,
        },
        SessionFrame::Interrupt,
        SessionFrame::Reseed,
        SessionFrame::End,
        SessionFrame::Welcome {
            version: 1,
            busy: true,
        },
        SessionFrame::Stdout(part()),
        SessionFrame::Stderr(Vec::new()),
        SessionFrame::Event {
            part: part(),
            more: false,
        },
        SessionFrame::Done,
        SessionFrame::Ended(Status::Exited(3)),
        SessionFrame::Ended(Status::Signaled(9)),
    ]
}

fn encoded(frames: &[SessionFrame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

/// What comes of bytes that come in pieces of `size`.
fn decoded(bytes: &[u8], size: usize) -> Result<Vec<SessionFrame>, SessionMalformed> {
    let mut decoder = SessionDecoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(size) {
        decoder.feed(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

/// A keeper that was started by another version, and lives on in a clone, has this: do not just update
/// it, but raise `SESSION_VERSION`.
#[test]
fn frames_are_written_as_they_always_were() {
    let golden = b"\x01\x01\0\0\x04\0\0\0part\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\
        \x10\0\0\0\x02\0\0\0\x01\x01\x11\0\0\0\x04\0\0\0part\x12\0\0\0\0\0\0\0\x13\0\0\0\x04\0\0\0part\
        \x14\0\0\0\0\0\0\0\x15\0\0\0\x02\0\0\0\0\x03\x15\0\0\0\x02\0\0\0\x01\x09";
    assert_eq!(encoded(&all()), golden);
    for size in [1, 3, golden.len()] {
        assert_eq!(decoded(golden, size), Ok(all()));
    }
}

#[test]
fn what_is_no_frame_is_refused() {
    let long = MAX_SESSION_PART as u32 + 1;
    for (header, payload, error) in [
        ([0, 0, 0, 0], 0, SessionMalformed::Kind(0)),
        ([22, 0, 0, 0], 0, SessionMalformed::Kind(22)),
        ([17, 1, 0, 0], 0, SessionMalformed::Header(17)),
        ([19, 2, 0, 0], 0, SessionMalformed::Header(19)),
        ([17, 0, 1, 0], 0, SessionMalformed::Header(17)),
        ([17, 0, 0, 1], 0, SessionMalformed::Header(17)),
        ([20, 0, 0, 0], 1, length(20, 1)),
        ([2, 0, 0, 0], 1, length(2, 1)),
        ([16, 0, 0, 0], 1, length(16, 1)),
        ([16, 0, 0, 0], 2, SessionMalformed::Value(16)),
        ([21, 0, 0, 0], 2, SessionMalformed::Value(21)),
        ([21, 0, 0, 0], 3, length(21, 3)),
        ([17, 0, 0, 0], long, length(17, long)),
        ([17, 0, 0, 0], u32::MAX, length(17, u32::MAX)),
    ] {
        let mut bytes = header.to_vec();
        bytes.extend(payload.to_le_bytes());
        // Refused for what it says, before that has come.
        bytes.extend(vec![7; payload.min(8) as usize]);
        assert_eq!(decoded(&bytes, 64), Err(error), "{bytes:?}");
    }
}

fn length(kind: u8, length: u32) -> SessionMalformed {
    SessionMalformed::Length { kind, length }
}

#[test]
fn code_comes_in_pieces() {
    for size in [
        0,
        1,
        MAX_SESSION_PART,
        MAX_SESSION_PART + 1,
        3 * MAX_SESSION_PART,
    ] {
        let code: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let mut whole: Vec<u8> = Vec::new();
        let frames = decoded(&SessionFrame::pieces(&code), 5000).unwrap();
        for (number, frame) in frames.iter().enumerate() {
            let SessionFrame::Run { part, more } = frame else {
                panic!("{frame:?}");
            };
            assert_eq!(*more, number + 1 < frames.len());
            whole.extend(part);
        }
        assert!(whole == code, "{size}");
    }
}

#[test]
fn the_program_is_told_what_to_be() {
    let keep = SessionRole::Keep {
        socket: b"/s".to_vec(),
        argv: vec![b"python3".to_vec(), b"x".to_vec()],
    };
    let attach = SessionRole::Attach {
        socket: b"/s".to_vec(),
    };
    for role in [keep, attach] {
        let arguments = role.arguments();
        assert_eq!(arguments[0], SESSION_PROGRAM);
        assert_eq!(SessionRole::parse(&arguments[1..]), Some(role));
        let spawn = Spawn {
            argv: arguments,
            builtin: true,
            ..Spawn::default()
        };
        assert_eq!(spawn.validate(), Ok(()));
    }
    for wrong in [
        &[][..],
        &["keep"],
        &["keep", "/s"],
        &["keep", "", "x"],
        &["attach"],
        &["attach", "/s", "x"],
        &["else", "/s", "x"],
    ] {
        let wrong: Vec<Vec<u8>> = wrong.iter().map(|it| it.as_bytes().to_vec()).collect();
        assert_eq!(SessionRole::parse(&wrong), None);
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_many_or_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..4000), size in 1..500_usize) {
        if let Ok(frames) = decoded(&bytes, size) {
            prop_assert!(bytes.starts_with(&encoded(&frames)));
        }
    }
}
