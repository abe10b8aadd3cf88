//! Silence for a snapshot, going on after it, and a clone's new identity.
//!
//! A clone is made by carrying the agent's one connection on with another host: to the agent it
//! cannot be told from the copy of its machine.

use std::error::Error as _;
use std::fs;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant, SystemTime};

use ember_guest::host::{
    Agent, Command, Error, ErrorKind, Identity, Process, ProcessOutput, Stdin,
};
use ember_guest::protocol::{ErrorCode, Hello, Kind, MAX_DATA, Message, PtySize, Spawn, Stream};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

use crate::common::{
    PATIENCE, TestAgent, eventually, processes_with, sh, spawn, text, unique_sleep,
};
use crate::wire::{Came, Raw};

/// Passes an agent's stream on to one host after the other.
pub(crate) struct Relay {
    hosts: tokio::sync::mpsc::Sender<DuplexStream>,
    /// How many bytes the agent has sent.
    sent: watch::Receiver<u64>,
}

impl Relay {
    pub(crate) async fn new(test: &TestAgent) -> (Self, Agent) {
        let mut guest = test.stream().await;
        let (sender, mut hosts) = tokio::sync::mpsc::channel::<DuplexStream>(1);
        let (count, sent) = watch::channel(0);
        tokio::spawn(async move {
            let Some(mut host) = hosts.recv().await else {
                return;
            };
            let (mut from_guest, mut from_host) = (vec![0; 65536], vec![0; 65536]);
            loop {
                tokio::select! {
                    biased;
                    next = hosts.recv() => match next {
                        Some(next) => host = next,
                        None => return,
                    },
                    read = guest.read(&mut from_guest) => match read {
                        Ok(0) | Err(_) => return,
                        Ok(read) => {
                            count.send_modify(|count| *count += read as u64);
                            if host.write_all(&from_guest[..read]).await.is_err() {
                                return;
                            }
                        }
                    },
                    read = host.read(&mut from_host) => match read {
                        Ok(0) | Err(_) => return,
                        Ok(read) => guest.write_all(&from_host[..read]).await.unwrap(),
                    },
                }
            }
        });
        let relay = Self {
            hosts: sender,
            sent,
        };
        let stream = relay.next().await;
        let agent = Agent::connect(stream).await.unwrap();
        (relay, agent)
    }

    /// The stream of the next host.
    async fn next(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 20);
        self.hosts.send(far).await.unwrap();
        near
    }

    /// The agent is cloned, and this is the clone's. The one before must be frozen.
    pub(crate) async fn cloned(&self, parent: &Agent) -> Agent {
        Agent::attach(self.next().await, parent.hello().clone())
    }
}

pub(crate) async fn freeze(agent: &Agent) {
    agent.freeze().await.unwrap();
}

fn identity() -> Identity {
    Identity::random().unwrap()
}

pub(crate) fn refused(error: &Error) -> (ErrorCode, String) {
    let ErrorKind::Refused(code) = error.kind() else {
        panic!("{error:?}")
    };
    (code, error.source().unwrap().to_string())
}

/// Commands that write numbered lines for as long as they are let.
async fn busy(agent: &Agent, count: usize) -> Vec<(Process, ProcessOutput)> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut process = spawn(agent, Command::from_argv(["seq", "1", "400000"])).await;
        let stdout = process.take_stdout().unwrap();
        all.push((process, stdout));
    }
    all
}

/// Twenty commands that write as fast as they can: nothing comes while the agent is frozen, and
/// afterwards not a byte is missing.
#[tokio::test(flavor = "multi_thread")]
async fn frozen_is_silent_and_thawed_is_as_before() {
    let test = TestAgent::start();
    let (relay, agent) = Relay::new(&test).await;
    let commands = busy(&agent, 20).await;
    let readers: Vec<_> = commands
        .into_iter()
        .map(|(mut process, mut stdout)| {
            tokio::spawn(async move {
                let mut all = String::new();
                stdout.read_to_string(&mut all).await.unwrap();
                assert!(process.wait().await.unwrap().success());
                all
            })
        })
        .collect();
    for _ in 0..10 {
        freeze(&agent).await;
        let before = *relay.sent.borrow();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(
            *relay.sent.borrow(),
            before,
            "a frozen agent has said something"
        );
        agent.thaw().await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let expected: String = (1..=400_000).map(|number| format!("{number}\n")).collect();
    for reader in readers {
        let all = reader.await.unwrap();
        assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
    }
}

/// What was said before a freeze comes before its answer, however slowly it is taken.
#[tokio::test]
async fn the_last_frame_before_silence_is_whole() {
    let test = TestAgent::start();
    let mut raw = Raw::greeted(&test);
    for request in 1..=8 {
        let spawn = Spawn {
            argv: vec![b"yes".to_vec()],
            ..Spawn::default()
        };
        raw.send(request, &Message::Spawn(std::borrow::Cow::Owned(spawn)));
    }
    // Until the agent cannot send more, however long that takes on a busy machine.
    let (mut arrived, mut before) = (vec![0; 1 << 20], 0);
    let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let end = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < end, "{before} bytes have come");
        std::thread::sleep(Duration::from_millis(100));
        let now = recv(raw.stream.as_raw_fd(), &mut arrived, look).unwrap_or(0);
        if now > 2 * MAX_DATA && now == before {
            break;
        }
        before = now;
    }
    raw.send(100, &Message::Freeze);
    let mut data = 0;
    loop {
        match raw.next() {
            Came::Data(..) => data += 1,
            Came::Frame(100, Kind::Frozen) => break,
            Came::Frame(_, Kind::Started) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(data > 2);
    assert_eq!(raw.pending(), 0, "there is something behind the last word");
    raw.stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let read = raw.stream.read(&mut [0; 16]);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// What a command does while nobody may hear of it is told when somebody may.
#[tokio::test]
async fn what_happens_in_the_silence_is_told_after_it() {
    let test = TestAgent::start();
    let (_relay, agent) = Relay::new(&test).await;
    let mut process = spawn(
        &agent,
        sh("read line; echo got $line; exit 3").stdin(Stdin::Piped),
    )
    .await;
    let mut stdin = process.take_stdin().unwrap();
    let short = spawn(&agent, sh("sleep 0.1; echo done")).await;
    let late = spawn(
        &agent,
        Command::from_argv(["sleep", "1000"]).timeout(Duration::from_millis(50)),
    )
    .await;
    freeze(&agent).await;
    // On the way, and held back by this side.
    stdin.write_all(b"word\n").await.unwrap();
    let spawned = tokio::spawn({
        let agent = agent.clone();
        async move { text(&agent, sh("echo later")).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!spawned.is_finished());
    agent.thaw().await.unwrap();
    let output = process.output(100).await.unwrap();
    assert_eq!(output.stdout, b"got word\n");
    assert_eq!(output.outcome.status.shell_code(), 3);
    assert_eq!(short.output(100).await.unwrap().stdout, b"done\n");
    assert!(late.output(0).await.unwrap().outcome.timed_out());
    assert_eq!(spawned.await.unwrap(), "later\n");
}

#[tokio::test]
async fn questions_at_the_wrong_time_are_refused() {
    let test = TestAgent::start();
    let (relay, agent) = Relay::new(&test).await;
    let (code, message) = refused(&agent.thaw().await.unwrap_err());
    assert_eq!(
        (code, &*message),
        (ErrorCode::InvalidRequest, "it is not frozen")
    );
    assert_eq!(text(&agent, sh("echo well")).await, "well\n");
    freeze(&agent).await;
    let again = agent.freeze().await.unwrap_err();
    assert_eq!(refused(&again).0, ErrorCode::InvalidRequest);
    let own = agent.identify(identity()).await.unwrap_err();
    assert_eq!(refused(&own).0, ErrorCode::InvalidRequest);
    let clock = agent.set_clock(SystemTime::now).await.unwrap_err();
    assert_eq!(refused(&clock).0, ErrorCode::InvalidRequest);
    agent.ping().await.unwrap();

    let clone = relay.cloned(&agent).await;
    let error = clone.spawn(Command::new("true")).await.unwrap_err();
    let (code, message) = refused(&error);
    assert_eq!(code, ErrorCode::Frozen);
    assert!(message.contains("identified first"), "{message}");
    for error in [
        clone.freeze().await.unwrap_err(),
        clone.thaw().await.unwrap_err(),
        clone.set_clock(SystemTime::now).await.unwrap_err(),
    ] {
        assert_eq!(refused(&error).0, ErrorCode::Frozen);
    }
    clone.ping().await.unwrap();
    let error = clone.spawn(Command::new("true")).await.unwrap_err();
    assert_eq!(
        refused(&error).0,
        ErrorCode::Frozen,
        "a ping is no identity"
    );
    clone.identify(identity()).await.unwrap();
    assert_eq!(text(&clone, sh("echo well")).await, "well\n");
}

/// What only a frozen agent may be told, and what only one that is not.
#[tokio::test]
async fn hosts_that_talk_into_the_silence_are_refused() {
    let test = TestAgent::start();
    for message in [
        Message::Kill,
        Message::Window {
            stream: Stream::Stdout,
            bytes: 1,
        },
        Message::Freeze,
    ] {
        let mut raw = Raw::greeted(&test);
        raw.spawn(1, "sleep 1000");
        raw.send(2, &Message::Freeze);
        assert_eq!(raw.next(), Came::Frame(2, Kind::Frozen));
        raw.send(1, &message);
        raw.refused(ErrorCode::Malformed, "cannot come here");
    }
    // A command is merely refused.
    let mut raw = Raw::greeted(&test);
    raw.send(2, &Message::Freeze);
    assert_eq!(raw.next(), Came::Frame(2, Kind::Frozen));
    let spawn = Spawn {
        argv: vec![b"true".to_vec()],
        ..Spawn::default()
    };
    raw.send(3, &Message::Spawn(std::borrow::Cow::Owned(spawn)));
    match raw.next() {
        Came::Failure(3, failure) => assert_eq!(failure.code(), ErrorCode::Frozen),
        other => panic!("{other:?}"),
    }
    drop(raw);
    let mut raw = Raw::greeted(&test);
    raw.send(1, &Message::Thaw);
    raw.refused(ErrorCode::Malformed, "a Thaw frame cannot come here");
    let mut raw = Raw::greeted(&test);
    let mut bytes = Raw::bytes(1, &Message::Freeze);
    bytes.extend(Raw::bytes(2, &Message::Ping));
    std::io::Write::write_all(&mut raw.stream, &bytes).unwrap();
    raw.refused(ErrorCode::Malformed, "a Ping frame cannot come here");
}

/// A clone's commands go on; its host does not hear of them, and their numbers are free.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_does_not_hear_of_its_parents_commands() {
    let test = TestAgent::start();
    let (relay, parent) = Relay::new(&test).await;
    let (alive, waiting) = (unique_sleep(), unique_sleep());
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let mut commands = Vec::new();
    for command in [
        // Ends after it has written far more than a window and a pipe hold.
        sh(format!(
            "seq 1 300000; seq 1 300000 >&2; echo done > {}; sleep {alive}",
            done.display()
        )),
        // Would end at the end of its input.
        sh(format!("cat; sleep {waiting}")).stdin(Stdin::Piped),
        sh("seq 1 300000").pty(PtySize {
            rows: 24,
            columns: 80,
        }),
    ] {
        let mut process = spawn(&parent, command).await;
        // Taken and not read: the window closes.
        let output = (process.take_stdout().unwrap(), process.take_stdin());
        commands.push((process, output));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    freeze(&parent).await;
    assert!(!done.exists());

    let clone = relay.cloned(&parent).await;
    clone.identify(identity()).await.unwrap();
    eventually("the parent's output is drained", || done.exists()).await;
    let shell_and_sleep = || processes_with(&alive).len() == 2;
    eventually("the command goes on", shell_and_sleep).await;
    // The same numbers again, each with its own output.
    for round in 0..50 {
        let said = text(&clone, sh(format!("echo {round}"))).await;
        assert_eq!(said, format!("{round}\n"));
    }
    assert_eq!(processes_with(&waiting).len(), 1, "still at its cat");

    // A clone of the clone.
    let mut process = spawn(&clone, sh("echo first; sleep 1000")).await;
    let mut stdout = process.take_stdout().unwrap();
    stdout.read_exact(&mut [0; 6]).await.unwrap();
    freeze(&clone).await;
    let second = relay.cloned(&clone).await;
    second.identify(identity()).await.unwrap();
    assert_eq!(text(&second, sh("echo second")).await, "second\n");
    assert!(shell_and_sleep());
}

/// A command's timeout holds in a clone, and its end there frees everything.
#[tokio::test]
async fn a_parents_timeouts_hold_in_a_clone() {
    for test in TestAgent::every_kind() {
        let (relay, parent) = Relay::new(&test).await;
        let mark = unique_sleep();
        let command = Command::from_argv(["sleep", &mark]).timeout(Duration::from_secs(2));
        let _process = spawn(&parent, command).await;
        freeze(&parent).await;
        let clone = relay.cloned(&parent).await;
        clone.identify(identity()).await.unwrap();
        // A program that has just been started has no name yet.
        eventually("it lives", || processes_with(&mark).len() == 1).await;
        assert_eq!(text(&clone, sh("echo well")).await, "well\n");
        eventually("the timeout ends it", || processes_with(&mark).is_empty()).await;
        eventually("it is buried", || test.children().is_empty()).await;
        assert_eq!(text(&clone, sh("echo well")).await, "well\n");
    }
}

#[tokio::test]
async fn an_identity_is_applied_as_a_whole() {
    let test = TestAgent::start();
    let (relay, parent) = Relay::new(&test).await;
    let read = |what: &str| fs::read(test.identity(what)).unwrap();
    // Also to a guest that is no clone.
    let first = identity()
        .hostname("first")
        .env("GREETING", "hello")
        .secret("TOKEN", "one");
    parent.identify(first).await.unwrap();
    let show = || sh("echo $GREETING $TOKEN $HOME");
    assert_eq!(text(&parent, show()).await, "hello one /root\n");
    assert_eq!(read("hostname"), b"first");
    let before = read("boot-id");
    freeze(&parent).await;

    let clone = relay.cloned(&parent).await;
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
    let second = identity()
        .entropy([7; 64])
        .realtime(at)
        .hostname("box-2")
        .machine_id([0xab; 16])
        .boot_id([0xcd; 16])
        .env("OTHER", "2");
    clone.identify(second).await.unwrap();
    assert_eq!(read("entropy"), [7; 64]);
    assert_eq!(read("realtime"), b"1234567890123456789");
    assert_eq!(read("hostname"), b"box-2");
    assert_eq!(
        read("machine-id"),
        format!("{}\n", "ab".repeat(16)).as_bytes()
    );
    assert_eq!(read("boot-id"), b"cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd\n");
    assert_ne!(before, read("boot-id"));
    // Nothing is inherited.
    let shown = text(&clone, sh("echo $GREETING $TOKEN $OTHER")).await;
    assert_eq!(shown, "2\n");
    assert_eq!(text(&clone, sh("echo $OTHER").env_clear()).await, "\n");
    assert_eq!(
        text(&clone, sh("echo $OTHER").env("OTHER", "3")).await,
        "3\n"
    );

    // This host's time, if no other is said.
    freeze(&clone).await;
    let third = relay.cloned(&clone).await;
    let start = SystemTime::now();
    third.identify(identity()).await.unwrap();
    let set: u64 = String::from_utf8(read("realtime"))
        .unwrap()
        .parse()
        .unwrap();
    let set = SystemTime::UNIX_EPOCH + Duration::from_nanos(set);
    assert!(set >= start && set <= SystemTime::now());
    assert_eq!(read("hostname"), b"box-2", "none was given");
    // The clock alone, once more: that was late by all that it took.
    third.set_clock(|| at).await.unwrap();
    assert_eq!(read("realtime"), b"1234567890123456789");
    // What no clock can be set to is the last that it can.
    let never = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
    third.set_clock(|| never).await.unwrap();
    assert_eq!(read("realtime"), i64::MAX.to_string().as_bytes());
}

/// No identity is better than half of one: the step is named, and nothing can be run.
#[tokio::test]
async fn an_identity_that_fails_leaves_the_agent_frozen() {
    let test = TestAgent::start();
    let (relay, parent) = Relay::new(&test).await;
    let mut last = parent.clone();
    for (what, step) in [
        ("realtime", "cannot set the wall clock"),
        ("hostname", "cannot set the host name"),
    ] {
        freeze(&last).await;
        let clone = relay.cloned(&last).await;
        let _ = fs::remove_file(test.identity(what));
        fs::create_dir(test.identity(what)).unwrap();
        let error = clone.identify(identity().hostname("x")).await.unwrap_err();
        let (code, message) = refused(&error);
        assert_eq!(code, ErrorCode::Identity);
        assert!(message.starts_with(step), "{message}");
        let error = clone.spawn(Command::new("true")).await.unwrap_err();
        assert_eq!(refused(&error).0, ErrorCode::Frozen);
        // Again, and better.
        fs::remove_dir(test.identity(what)).unwrap();
        clone.identify(identity()).await.unwrap();
        assert_eq!(text(&clone, sh("echo well")).await, "well\n");
        last = clone;
    }
    // What cannot even be prepared is told at once, and the agent goes on.
    fs::remove_file(test.identity("entropy")).unwrap();
    fs::create_dir(test.identity("entropy")).unwrap();
    let error = last.freeze().await.unwrap_err();
    assert_eq!(refused(&error).0, ErrorCode::Identity);
    assert_eq!(text(&last, sh("echo well")).await, "well\n");
}

/// An identity that cannot be is refused on this side.
#[tokio::test]
async fn identities_that_cannot_be() {
    let test = TestAgent::start();
    let agent = test.connect().await;
    for wrong in [
        identity().hostname("a b"),
        identity().entropy([0; 64]),
        identity().env("", "x"),
        identity().secret("A=", "x"),
        identity().machine_id([0; 16]),
    ] {
        let error = agent.identify(wrong).await.unwrap_err();
        assert_eq!(refused(&error).0, ErrorCode::InvalidRequest);
    }
    agent.ping().await.unwrap();
}

/// A host that does not check is told by the agent.
#[tokio::test]
async fn an_identity_of_zeroes_is_refused() {
    let test = TestAgent::start();
    let payload = vec![0; 64 + 8 + 32 + 12];
    let mut raw = Raw::greeted(&test);
    let mut header = Raw::bytes(9, &Message::Thawed);
    header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4] = Kind::Identify as u8;
    std::io::Write::write_all(&mut raw.stream, &[header, payload].concat()).unwrap();
    match raw.next() {
        Came::Failure(9, failure) => {
            assert_eq!(failure.code(), ErrorCode::InvalidRequest);
            assert!(failure.message().contains("all zeroes"));
        }
        other => panic!("{other:?}"),
    }
}

/// A freeze that nobody waits for any more does not leave the agent frozen.
#[tokio::test]
async fn a_freeze_that_is_given_up_is_thawed() {
    let test = TestAgent::start();
    let (_relay, agent) = Relay::new(&test).await;
    for _ in 0..20 {
        let freeze = agent.freeze();
        tokio::select! {
            biased;
            () = async { tokio::task::yield_now().await } => {}
            result = freeze => { result.unwrap(); agent.thaw().await.unwrap(); }
        }
        let done = async {
            loop {
                // Refused for as long as the last one is on its way.
                match agent.freeze().await {
                    Ok(()) => break agent.thaw().await.unwrap(),
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), done)
            .await
            .unwrap();
    }
    assert_eq!(text(&agent, sh("echo well")).await, "well\n");
}

/// An agent that was not told whose identity it may change changes nobody's.
#[tokio::test]
async fn an_older_agent_is_not_asked() {
    let (host, mut other) = tokio::io::duplex(1024);
    let mut hello = Vec::new();
    Message::Hello(Hello::ours(0))
        .encode(0, &mut hello)
        .unwrap();
    other.write_all(&hello).await.unwrap();
    let agent = Agent::connect(host).await.unwrap();
    for error in [
        agent.freeze().await.unwrap_err(),
        agent.thaw().await.unwrap_err(),
        agent.identify(identity()).await.unwrap_err(),
    ] {
        let (code, message) = refused(&error);
        assert_eq!(code, ErrorCode::Unsupported);
        assert!(message.contains("cannot be frozen"), "{message}");
    }
    let error = agent.set_clock(SystemTime::now).await.unwrap_err();
    assert_eq!(refused(&error).0, ErrorCode::Unsupported);
}
