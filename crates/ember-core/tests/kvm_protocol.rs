//! The JSON protocol of a real guest's agent, as its clients speak it: frames on a vsock stream.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{runtime, template};
use ember_core::{ErrorKind, ForkOptions, Image, JsonProtocol, Placement, Sandbox};
use ember_leak::LeakGate;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

fn request(id: &str, code: &str) -> Value {
    json!({
        "id": id, "type": "execute", "language": "python", "code": STANDARD.encode(code),
        "timeout": 20_000, "memory_limit": 128 << 20,
    })
}

struct Client(UnixStream);

impl Client {
    async fn of(sandbox: &Sandbox) -> Self {
        Self(sandbox.connect(JsonProtocol::PORT).await.unwrap())
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_u32(bytes.len() as u32).await.unwrap();
        self.0.write_all(bytes).await.unwrap();
    }

    async fn answer(&mut self) -> Value {
        let read = async {
            let length = self.0.read_u32().await.unwrap();
            let mut bytes = vec![0; length as usize];
            self.0.read_exact(&mut bytes).await.unwrap();
            serde_json::from_slice(&bytes).unwrap()
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, read).await.unwrap()
    }

    /// Sends a request that is taken, and has what came of it.
    async fn run(&mut self, request: &Value) -> Value {
        self.send(request.to_string().as_bytes()).await;
        let ack = json!({"id": request["id"], "type": "ack", "status": "received"});
        assert_eq!(self.answer().await, ack);
        let result = self.answer().await;
        assert_eq!(result["id"], request["id"]);
        assert_eq!(result["type"], "result", "{result}");
        result
    }

    async fn refused(&mut self, bytes: &[u8]) -> Value {
        self.send(bytes).await;
        let answer = self.answer().await;
        assert_eq!(answer["type"], "error", "{answer}");
        answer
    }
}

fn text(value: &Value) -> String {
    String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap()
}

fn shell(script: &str) -> ember_core::Command {
    ember_core::Command::from_argv(["/bin/sh", "-c", script])
}

/// Processes of a guest that sleep for a client.
const SLEEPERS: &str = "grep -l '[s]leep(4321' /proc/[0-9]*/cmdline 2>/dev/null";
/// Cgroups within those of commands.
const NESTED: &str = "find /sys/fs/cgroup/ember/plain -mindepth 2 -type d";

/// Directories with clients' programs.
const FILES: &str = "find /home -path '*/.ember/json-*' -prune";

/// How many lines a command writes.
async fn count(sandbox: &Sandbox, script: &str) -> usize {
    let out = sandbox.exec(shell(script)).await.unwrap();
    out.stdout.to_string_lossy().lines().count()
}

async fn until_there_are(sandbox: &Sandbox, script: &str, wanted: usize) {
    let start = Instant::now();
    loop {
        let there = count(sandbox, script).await;
        if there == wanted {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "{script}: {there}"
        );
    }
}

#[test]
fn clients_are_answered_as_the_protocol_says() {
    runtime().block_on(async {
        let template = template("python").placement(Placement::InProcess).build();
        let template = template.await.unwrap();
        let sandbox = template.fork().await.unwrap();

        // Nobody listens unasked.
        let error = sandbox.connect(JsonProtocol::PORT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let start = Instant::now();
        let served = sandbox.json_protocol().await.unwrap();
        println!("ready in {:.1?}", start.elapsed());
        let mut client = Client::of(&sandbox).await;

        let start = Instant::now();
        let out = client.run(&request("first", "print(6 * 7)")).await;
        println!("first result in {:.1?}", start.elapsed());
        assert_eq!(
            (&out["status"], &out["exit_code"]),
            (&json!("success"), &json!(0))
        );
        assert_eq!(text(&out["stdout"]), "42\n");
        assert!(out["memory_used"].as_u64().unwrap() > 0 && out["execution_time"].is_u64());
        assert!(out.get("compilation_time").is_none());

        let mut with_input = request("input", "import sys; print(sys.stdin.read()[::-1])");
        with_input["stdin"] = STANDARD.encode("abc").into();
        with_input["language"] = "python3".into();
        assert_eq!(text(&client.run(&with_input).await["stdout"]), "cba\n");

        // Nobody's superuser, and no way to the agent.
        let code = "import os, socket\nprint(os.getuid())\nsocket.socket(40, socket.SOCK_STREAM)";
        let out = client.run(&request("confined", code)).await;
        assert_eq!(out["status"], "runtime_error");
        assert_eq!(
            (text(&out["stdout"]).as_str(), &out["exit_code"]),
            ("1000\n", &json!(1))
        );

        let mut endless = request("endless", "while True: pass");
        endless["timeout"] = 300.into();
        assert_eq!(client.run(&endless).await["status"], "timeout");
        let mut greedy = request("greedy", "x = bytearray(200 << 20)\nx[:] = b'1' * len(x)");
        greedy["memory_limit"] = (32 << 20).into();
        assert_eq!(client.run(&greedy).await["status"], "memory_exceeded");
        let flood = request("flood", "while True: print('x' * 65536)");
        assert_eq!(client.run(&flood).await["status"], "runtime_error");
        // What is too long for an argument becomes a file.
        let long = format!("print(len('{}'))", "x".repeat(200_000));
        let out = client.run(&request("long", &long)).await;
        assert_eq!(text(&out["stdout"]), "200000\n", "{out}");

        // What is refused, after which the connection goes on.
        let mut unknown = request("unknown", "");
        unknown["language"] = "cobol".into();
        let error = client.refused(unknown.to_string().as_bytes()).await;
        assert_eq!(
            (&error["error"], &error["id"]),
            (&json!("unsupported_language"), &json!("unknown"))
        );
        for (field, value) in [
            ("code", "%"),
            ("stdin", "%"),
            ("timeout", "1"),
            ("type", "run"),
        ] {
            let mut wrong = request("wrong", "");
            wrong[field] = value.into();
            let error = client.refused(wrong.to_string().as_bytes()).await;
            assert_eq!(
                (&error["error"], &error["id"]),
                (&json!("invalid_request"), &json!("wrong"))
            );
        }
        assert_eq!(client.refused(b"{").await["error"], "invalid_request");

        // Two at once are run one after the other.
        let (one, two) = (request("one", "print(1)"), request("two", "print(2)"));
        client.send(one.to_string().as_bytes()).await;
        client.send(two.to_string().as_bytes()).await;
        let mut heard = Vec::new();
        for _ in 0..4 {
            let answer = client.answer().await;
            heard.push(format!("{} {}", answer["id"], answer["type"]).replace('"', ""));
        }
        assert_eq!(heard, ["one ack", "one result", "two ack", "two result"]);

        // A length that no frame has ends the connection, and no other.
        let mut other = Client::of(&sandbox).await;
        other.0.write_u32(u32::MAX).await.unwrap();
        assert_eq!(other.answer().await["error"], "invalid_request");
        assert_eq!(other.0.read(&mut [0]).await.unwrap(), 0);

        // Who vanishes takes along what ran.
        let mut vanishing = Client::of(&sandbox).await;
        let sleeper = request("sleeper", "import time; time.sleep(4321)");
        vanishing.send(sleeper.to_string().as_bytes()).await;
        assert_eq!(vanishing.answer().await["type"], "ack");
        until_there_are(&sandbox, SLEEPERS, 1).await;
        drop(vanishing);
        until_there_are(&sandbox, SLEEPERS, 0).await;
        assert_eq!(
            text(&client.run(&request("last", "print('on')")).await["stdout"]),
            "on\n"
        );

        // What runs its programs dies, and they with it: that is an error, and the next has another.
        let mut bereft = Client::of(&sandbox).await;
        bereft.send(sleeper.to_string().as_bytes()).await;
        assert_eq!(bereft.answer().await["type"], "ack");
        until_there_are(&sandbox, SLEEPERS, 1).await;
        let kill = "kill -9 $(ps -o pid= --ppid $(pgrep -of 'ember-json serve') | tail -1)";
        let out = sandbox.exec(shell(kill)).await.unwrap();
        assert!(out.success(), "{out:?}");
        let error = bereft.answer().await;
        assert_eq!(
            (&error["error"], &error["id"]),
            (&json!("internal_error"), &json!("sleeper"))
        );
        until_there_are(&sandbox, SLEEPERS, 0).await;
        let out = bereft.run(&request("again", "print(8)")).await;
        assert_eq!(text(&out["stdout"]), "8\n");

        // No more than sixteen clients at a time.
        let mut all = Vec::new();
        while all.len() < 14 {
            let mut another = Client::of(&sandbox).await;
            another.refused(b"{").await;
            all.push(another);
        }
        let mut one_more = Client::of(&sandbox).await;
        assert_eq!(one_more.0.read(&mut [0]).await.unwrap_or_default(), 0);
        drop(all);
        // Their places are free in a moment.
        let start = Instant::now();
        loop {
            let mut next = Client::of(&sandbox).await;
            let sent = next.0.write_all(b"\0\0\0\x01{").await;
            if sent.is_ok() && next.0.read_u32().await.is_ok() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(10));
        }

        // A clone of a guest that serves goes on with it.
        let clone = sandbox.fork().await.unwrap();
        let _again = clone.json_protocol().await.unwrap();
        let out = Client::of(&clone)
            .await
            .run(&request("clone", "print(3)"))
            .await;
        assert_eq!(text(&out["stdout"]), "3\n");
        clone.close().await;

        // Nobody serves any more: what ran has ended, and nothing is left of it.
        client.send(sleeper.to_string().as_bytes()).await;
        assert_eq!(client.answer().await["type"], "ack");
        until_there_are(&sandbox, SLEEPERS, 1).await;
        assert_ne!(count(&sandbox, NESTED).await, 0);
        drop(served);
        until_there_are(&sandbox, SLEEPERS, 0).await;
        until_there_are(&sandbox, NESTED, 0).await;
        assert_eq!(client.0.read(&mut [0]).await.unwrap_or_default(), 0);
        let error = sandbox.connect(JsonProtocol::PORT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let _served = sandbox.json_protocol().await.unwrap();
        let out = Client::of(&sandbox)
            .await
            .run(&request("anew", "print(4)"))
            .await;
        assert_eq!(text(&out["stdout"]), "4\n");
        sandbox.close().await;

        // A guest in a worker is reached by a stream of its own just so.
        let options = ForkOptions::new().placement(Placement::Worker);
        let remote = template.fork_with(options).await.unwrap();
        let error = remote.connect(JsonProtocol::PORT).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let _served = remote.json_protocol().await.unwrap();
        let mut clients = [Client::of(&remote).await, Client::of(&remote).await];
        for client in &mut clients {
            let out = client.run(&request("remote", "print(5)")).await;
            assert_eq!(text(&out["stdout"]), "5\n");
        }
        // More than any buffer on the way holds.
        let flood = request("flood", "print('x' * 3_000_000)");
        let out = clients[0].run(&flood).await;
        assert_eq!(text(&out["stdout"]).len(), 3_000_001);
        drop(clients);
        let mut last = Client::of(&remote).await;
        remote.close().await;
        assert_eq!(last.0.read(&mut [0]).await.unwrap_or_default(), 0);
    });
}

/// The most bytes of a frame, of a program or input, and of an id.
const MAX_FRAME: usize = 12 << 20;
const MAX_PART: usize = 4 << 20;
const MAX_ID: usize = 256;

/// A request with one field changed, or without it.
fn with(field: &str, value: Option<Value>) -> Value {
    let mut request = request("1", "print(1)");
    let fields = request.as_object_mut().unwrap();
    match value {
        Some(value) => drop(fields.insert(field.to_owned(), value)),
        None => drop(fields.remove(field)),
    }
    request
}

/// Frames that are refused, and whether it is said whose they are.
fn refused() -> Vec<(String, bool)> {
    let mut all = Vec::new();
    for field in ["id", "type", "language", "code", "timeout", "memory_limit"] {
        all.push((with(field, None).to_string(), field != "id"));
    }
    for (field, value) in [
        ("type", json!("run")),
        ("type", json!(1)),
        ("language", json!("")),
        ("language", json!("x".repeat(65))),
        ("code", json!(null)),
        ("code", json!("%")),
        // No padding; bits behind the end; another alphabet; a line.
        ("code", json!("cHJpbnQoMSk")),
        ("code", json!("cHJpbnQoMSl=")),
        ("code", json!("-_8=")),
        ("code", json!("cHJp\nbnQo")),
        ("code", json!(STANDARD.encode(vec![b' '; MAX_PART + 1]))),
        ("stdin", json!("%")),
        ("stdin", json!({})),
        ("stdin", json!(STANDARD.encode(vec![b' '; MAX_PART + 1]))),
        ("timeout", json!(0)),
        ("timeout", json!(-1)),
        ("timeout", json!(1.5)),
        ("timeout", json!("1")),
        ("timeout", json!(3_600_001)),
        ("memory_limit", json!(0)),
        ("memory_limit", json!((1 << 20) - 1)),
        ("memory_limit", json!((1_u64 << 40) + 1)),
        ("memory_limit", json!("1")),
        ("memory_limit", json!([])),
        ("other", json!(1)),
    ] {
        all.push((with(field, Some(value)).to_string(), true));
    }
    for id in [
        json!(1),
        json!(""),
        json!("x".repeat(MAX_ID + 1)),
        Value::Null,
    ] {
        all.push((with("id", Some(id)).to_string(), false));
    }
    let valid = request("1", "print(1)").to_string();
    let twice =
        |field: &str, value: &str| valid.replacen('{', &format!("{{\"{field}\":{value},"), 1);
    all.extend([
        (twice("id", "\"2\""), false),
        (twice("code", "\"\""), true),
        ("{".to_owned(), false),
        ("[]".to_owned(), false),
        ("\"text\"".to_owned(), false),
        (valid[..valid.len() - 1].to_owned(), false),
        (format!("{valid}x"), false),
        // Every field in its place, and no names.
        (
            json!(["1", "execute", "python", "", 1000, 1 << 27]).to_string(),
            false,
        ),
        ("[".repeat(100_000), false),
        (valid.replace("20000", &"[".repeat(100_000)), false),
        (valid.replace("\"1\"", "\"\\ud800\""), false),
    ]);
    all
}

#[test]
fn each_field_is_judged_and_each_end_is_told() {
    runtime().block_on(async {
        let template = template("python").placement(Placement::InProcess).build();
        let sandbox = template.await.unwrap().fork().await.unwrap();
        let _served = sandbox.json_protocol().await.unwrap();
        assert_eq!(JsonProtocol::PORT, 52_000);
        let mut client = Client::of(&sandbox).await;
        for (frame, is_known) in refused() {
            let shown: String = frame.chars().take(200).collect();
            let answer = client.refused(frame.as_bytes()).await;
            assert_eq!(answer["error"], "invalid_request", "{shown}: {answer}");
            assert!(answer["message"].is_string(), "{shown}: {answer}");
            let id = if is_known { json!("1") } else { Value::Null };
            assert_eq!(answer["id"], id, "{shown}: {answer}");
            assert_eq!(answer.as_object().unwrap().len(), 4, "{answer}");
        }
        assert_eq!(client.refused(b"\xff{}").await["error"], "invalid_request");

        // Lengths that no frame has, and a frame of the greatest that one has.
        for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
            let mut other = Client::of(&sandbox).await;
            other.0.write_u32(length).await.unwrap();
            let answer = other.answer().await;
            assert_eq!(answer["error"], "invalid_request", "{length}");
            assert!(answer["id"].is_null(), "{length}");
            assert_eq!(other.0.read(&mut [0]).await.unwrap(), 0, "{length}");
        }
        let mut frame = request("largest", "print(2)").to_string().into_bytes();
        frame.resize(MAX_FRAME, b' ');
        client.send(&frame).await;
        assert_eq!(client.answer().await["type"], "ack");
        assert_eq!(text(&client.answer().await["stdout"]), "2\n");
        // In pieces, each by itself.
        let frame = request("slow", "print(3)").to_string();
        let whole = [&(frame.len() as u32).to_be_bytes()[..], frame.as_bytes()].concat();
        for piece in [&whole[..1], &whole[1..3], &whole[3..9], &whole[9..]] {
            client.0.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(client.answer().await["type"], "ack");
        assert_eq!(text(&client.answer().await["stdout"]), "3\n");
        // Broken off, at either place.
        for broken in [&[0, 0][..], b"\0\0\0\x09{", &[0, 0xc0, 0, 0, b'{']] {
            let mut other = Client::of(&sandbox).await;
            other.0.write_all(broken).await.unwrap();
            other.0.shutdown().await.unwrap();
            assert_eq!(other.0.read(&mut [0]).await.unwrap_or_default(), 0);
        }

        // Ids as they may be, and as they are told.
        for id in ["x".repeat(MAX_ID), "\0".to_owned(), "ü\"\n".to_owned()] {
            client.run(&request(&id, "")).await;
        }

        // Ends.
        let out = client
            .run(&request("signal", "import os; os.kill(os.getpid(), 9)"))
            .await;
        assert_eq!(
            (&out["status"], &out["exit_code"]),
            (&json!("runtime_error"), &json!(137)),
            "{out}"
        );
        let mut late = request("late", "print('so far', flush=True)\nwhile True: pass");
        late["timeout"] = 6000.into();
        let out = client.run(&late).await;
        assert_eq!(out["status"], "timeout");
        assert_eq!(text(&out["stdout"]), "so far\n");
        assert!(out["execution_time"].as_u64().unwrap() >= 6000, "{out}");
        let mut least = request("least", "print(1)");
        least["memory_limit"] = (1 << 20).into();
        assert_eq!(client.run(&least).await["status"], "memory_exceeded");

        // Programs at the length from which they are files, and such as no argument can be.
        for length in [131_071, 131_072] {
            let code = format!("print(4){}", " ".repeat(length - 8));
            let out = client.run(&request("long", &code)).await;
            assert_eq!(text(&out["stdout"]), "4\n", "{length}: {out}");
        }
        client.run(&request("zero", "x = 1\0")).await;
        // Input at its longest, read and not.
        let mut fed = request("fed", "import sys; print(len(sys.stdin.buffer.read()))");
        fed["stdin"] = STANDARD.encode(vec![7; MAX_PART]).into();
        assert_eq!(
            text(&client.run(&fed).await["stdout"]),
            format!("{MAX_PART}\n")
        );
        for code in ["pass", "import os, time; os.close(0); time.sleep(0.2)"] {
            fed["code"] = STANDARD.encode(code).into();
            assert_eq!(client.run(&fed).await["status"], "success", "{code}");
        }
        for stdin in [Value::Null, json!("")] {
            let mut fed = request("no", "import sys; print(repr(sys.stdin.read()))");
            fed["stdin"] = stdin;
            assert_eq!(text(&client.run(&fed).await["stdout"]), "''\n");
        }

        // While one runs, another is answered.
        let mut busy = Client::of(&sandbox).await;
        let sleeper = request("sleeper", "import time; time.sleep(4321)");
        busy.send(sleeper.to_string().as_bytes()).await;
        assert_eq!(busy.answer().await["type"], "ack");
        until_there_are(&sandbox, SLEEPERS, 1).await;
        let out = client.run(&request("other", "print(5)")).await;
        assert_eq!(text(&out["stdout"]), "5\n");
        // Who says no more does not wait for an answer.
        busy.0.shutdown().await.unwrap();
        assert_eq!(busy.0.read(&mut [0]).await.unwrap_or_default(), 0);
        until_there_are(&sandbox, SLEEPERS, 0).await;
        // And leaves no file either.
        let mut vanishing = Client::of(&sandbox).await;
        let code = format!("#{}\nimport time; time.sleep(4321)", "x".repeat(200_000));
        vanishing
            .send(request("file", &code).to_string().as_bytes())
            .await;
        assert_eq!(vanishing.answer().await["type"], "ack");
        until_there_are(&sandbox, FILES, 1).await;
        drop(vanishing);
        until_there_are(&sandbox, FILES, 0).await;
        sandbox.close().await;
    });
}

/// What a frame of the next test is to be answered with.
#[derive(Debug, Clone)]
enum Sent {
    /// Anything: one answer, that it is refused.
    Frame(Vec<u8>),
    /// What ends the connection, with an answer.
    Length(u32),
}

/// Random bytes, and requests in a language that there is not, of which some bytes are others.
fn sent() -> impl Strategy<Value = Sent> {
    let valid = request("1", "print(1)").to_string();
    let valid = valid.replace("\"python\"", "\"zzzzzzzz\"").into_bytes();
    let length = valid.len();
    let changes = prop::collection::vec((0..length, any::<u8>()), 0..4);
    let mutated = (changes, 1..=length).prop_map(move |(changes, end)| {
        let mut bytes = valid.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        // Most are whole.
        bytes.truncate(if end % 4 == 0 { end } else { length });
        Sent::Frame(bytes)
    });
    let bytes = prop::collection::vec(any::<u8>(), 1..200).prop_map(Sent::Frame);
    let ending = prop_oneof![Just(0_u32), (MAX_FRAME as u32 + 1)..].prop_map(Sent::Length);
    prop_oneof![10 => mutated, 10 => bytes, 1 => ending]
}

#[test]
fn ten_thousand_random_requests_are_answered_and_leave_nothing() {
    const REQUESTS: usize = 10_000;
    /// Sent ahead of their answers.
    const AHEAD: usize = 40;
    ember_leak::isolated!(|| runtime().block_on(async {
        let template = template("python").placement(Placement::InProcess).build();
        let sandbox = template.await.unwrap().fork().await.unwrap();
        let _served = sandbox.json_protocol().await.unwrap();
        // Its threads and buffers are there from the first clients on.
        for _ in 0..4 {
            let mut client = Client::of(&sandbox).await;
            client.run(&request("first", "print(1)")).await;
        }
        until_there_are(&sandbox, NESTED, 1).await;
        let before = held(&sandbox).await;
        // The runtime's idle threads end after ten seconds.
        let settle = Duration::from_secs(20);
        let gate = LeakGate::builder().settle(settle).arm().unwrap();

        let mut runner = TestRunner::deterministic();
        let requests = prop::collection::vec(sent(), AHEAD);
        let mut answered = 0;
        while answered < REQUESTS {
            let all = requests.new_tree(&mut runner).unwrap().current();
            let mut client = Client::of(&sandbox).await;
            let mut bytes = Vec::new();
            let mut wanted = 0;
            let mut ends = false;
            for sent in &all {
                wanted += 1;
                match sent {
                    Sent::Frame(frame) => {
                        bytes.extend((frame.len() as u32).to_be_bytes());
                        bytes.extend(frame);
                    }
                    Sent::Length(length) => {
                        bytes.extend(length.to_be_bytes());
                        ends = true;
                        break;
                    }
                }
            }
            client.0.write_all(&bytes).await.unwrap();
            for _ in 0..wanted {
                let answer = client.answer().await;
                assert_eq!(answer["type"], "error", "{answer}: {all:?}");
                let error = answer["error"].as_str().unwrap();
                assert!(
                    ["invalid_request", "unsupported_language"].contains(&error),
                    "{answer}: {all:?}"
                );
            }
            answered += wanted;
            if ends {
                assert_eq!(client.0.read(&mut [0]).await.unwrap(), 0);
            }
        }
        // No more answers than that.
        let mut client = Client::of(&sandbox).await;
        client.refused(b"{").await;
        let more = tokio::time::timeout(Duration::from_millis(300), client.0.read_u8());
        assert!(more.await.is_err());
        let out = client.run(&request("last", "print('well')")).await;
        assert_eq!(text(&out["stdout"]), "well\n");
        drop(client);
        gate.check().unwrap();
        until_there_are(&sandbox, NESTED, 1).await;
        let start = Instant::now();
        loop {
            let now = held(&sandbox).await;
            // A MiB is what an allocator may keep.
            if now[0] <= before[0] && now[1] <= before[1] && now[2] < before[2] + 1024 {
                break;
            }
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{before:?}, and now {now:?}"
            );
        }
        sandbox.close().await;
    }));
}

/// Descriptors and threads of what serves, and its memory in KiB.
async fn held(sandbox: &Sandbox) -> Vec<u64> {
    let script = "p=$(pgrep -of 'ember-json serve'); ls /proc/$p/fd | wc -l; \
                  ls /proc/$p/task | wc -l; sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$p/status";
    let out = sandbox.exec(shell(script)).await.unwrap();
    let numbers: Vec<u64> = out
        .stdout
        .to_string_lossy()
        .lines()
        .map(|line| line.trim().parse().unwrap())
        .collect();
    assert_eq!(numbers.len(), 3, "{out:?}");
    numbers
}

#[test]
#[ignore = "it needs the pack of C++, and a minute"]
fn compiled_programs_say_how_long_that_took_and_why_they_could_not_be() {
    runtime().block_on(async {
        let sandbox = Sandbox::builder(Image::pack("cpp"))
            .placement(Placement::InProcess)
            .boot();
        let sandbox = sandbox.await.unwrap();
        let _served = sandbox.json_protocol().await.unwrap();
        let mut client = Client::of(&sandbox).await;
        let mut program = request(
            "good",
            "#include <cstdio>\nint main() { puts(\"hi\"); return 3; }",
        );
        program["language"] = "cpp".into();
        let out = client.run(&program).await;
        assert_eq!(
            (&out["status"], &out["exit_code"]),
            (&json!("runtime_error"), &json!(3)),
            "{out}"
        );
        assert_eq!(text(&out["stdout"]), "hi\n");
        assert!(out["compilation_time"].as_u64().unwrap() > 0);
        program["code"] = STANDARD.encode("int main() { return x; }").into();
        let out = client.run(&program).await;
        assert_eq!(out["status"], "compilation_error");
        assert!(text(&out["stderr"]).contains("not declared"), "{out}");
        sandbox.close().await;
    });
}
