//! The host's half against agents that do not keep to the protocol, which no real one does.

use std::error::Error as _;
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::time::timeout;

use super::*;
use crate::protocol::{
    HEADER_LEN, Header, MAX_DATA, Outcome, Status, Stream, VersionMismatch, WINDOW,
};

/// The other end, by hand.
struct Puppet {
    stream: DuplexStream,
    decoder: Decoder,
}

fn bytes(request: u32, message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(request, &mut bytes).unwrap();
    bytes
}

impl Puppet {
    fn new(stream: DuplexStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(),
        }
    }

    async fn send(&mut self, request: u32, message: &Message<'_>) {
        self.raw(&bytes(request, message)).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame's request and kind. None is the end.
    async fn next(&mut self) -> Option<(u32, Kind)> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some((frame.request, frame.kind));
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).await.unwrap() {
                0 => return None,
                count => self.decoder.feed(&buffer[..count]),
            }
        }
    }

    async fn expect(&mut self, kind: Kind) -> u32 {
        let (request, came) = self.next().await.unwrap();
        assert_eq!(came, kind);
        request
    }
}

/// An agent that has been greeted, and its host.
async fn pair() -> (Agent, Puppet) {
    let (host, agent) = tokio::io::duplex(1 << 20);
    let mut puppet = Puppet::new(agent);
    let hello = Hello::ours(FEATURE_FREEZE | FEATURE_WARM);
    puppet.send(0, &Message::Hello(hello)).await;
    let agent = Agent::connect(host).await.unwrap();
    puppet.expect(Kind::Hello).await;
    (agent, puppet)
}

/// The same with a command that runs.
async fn running() -> (Agent, Puppet, Process, u32) {
    let (agent, mut puppet) = pair().await;
    let command = Command::new("x").stdin(Stdin::Piped);
    let (process, request) = tokio::join!(agent.spawn(command), async {
        let request = puppet.expect(Kind::Spawn).await;
        puppet.send(request, &Message::Started { pid: 7 }).await;
        request
    });
    let process = process.unwrap();
    assert_eq!((process.pid(), process.id()), (7, request));
    (agent, puppet, process, request)
}

impl Agent {
    async fn ping_with(&self, puppet: &mut Puppet) {
        let (pinged, ()) = tokio::join!(self.ping(), async {
            let request = puppet.expect(Kind::Ping).await;
            puppet.send(request, &Message::Pong).await;
        });
        pinged.unwrap();
    }
}

fn outcome() -> Outcome {
    Outcome {
        status: Status::Exited(0),
        limit: None,
        wall: Duration::ZERO,
        user: Duration::ZERO,
        system: Duration::ZERO,
        peak_memory: 0,
        peak_processes: 0,
        output: 0,
        disk: 0,
    }
}

async fn greeting(sent: &[u8]) -> Error {
    let (host, mut agent) = tokio::io::duplex(1 << 20);
    agent.write_all(sent).await.unwrap();
    agent.shutdown().await.unwrap();
    Agent::connect(host).await.unwrap_err()
}

#[tokio::test]
async fn greetings_that_are_none() {
    assert_eq!(greeting(b"").await.kind(), ErrorKind::Disconnected);
    assert_eq!(greeting(&[0, 0, 0]).await.kind(), ErrorKind::Disconnected);
    assert_eq!(
        greeting(b"SSH-2.0-OpenSSH\r\n").await.kind(),
        ErrorKind::Protocol
    );
    let pong = greeting(&bytes(1, &Message::Pong)).await;
    assert_eq!(pong.kind(), ErrorKind::Protocol);
    assert_eq!(pong.to_string(), "cannot greet the guest's agent");

    let old = Hello {
        min_version: 0,
        version: 0,
        ..Hello::ours(0)
    };
    let old = greeting(&bytes(0, &Message::Hello(old))).await;
    assert_eq!(old.kind(), ErrorKind::Version);
    assert!(old.source().unwrap().is::<VersionMismatch>());

    let refusal = Failure::new(ErrorCode::Version, "no");
    let refused = greeting(&bytes(0, &Message::Error(refusal))).await;
    assert_eq!(refused.kind(), ErrorKind::Version);
}

/// Everybody who waits hears of a breach, and nobody waits for ever.
#[tokio::test]
async fn a_breach_ends_everything() {
    let block = vec![0; MAX_DATA];
    let data = |end| Message::Data {
        stream: Stream::Stdout,
        bytes: &block,
        end,
    };
    let stdin = Stream::Stdin;
    let breaches: Vec<Vec<u8>> = vec![
        // More than the window.
        bytes(1, &data(false)).repeat(5),
        // After the end.
        [bytes(1, &data(true)), bytes(1, &data(false))].concat(),
        [
            bytes(1, &Message::Exited(outcome())),
            bytes(1, &Message::Exited(outcome())),
        ]
        .concat(),
        // Of nothing that was asked for.
        bytes(2, &data(false)),
        bytes(2, &Message::Exited(outcome())),
        bytes(1, &Message::Started { pid: 8 }),
        bytes(
            1,
            &Message::Error(Failure::new(ErrorCode::NotFound, "late")),
        ),
        bytes(1, &Message::Warmed),
        bytes(9, &Message::Frozen),
        bytes(9, &Message::Thawed),
        bytes(9, &Message::Identified),
        bytes(9, &Message::ClockSet),
        bytes(9, &Message::Pong),
        bytes(9, &Message::PoweringOff),
        // What only a host sends.
        bytes(1, &Message::Ping),
        bytes(1, &Message::Kill),
        bytes(
            1,
            &Message::Data {
                stream: stdin,
                bytes: b"",
                end: false,
            },
        ),
        bytes(
            1,
            &Message::Reset {
                stream: Stream::Stdout,
            },
        ),
        // A window that was not used.
        bytes(
            1,
            &Message::Window {
                stream: stdin,
                bytes: 1,
            },
        ),
        bytes(
            1,
            &Message::Window {
                stream: stdin,
                bytes: u32::MAX,
            },
        ),
        // No frame.
        vec![0xff; HEADER_LEN],
        Header {
            length: u32::MAX,
            kind: Kind::Data,
            flags: 1,
            request: 1,
        }
        .encode()
        .to_vec(),
    ];
    for breach in breaches {
        let (agent, mut puppet, mut process, request) = running().await;
        assert_eq!(request, 1);
        let mut input = process.take_stdin().unwrap();
        let other = agent.clone();
        let ping = tokio::spawn(async move { other.ping().await });
        puppet.expect(Kind::Ping).await;
        puppet.raw(&breach).await;

        let all = async {
            let closed = agent.closed().await;
            assert!(matches!(closed, Closed::Malformed(_)), "{closed:?}");
            assert_eq!(ping.await.unwrap().unwrap_err().kind(), ErrorKind::Protocol);
            assert_eq!(agent.ping().await.unwrap_err().kind(), ErrorKind::Protocol);
            let spawn = agent.spawn(Command::new("y")).await;
            assert_eq!(spawn.unwrap_err().kind(), ErrorKind::Protocol);
            // Told before it was known or after: the outcome may have come in time.
            let _ = process
                .wait()
                .await
                .map_err(|error| assert_eq!(error.kind(), ErrorKind::Protocol));
            input.write_all(b"x").await.unwrap_err();
            drop(process);
            drop(input);
        };
        timeout(Duration::from_secs(10), all).await.unwrap();
    }
}

/// Whoever is frozen says nothing: a machine that was saved then could not be told from one that
/// was saved in the middle of a word.
#[tokio::test]
async fn a_frozen_agent_that_speaks_is_no_agent() {
    for word in [
        bytes(
            1,
            &Message::Data {
                stream: Stream::Stdout,
                bytes: b"x",
                end: false,
            },
        ),
        bytes(1, &Message::Exited(outcome())),
        bytes(9, &Message::Frozen),
        bytes(9, &Message::Thawed),
    ] {
        let (agent, mut puppet, process, request) = running().await;
        assert_eq!(request, 1);
        let (frozen, ()) = tokio::join!(agent.freeze(), async {
            let request = puppet.expect(Kind::Freeze).await;
            puppet.send(request, &Message::Frozen).await;
        });
        frozen.unwrap();
        // Held back for as long as it is frozen.
        process.kill();
        agent.ping_with(&mut puppet).await;
        puppet.raw(&word).await;
        let closed = timeout(Duration::from_secs(10), agent.closed())
            .await
            .unwrap();
        assert!(matches!(closed, Closed::Malformed(_)), "{closed:?}");
    }
}

/// What was said during the silence is said after it, in its order.
#[tokio::test]
async fn what_is_held_back_follows_the_thaw() {
    let (agent, mut puppet, process, request) = running().await;
    let (frozen, ()) = tokio::join!(agent.freeze(), async {
        let request = puppet.expect(Kind::Freeze).await;
        puppet.send(request, &Message::Frozen).await;
    });
    frozen.unwrap();
    process.signal(10).unwrap();
    process.kill();
    let (thawed, ()) = tokio::join!(agent.thaw(), async {
        let request = puppet.expect(Kind::Thaw).await;
        puppet.send(request, &Message::Thawed).await;
    });
    thawed.unwrap();
    assert_eq!(puppet.expect(Kind::Signal).await, request);
    assert_eq!(puppet.expect(Kind::Kill).await, request);
}

#[tokio::test]
async fn an_agent_that_goes_away_is_told_apart() {
    let (agent, mut puppet, mut process, request) = running().await;
    let mut stdout = process.take_stdout().unwrap();
    let data = Message::Data {
        stream: Stream::Stdout,
        bytes: b"last words",
        end: false,
    };
    puppet.send(request, &data).await;
    drop(puppet);
    assert!(matches!(agent.closed().await, Closed::ByAgent));
    assert_eq!(
        process.wait().await.unwrap_err().kind(),
        ErrorKind::Disconnected
    );
    // What had come is still there, and then it is no ordinary end.
    let mut text = Vec::new();
    let error = stdout.read_to_end(&mut text).await.unwrap_err();
    assert_eq!(text, b"last words");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_refusal_of_the_connection_is_passed_on() {
    let (agent, mut puppet) = pair().await;
    let failure = Failure::new(ErrorCode::Malformed, "what was that?");
    puppet.send(0, &Message::Error(failure.clone())).await;
    let Closed::Refused(told) = agent.closed().await else {
        panic!()
    };
    assert_eq!(told, failure);
}

#[tokio::test]
async fn power_off_is_told_from_a_lost_connection() {
    let (agent, mut puppet) = pair().await;
    let (answer, ()) = tokio::join!(agent.power_off(), async {
        let request = puppet.expect(Kind::PowerOff).await;
        puppet.send(request, &Message::PoweringOff).await;
    });
    answer.unwrap();
    drop(puppet);
    assert!(matches!(agent.closed().await, Closed::PoweredOff));
}

/// An answer to a question that was given up is no breach.
#[tokio::test]
async fn answers_to_forgotten_questions_are_dropped() {
    let (agent, mut puppet) = pair().await;
    assert!(
        timeout(Duration::from_millis(1), agent.ping())
            .await
            .is_err()
    );
    let request = puppet.expect(Kind::Ping).await;
    puppet.send(request, &Message::Pong).await;
    let (ping, ()) = tokio::join!(agent.ping(), async {
        let request = puppet.expect(Kind::Ping).await;
        puppet.send(request, &Message::Pong).await;
    });
    ping.unwrap();
}

#[tokio::test]
async fn the_last_handle_closes_the_connection() {
    let (agent, mut puppet, process, _) = running().await;
    let control = process.control();
    drop(agent);
    drop(process);
    let mut kinds = Vec::new();
    while kinds.len() < 4 {
        kinds.push(puppet.next().await.unwrap().1);
    }
    assert_eq!(kinds, [Kind::Kill, Kind::Data, Kind::Reset, Kind::Reset]);
    assert!(
        timeout(Duration::from_millis(20), puppet.next())
            .await
            .is_err()
    );
    drop(control);
    assert_eq!(puppet.next().await, None);
}

/// An agent that takes nothing makes writers wait; what is held for it is bounded.
#[tokio::test]
async fn writers_wait_for_an_agent_that_does_not_read() {
    let (agent, mut puppet) = pair().await;
    let mut held = Vec::new();
    let mut written = 0;
    for _ in 0..20 {
        let command = Command::new("x").stdin(Stdin::Piped);
        let spawned = tokio::join!(agent.spawn(command), async {
            // The agent answers, and reads no further than the requests, while it can.
            let request = loop {
                match puppet.next().await.unwrap() {
                    (request, Kind::Spawn) => break request,
                    _ => continue,
                }
            };
            puppet.send(request, &Message::Started { pid: 7 }).await;
        });
        held.push(spawned.0.unwrap());
    }
    let inputs: Vec<_> = held
        .iter_mut()
        .map(|process| process.take_stdin().unwrap())
        .collect();
    let mut waiting = 0;
    let mut open = Vec::new();
    for mut input in inputs {
        let block = vec![0; WINDOW as usize];
        match timeout(Duration::from_millis(50), input.write_all(&block)).await {
            Ok(result) => {
                result.unwrap();
                written += block.len();
            }
            Err(_) => waiting += 1,
        }
        open.push(input);
    }
    assert!(waiting > 0, "{written} bytes were taken");
    // The pipe's buffer, what is being written, what waits to be, and a block.
    assert!(written < 5 << 20, "{written}");
}
