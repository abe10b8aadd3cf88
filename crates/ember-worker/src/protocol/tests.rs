use ember_snapshot::vcpu::VcpuRegisters;
use proptest::prelude::*;

use super::*;

fn disks(count: usize) -> Vec<Disk> {
    let disk = Disk {
        read_only: true,
        serial: "serial".to_owned(),
    };
    vec![disk; count]
}

fn calls() -> Vec<Call> {
    let requests = [
        Request::Boot(Boot {
            vcpus: 4,
            memory_bytes: 1 << 30,
            command_line: "console=ttyS0".to_owned(),
            disks: disks(2),
            balloon: true,
            generation_id: Some([7; 16]),
            port: 1024,
        }),
        Request::Restore(Restore {
            disks: disks(1),
            port: 1024,
            window_pages: Some(1),
            mergeable: true,
        }),
        Request::Start {
            generation_id: Some([9; 16]),
        },
        Request::Pause,
        Request::Resume,
        Request::Prefetch,
        Request::Announce,
        Request::SetBalloon { bytes: 1 << 40 },
        Request::Balloon,
        Request::Save,
        Request::FinishCopy { save: 7 },
        Request::DropCopy { save: 8 },
        Request::CopiedPages,
        Request::PagedIn,
        Request::Connect { port: 52_000 },
    ];
    (1..)
        .zip(requests)
        .map(|(id, request)| Call { id, request })
        .collect()
}

fn messages() -> Vec<Message> {
    let answers = [
        Ok(Answer::Done),
        Ok(Answer::Bytes(3)),
        Ok(Answer::Saved {
            state_bytes: 9,
            copying: true,
            paused: 123_456,
        }),
        Ok(Answer::Pages { bytes: 0 }),
        Err(Refusal::new(RefusalKind::Host, "no")),
    ];
    let answers = (1..)
        .zip(answers)
        .map(|(id, outcome)| Message::Answer { id, outcome });
    let ended = [
        ExitReason::PoweredOff,
        ExitReason::Panicked {
            message: "fatal".to_owned(),
        },
        ExitReason::TripleFault {
            vcpu: 1,
            registers: Box::new(VcpuRegisters::default()),
        },
    ];
    let ended = ended.map(|reason| Message::Ended {
        reason,
        console: ByteBuf::from(b"last words".to_vec()),
    });
    answers
        .chain(ended)
        .chain([Message::Console(ByteBuf::from(vec![b'x'; CONSOLE_BYTES]))])
        .collect()
}

#[test]
fn what_is_written_is_read() {
    for call in calls() {
        let frame = call.encode().unwrap();
        let read = Call::decode(&frame, call.request.descriptors()).unwrap();
        assert_eq!(read, call);
    }
    for message in messages() {
        let frame = message.encode().unwrap();
        assert_eq!(Message::decode(&frame).unwrap(), message);
    }
}

#[test]
fn a_frame_that_is_cut_or_followed_by_something_is_none() {
    for call in calls() {
        let frame = call.encode().unwrap();
        let count = call.request.descriptors();
        for length in 0..frame.len() {
            // Whatever is left is another call at most if it lost what was only told by its length,
            // and postcard tells all lengths first.
            assert!(Call::decode(&frame[..length], count).is_err(), "{call:?}");
        }
        let longer = [frame.as_slice(), &[0]].concat();
        assert!(matches!(
            Call::decode(&longer, count),
            Err(FrameError::Excess)
        ));
    }
}

#[test]
fn a_frame_is_of_this_version() {
    let mut frame = calls()[3].encode().unwrap();
    frame[0] = VERSION + 1;
    let found = Call::decode(&frame, 0).unwrap_err();
    assert!(matches!(found, FrameError::Version(Some(3))), "{found}");
    let found = Message::decode(&[]).unwrap_err();
    assert!(matches!(found, FrameError::Version(None)), "{found}");
}

#[test]
fn descriptors_are_those_that_belong_to_a_call() {
    for call in calls() {
        let frame = call.encode().unwrap();
        let right = call.request.descriptors();
        for count in 0..=MAX_DESCRIPTORS {
            assert_eq!(Call::decode(&frame, count).is_ok(), count == right);
        }
    }
}

#[test]
fn there_is_a_limit_to_everything() {
    let mut call = calls().swap_remove(1);
    let Request::Restore(restore) = &mut call.request else {
        panic!("another call");
    };
    restore.disks = disks(MAX_DISKS);
    assert_eq!(call.request.descriptors(), MAX_DESCRIPTORS);
    let Request::Restore(restore) = &mut call.request else {
        panic!("another call");
    };
    restore.disks = disks(MAX_DISKS + 1);
    assert!(matches!(call.encode(), Err(FrameError::Limit { .. })));
    // Also for who does not keep to it.
    let frame = encode(&call).unwrap();
    let found = Call::decode(&frame, MAX_DESCRIPTORS + 1);
    assert!(matches!(found, Err(FrameError::Limit { .. })));

    let console = Message::Console(ByteBuf::from(vec![0; CONSOLE_BYTES + 1]));
    let frame = console.encode().unwrap();
    assert!(matches!(
        Message::decode(&frame),
        Err(FrameError::Limit { .. })
    ));
    let console = Message::Console(ByteBuf::from(vec![0; MAX_FRAME]));
    assert!(matches!(console.encode(), Err(FrameError::TooLong(_))));
    assert!(matches!(
        Message::decode(&vec![VERSION; MAX_FRAME + 1]),
        Err(FrameError::TooLong(_))
    ));
    let text = Refusal::new(RefusalKind::Host, "ä".repeat(MAX_TEXT)).text;
    assert_eq!(text.len(), MAX_TEXT);
}

#[test]
fn a_length_that_is_not_there_allocates_nothing() {
    // A console of 2^63 bytes.
    let mut frame = vec![VERSION, 1];
    frame.extend([0xff; 9]);
    frame.push(1);
    assert!(matches!(
        Message::decode(&frame),
        Err(FrameError::Damaged(_))
    ));
}

proptest! {
    #[test]
    fn no_bytes_do_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), count in 0..30_usize) {
        let _ = Call::decode(&bytes, count);
        let _ = Message::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        if let Ok(call) = Call::decode(&bytes, count) {
            prop_assert!(call.encode().is_ok());
        }
        let _ = Message::decode(&bytes);
    }

    #[test]
    fn no_change_does_harm(which in 0..15_usize, at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let call = &calls()[which];
        let mut frame = call.encode().unwrap();
        let at = at.index(frame.len());
        frame[at] = value;
        let _ = Call::decode(&frame, call.request.descriptors());
        let _ = Message::decode(&frame);
    }
}
