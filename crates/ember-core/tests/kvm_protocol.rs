//! The JSON protocol of a real guest's agent, as its clients speak it: frames on a vsock stream.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{runtime, template};
use ember_core::{ErrorKind, ForkOptions, Image, JsonProtocol, Placement, Sandbox};
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
            start.elapsed() < Duration::from_secs(10),
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
