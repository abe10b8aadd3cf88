//! A host that does not keep to the protocol.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ember_guest::protocol::{
    Decoder, ErrorCode, Failure, Header, Hello, Kind, MAX_DATA, Message, PtySize, Spawn, Stream,
    WINDOW,
};

use crate::common::{PATIENCE, TestAgent, processes_with, sh, text, unique_sleep};

/// A connection by hand.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    decoder: Decoder,
}

/// What came, as far as these tests look at it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Frame(u32, Kind),
    Failure(u32, Failure),
    Data(u32, Vec<u8>, bool),
    End,
}

impl Raw {
    pub(crate) fn connect(test: &TestAgent) -> Self {
        let stream = UnixStream::connect(test.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Self {
            stream,
            decoder: Decoder::new(),
        };
        assert_eq!(raw.next(), Came::Frame(0, Kind::Hello));
        raw
    }

    pub(crate) fn greeted(test: &TestAgent) -> Self {
        let mut raw = Self::connect(test);
        raw.send(0, &Message::Hello(Hello::ours(0)));
        raw
    }

    pub(crate) fn bytes(request: u32, message: &Message<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(request, &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn send(&mut self, request: u32, message: &Message<'_>) {
        self.stream
            .write_all(&Self::bytes(request, message))
            .unwrap();
    }

    pub(crate) fn spawn(&mut self, request: u32, script: &str) {
        let spawn = Spawn {
            argv: vec![b"/bin/sh".to_vec(), b"-c".to_vec(), script.into()],
            stdin: true,
            ..Spawn::default()
        };
        self.send(request, &Message::Spawn(std::borrow::Cow::Owned(spawn)));
        assert_eq!(self.next(), Came::Frame(request, Kind::Started));
    }

    pub(crate) fn next(&mut self) -> Came {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                let request = frame.request;
                return match Message::decode(frame).unwrap() {
                    Message::Error(failure) => Came::Failure(request, failure),
                    Message::Data { bytes, end, .. } => Came::Data(request, bytes.to_vec(), end),
                    message => Came::Frame(request, message.kind()),
                };
            }
            let mut buffer = vec![0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Came::End,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Came::End;
                }
                Ok(count) => self.decoder.feed(&buffer[..count]),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// How many bytes have come that belong to no frame yet.
    pub(crate) fn pending(&mut self) -> usize {
        assert_eq!(self.decoder.next_frame().unwrap(), None);
        self.decoder.pending()
    }

    /// The connection is refused with this message, and closed.
    pub(crate) fn refused(&mut self, code: ErrorCode, message: &str) {
        loop {
            match self.next() {
                Came::Failure(0, failure) => {
                    assert_eq!(failure.code(), code);
                    assert!(failure.message().contains(message), "{}", failure.message());
                    break;
                }
                Came::End => panic!("closed without a reason, instead of {message:?}"),
                _ => {}
            }
        }
        assert_eq!(self.next(), Came::End);
    }
}

async fn still_serves(test: &TestAgent) {
    let agent = test.connect().await;
    assert_eq!(text(&agent, sh("echo well")).await, "well\n");
}

#[tokio::test]
async fn another_version_is_refused() {
    let test = TestAgent::start();
    let mut raw = Raw::connect(&test);
    let hello = Hello {
        min_version: 3,
        version: 7,
        features: 0,
        software: "later".into(),
    };
    raw.send(0, &Message::Hello(hello));
    raw.refused(ErrorCode::Version, "(later) speaks versions 3 to 7");
    // A newer host that still speaks ours is welcome.
    let mut raw = Raw::connect(&test);
    let hello = Hello {
        version: 7,
        features: u64::MAX,
        ..Hello::ours(0)
    };
    raw.send(0, &Message::Hello(hello));
    raw.send(1, &Message::Ping);
    assert_eq!(raw.next(), Came::Frame(1, Kind::Pong));
    drop(raw);
    still_serves(&test).await;
}

#[tokio::test]
async fn frames_that_cannot_be_are_refused() {
    let test = TestAgent::start();
    let ping = Raw::bytes(1, &Message::Ping);
    let damaged = |index: usize, value: u8| {
        let mut bytes = ping.clone();
        bytes[index] = value;
        bytes
    };
    let long = Header {
        length: MAX_DATA as u32 + 1,
        kind: Kind::Data,
        flags: 0,
        request: 1,
    };
    let cases: [(Vec<u8>, &str); 10] = [
        (damaged(4, 99), "frame kind 99 is not known"),
        (damaged(6, 1), "reserved"),
        (damaged(5, 1), "flags"),
        (damaged(8, 0), "cannot have the request number 0"),
        (damaged(0, 1), "over its limit of 0"),
        (long.encode().to_vec(), "over its limit of 65536"),
        (
            Raw::bytes(1, &Message::Pong),
            "a Pong frame cannot come here",
        ),
        (
            Raw::bytes(1, &Message::Started { pid: 1 }),
            "a Started frame cannot come here",
        ),
        (
            Raw::bytes(0, &Message::Hello(Hello::ours(0))),
            "a Hello frame cannot come here",
        ),
        (
            Raw::bytes(
                1,
                &Message::Data {
                    stream: Stream::Stdout,
                    bytes: b"",
                    end: false,
                },
            ),
            "a Data frame cannot come here",
        ),
    ];
    for (bytes, message) in &cases {
        let mut raw = Raw::greeted(&test);
        raw.send(7, &Message::Ping);
        raw.stream.write_all(bytes).unwrap();
        raw.refused(ErrorCode::Malformed, message);
    }
    let mut raw = Raw::connect(&test);
    raw.stream.write_all(&ping).unwrap();
    raw.refused(ErrorCode::Malformed, "a Ping frame cannot come here");
    let mut raw = Raw::connect(&test);
    raw.stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    raw.refused(ErrorCode::Malformed, "frame kind");
    still_serves(&test).await;
}

#[tokio::test]
async fn a_number_in_use_is_refused_with_its_commands_ended() {
    let test = TestAgent::start();
    let mark = unique_sleep();
    let mut raw = Raw::greeted(&test);
    raw.spawn(5, &format!("sleep {mark}"));
    let again = Spawn {
        argv: vec![b"true".to_vec()],
        ..Spawn::default()
    };
    raw.send(5, &Message::Spawn(std::borrow::Cow::Owned(again)));
    raw.refused(ErrorCode::Malformed, "request 5 is already under way");
    crate::common::eventually("it is gone", || processes_with(&mark).is_empty()).await;
    still_serves(&test).await;
}

/// After its end a number is free again.
#[tokio::test]
async fn a_number_can_be_used_again() {
    let test = TestAgent::start();
    let mut raw = Raw::greeted(&test);
    for round in 0..20 {
        raw.spawn(5, &format!("echo {round}"));
        let mut text = Vec::new();
        let mut ends = 0;
        let mut exited = false;
        while ends < 2 || !exited {
            match raw.next() {
                Came::Data(5, bytes, end) => {
                    text.extend(bytes);
                    ends += u32::from(end);
                }
                Came::Frame(5, Kind::Exited) => exited = true,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(text, format!("{round}\n").as_bytes());
    }
}

#[tokio::test]
async fn windows_cannot_be_overrun() {
    let test = TestAgent::start();
    let block = vec![0; MAX_DATA];
    let data = Message::Data {
        stream: Stream::Stdin,
        bytes: &block,
        end: false,
    };
    let mut raw = Raw::greeted(&test);
    raw.spawn(1, "sleep 1000");
    for _ in 0..4 {
        raw.send(1, &data);
    }
    raw.send(2, &Message::Ping);
    assert_eq!(raw.next(), Came::Frame(2, Kind::Pong));
    raw.send(
        1,
        &Message::Data {
            stream: Stream::Stdin,
            bytes: b"x",
            end: false,
        },
    );
    raw.refused(
        ErrorCode::Malformed,
        "the window of request 1's Stdin was overrun",
    );

    for bytes in [1, WINDOW, u32::MAX] {
        let mut raw = Raw::greeted(&test);
        raw.spawn(1, "sleep 1000");
        raw.send(
            1,
            &Message::Window {
                stream: Stream::Stdout,
                bytes,
            },
        );
        raw.refused(
            ErrorCode::Malformed,
            "the window of request 1's Stdout was overrun",
        );
    }
    still_serves(&test).await;
}

/// What is said of a request that is over, or never was, was on its way when it ended.
#[tokio::test]
async fn words_to_a_request_that_is_not_are_let_pass() {
    let test = TestAgent::start();
    let mut raw = Raw::greeted(&test);
    for message in [
        Message::Kill,
        Message::Signal { number: 9 },
        Message::Resize(PtySize {
            rows: 1,
            columns: 1,
        }),
        Message::Window {
            stream: Stream::Stdout,
            bytes: 1,
        },
        Message::Reset {
            stream: Stream::Stderr,
        },
        Message::Data {
            stream: Stream::Stdin,
            bytes: b"x",
            end: true,
        },
    ] {
        raw.send(9, &message);
    }
    raw.send(2, &Message::Ping);
    assert_eq!(raw.next(), Came::Frame(2, Kind::Pong));
}

/// One byte at a time, and cut anywhere.
#[tokio::test]
async fn half_written_frames_are_waited_for() {
    let test = TestAgent::start();
    let mut raw = Raw::connect(&test);
    let mut bytes = Raw::bytes(0, &Message::Hello(Hello::ours(0)));
    bytes.extend(Raw::bytes(3, &Message::Ping));
    for byte in bytes {
        raw.stream.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(raw.next(), Came::Frame(3, Kind::Pong));
    drop(raw);
    for cut in [1, 11, 12, 20] {
        let mut raw = Raw::greeted(&test);
        let spawn = Spawn {
            argv: vec![b"true".to_vec()],
            ..Spawn::default()
        };
        let bytes = Raw::bytes(1, &Message::Spawn(std::borrow::Cow::Owned(spawn)));
        raw.stream.write_all(&bytes[..cut]).unwrap();
    }
    still_serves(&test).await;
}

/// Many requests whose answers nobody takes: the agent stops reading them, with bounded memory.
#[tokio::test]
async fn a_host_that_does_not_read_is_not_read_from() {
    let test = TestAgent::start();
    let mut raw = Raw::greeted(&test);
    raw.stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let pings = Raw::bytes(1, &Message::Ping).repeat(5000);
    let mut sent = 0;
    while raw.stream.write_all(&pings).is_ok() {
        sent += 5000;
        assert!(sent < 1_000_000, "the agent takes everything");
    }
    let peak = test.status_kib("VmHWM");
    assert!(peak < 8 * 1024, "{peak} KiB");
    drop(raw);
    still_serves(&test).await;
}

/// Whatever comes, the agent lives.
#[tokio::test]
async fn nonsense_does_no_harm() {
    let test = TestAgent::start();
    let mut state = 1u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    for round in 0..300 {
        let mut raw = if round % 2 == 0 {
            Raw::greeted(&test)
        } else {
            Raw::connect(&test)
        };
        // Some of it with a kind and a length that pass.
        let mut bytes: Vec<u8> = (0..random() % 300).map(|_| random() as u8).collect();
        if round % 3 == 0 && bytes.len() > 12 {
            let length = bytes.len() as u32 - 12;
            let kinds = [1, 4, 16, 18, 19, 20, 21, 22, 23];
            let kind = kinds[random() as usize % kinds.len()];
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            bytes[4..8].copy_from_slice(&[kind, 0, 0, 0]);
        }
        let _ = raw.stream.write_all(&bytes);
    }
    still_serves(&test).await;
}
