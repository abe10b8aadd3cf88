//! Whatever is sent arrives, and whatever comes is read or refused.

use proptest::prelude::*;

use super::*;

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1..=255u8, 0..max)
}

prop_compose! {
    fn limits()(list in proptest::array::uniform9(proptest::option::of(0..u64::MAX))) -> Limits {
        let [
            memory, processes, cpu_time, output, disk, address_space, user_processes, open_files,
            file_size,
        ] = list;
        Limits {
            memory, processes, cpu_time: cpu_time.map(Duration::from_micros), output, disk,
            address_space, user_processes, open_files, file_size,
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
        confined: bool,
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
            confined,
            builtin: false,
            stdin,
            pty: pty.map(|(rows, columns)| PtySize { rows, columns }),
            timeout: timeout.map(Duration::from_micros),
            limits,
        }
    }
}

prop_compose! {
    fn usages()(times: [u64; 3], counts: [u64; 6]) -> Usage {
        let [wall, user, system] = times.map(Duration::from_micros);
        let [memory, peak_memory, processes, peak_processes, output, disk] = counts;
        Usage {
            wall, user, system, memory, peak_memory, processes, peak_processes, output, disk,
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
        limit in proptest::option::of(proptest::sample::select(&LimitHit::ALL[..])),
        times: [u64; 3],
        counts: [u64; 4],
    ) -> Outcome {
        let [wall, user, system] = times.map(Duration::from_micros);
        let status = if exited { Status::Exited(code) } else { Status::Signaled(code) };
        let [peak_memory, peak_processes, output, disk] = counts;
        Outcome {
            status, limit, wall, user, system, peak_memory, peak_processes, output, disk,
        }
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
        Just(Message::Freeze),
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
        Just(Message::Measure),
        usages().prop_map(Message::Measured),
        identities().prop_map(|identity| Message::Identify(Cow::Owned(identity))),
        Just(Message::Identified),
        (0..=i64::MAX as u64).prop_map(|nanoseconds| Message::Clock { nanoseconds }),
        Just(Message::ClockSet),
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
            Just(Kind::Resize), Just(Kind::Exited), Just(Kind::Identify),
            Just(Kind::Clock), Just(Kind::Warm), Just(Kind::Run), Just(Kind::Measured),
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
