//! Golden frames, round trips, and bytes that nobody would send.

mod commands;
mod files;
mod frames;
mod golden;
mod hello;
mod identity;
mod properties;
mod runners;
mod sessions;

use std::borrow::Cow;
use std::time::Duration;

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
        limit: Some(LimitHit::WallTime),
        wall: Duration::from_millis(1500),
        user: Duration::from_micros(1),
        system: Duration::from_micros(2),
        peak_memory: 4096,
        peak_processes: 3,
        output: 4,
        disk: 5,
    }
}

fn usage() -> Usage {
    Usage {
        wall: Duration::from_millis(1500),
        user: Duration::from_micros(1),
        system: Duration::from_micros(2),
        memory: 4096,
        peak_memory: 8192,
        processes: 3,
        peak_processes: 4,
        output: 5,
        disk: 6,
    }
}

fn spawn() -> Spawn {
    Spawn {
        argv: vec![b"sh".to_vec(), b"-c".to_vec()],
        env: vec![(b"A".to_vec(), b"1".to_vec())],
        clear_env: true,
        cwd: b"/t".to_vec(),
        user: b"u".to_vec(),
        confined: true,
        builtin: false,
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
