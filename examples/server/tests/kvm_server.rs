//! The server with real sandboxes, over real HTTP.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "it is a test"
)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use clap::Parser;
use common::{Client, Program, runtime, until_gone};
use ember_leak::LeakGate;
use ember_server::{Options, Server};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

const KEY: &str = "the-key-of-these-tests";
/// Longer than any of these tests.
const FOREVER: &str = "sleep 3600";

/// One server with two languages, as others' clients use it, to its end.
#[test]
fn clients_are_served_until_the_server_ends_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    let server = Program::start(&[
        "--packs=python,bash",
        "--placement=worker",
        "--ready=2",
        "--max=12",
        "--queue-timeout=4m",
        "--output-limit=64",
        "--key-file",
        file.to_str().unwrap(),
    ]);
    let mut client = Client::new(server.address);
    let runtime = runtime();
    runtime.block_on(async {
        // Alive at once, and of use later.
        assert_eq!(client.get("/healthz").await.status, 200);
        client.until_ready().await;
        assert_eq!(client.get("/info").await.status, 401);
        client.key = Some(KEY.to_owned());
        emberd(&client).await;
        zeroboot(&client).await;
        operators(&client).await;
        many(&client).await;
        vanishing(&client).await;
    });

    let family = server.descendants();
    runtime.block_on(async {
        let path = client.create("bash").await;
        let code = "sleep 3; echo done";
        let last = tokio::spawn({
            let (client, path) = (client.clone(), format!("{path}/exec"));
            async move { client.post(&path, json!({"code": code})).await }
        });
        // Somebody who holds a connection, and asks nothing, is not waited for.
        let _silent = tokio::net::TcpStream::connect(client.address)
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.signal(Signal::TERM);
        let answer = last.await.unwrap();
        assert_eq!(answer.json()["stdout"], "done\n", "{answer:?}");
        client
            .try_ask("GET", "/healthz", &Value::Null)
            .await
            .expect_err("it still listens");
    });
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(log.iter().all(|line| !line.contains(KEY)), "{log:#?}");
    until_gone(&family);
}

async fn emberd(client: &Client) {
    let info = client.get("/info").await.json();
    assert_eq!(info["packs"], json!(["python", "bash"]));
    assert_eq!(info["guest_ram_mib"], 256);

    // No body is Python; a file stays from one program to the next, and its state does not.
    let answer = client.post("/sandboxes", Value::Null).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let path = format!("/sandboxes/{}", answer.json()["id"].as_str().unwrap());
    let exec = format!("{path}/exec");
    let code = "x = 1; open('/tmp/note', 'w').write('kept'); print(6 * 7)";
    let answer = client.post(&exec, json!({"code": code})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let done = answer.json();
    assert_eq!(
        (&done["stdout"], &done["exit_code"]),
        (&json!("42\n"), &json!(0))
    );
    assert!(done.get("error").is_none(), "{done}");
    let micros = done["duration_us"].as_u64().unwrap();
    assert_eq!(done["duration_ms"], micros / 1000);
    let code = "import sys; print(open('/tmp/note').read(), sys.stdin.read(), 'x' in dir())\n\
                print('oh', file=sys.stderr); sys.exit(7)";
    let answer = client
        .post(&exec, json!({"code": code, "stdin": "in"}))
        .await;
    let done = answer.json();
    assert_eq!(done["stdout"], "kept in False\n", "{done}");
    assert_eq!(
        (&done["stderr"], &done["exit_code"]),
        (&json!("oh\n"), &json!(7))
    );
    let answer = client.ask("DELETE", &path, &Value::Null).await;
    assert_eq!((answer.status.as_u16(), &*answer.text), (204, ""));
    let gone = json!({"error": "sandbox not found"});
    for (method, path) in [("DELETE", &path), ("POST", &exec)] {
        let answer = client.ask(method, path, &json!({"code": "1"})).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (404, gone.clone()));
    }

    // emberd's name for another pack; ends that are no exit.
    let path = client.create("shell").await;
    let exec = format!("{path}/exec");
    for (body, code, error) in [
        (json!({"code": "exit 3", "timeout_ms": 0}), 3, Value::Null),
        (json!({"code": "kill -9 $$"}), -1, Value::Null),
        (
            json!({"code": FOREVER, "timeout_ms": 300}),
            -1,
            json!("execution timed out"),
        ),
        (json!({"code": "yes"}), -1, json!("output limit")),
    ] {
        let answer = client.post(&exec, body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let done = answer.json();
        assert_eq!(
            (&done["exit_code"], &done["error"]),
            (&json!(code), &error),
            "{done}"
        );
    }
    // What runs in a sandbox is over when it is given back.
    let running = tokio::spawn({
        let (client, exec) = (client.clone(), exec.clone());
        async move { client.post(&exec, json!({"code": FOREVER})).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = client.ask("DELETE", &path, &Value::Null).await;
    assert_eq!(answer.status, 204);
    let answer = running.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.json()), (404, gone));
}

async fn zeroboot(client: &Client) {
    let body = json!({"code": "import json; print(json.dumps([0, None]))", "language": "python"});
    let answer = client.post("/v1/exec", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let done = answer.json();
    assert_eq!(done["stdout"], "[0, null]\n", "{done}");
    assert_eq!(
        (&done["stderr"], &done["exit_code"]),
        (&json!(""), &json!(0))
    );
    assert_eq!(done["id"].as_str().unwrap().len(), 36);
    let time = |name: &str| done[name].as_f64().unwrap();
    let parts = time("fork_time_ms") + time("exec_time_ms");
    assert!(
        parts > 0.0 && parts <= time("total_time_ms") + 0.01,
        "{done}"
    );

    let body = json!({"executions": [
        {"code": "echo a; exit 5", "language": "sh"},
        {"code": FOREVER, "language": "bash", "timeout_seconds": 1},
        {"code": "kill -TERM $$", "language": "bash"},
    ]});
    let answer = client.post("/v1/exec/batch", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.json()["results"].clone();
    let ends: Vec<_> = (0..3)
        .map(|n| {
            (
                &results[n]["stdout"],
                &results[n]["stderr"],
                &results[n]["exit_code"],
            )
        })
        .collect();
    let late = json!("Execution timed out after 1s");
    let (a, none) = (json!("a\n"), json!(""));
    assert_eq!(ends[0], (&a, &none, &json!(5)));
    assert_eq!(ends[1], (&none, &late, &json!(-1)));
    assert_eq!(ends[2], (&none, &none, &json!(143)));
}

async fn operators(client: &Client) {
    let health = client.get("/v1/health").await.json();
    assert_eq!(health["status"], "ok");
    assert_eq!(
        health["templates"]["bash"],
        json!({"ready": true, "memory_mb": 256})
    );
    let document = client.get("/openapi.json").await.json();
    assert!(document["paths"]["/v1/exec"]["post"].is_object());
    let text = client.get("/v1/metrics").await.text;
    for line in [
        r#"ember_forks_total{pack="bash",outcome="ok"}"#,
        r#"ember_latency_seconds_count{pack="python",kind="object"}"#,
        r#"ember_latency_seconds_count{pack="python",kind="reply"}"#,
        r#"ember_latency_seconds_count{pack="python",kind="result"} 1"#,
        r#"ember_executions_total{language="bash",outcome="timeout"} 2"#,
        r#"ember_pool_sandboxes{pack="python",state="ready"}"#,
        r#"ember_template_shared_bytes{pack="python"}"#,
        "ember_process_resident_bytes",
    ] {
        assert!(
            text.lines().any(|it| it.starts_with(line)),
            "{line}: {text}"
        );
    }
    // It is looked at in the background when a sandbox is done with.
    let name = r#"ember_sandbox_copied_pages_count{pack="python"}"#;
    assert!(client.metric(name).await > 0.0, "{text}");
}

/// 64 at once: some want a sandbox for one program, most share four, in each of which more programs
/// are to run than may at once.
async fn many(client: &Client) {
    let mut paths = Vec::new();
    for _ in 0..4 {
        paths.push(client.create("bash").await);
    }
    let mut clients = JoinSet::new();
    for number in 0..64 {
        let (client, path) = (client.clone(), paths.get(number / 15).cloned());
        clients.spawn(async move {
            let code = format!("echo {number}");
            let answer = match path {
                Some(path) => {
                    let exec = format!("{path}/exec");
                    client.post(&exec, json!({"code": code})).await
                }
                None => {
                    let body = json!({"code": code, "language": "bash", "timeout_seconds": 120});
                    client.post("/v1/exec", body).await
                }
            };
            assert_eq!(answer.status, 200, "{answer:?}");
            let done = answer.json();
            assert_eq!(done["stdout"], format!("{number}\n"), "{done}");
            assert_eq!(done["exit_code"], 0);
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
    for path in paths {
        let answer = client.ask("DELETE", &path, &Value::Null).await;
        assert_eq!(answer.status, 204);
    }
}

/// Clients go away in the midst of it: what they wanted is over, and nothing is lost.
async fn vanishing(client: &Client) {
    let busy = r#"ember_pool_sandboxes{pack="bash",state="busy"}"#;
    client.until(busy, 0.0).await;
    let path = client.create("bash").await;
    let exec = format!("{path}/exec");
    let soon = Duration::from_secs(2);
    let program = json!({"code": FOREVER, "language": "bash"});
    tokio::join!(
        client.vanish("/v1/exec", program.clone(), soon),
        client.vanish("/v1/exec/batch", json!({"executions": [program]}), soon),
        client.vanish(&exec, json!({"code": FOREVER}), soon),
    );
    client.until(busy, 1.0).await;
    // The sandbox of an id is still its client's.
    let answer = client.post(&exec, json!({"code": "echo here"})).await;
    assert_eq!(answer.json()["stdout"], "here\n", "{answer:?}");
    client.ask("DELETE", &path, &Value::Null).await;
    client.until(busy, 0.0).await;
    for route in ["/v1/exec", "/v1/exec/batch", "/sandboxes/{id}/exec"] {
        let name = format!(r#"ember_http_requests_total{{route="POST {route}",status="499"}}"#);
        client.until(&name, 1.0).await;
    }
}

/// Also while templates are being built; what is under way is a request whose body does not come.
#[test]
fn a_second_signal_ends_it_at_once() {
    let server = Program::start(&["--packs=bash", "--placement=worker"]);
    let mut client = TcpStream::connect(server.address).unwrap();
    let head = "POST /v1/exec HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let family = server.descendants();
    server.signal(Signal::INT);
    std::thread::sleep(Duration::from_secs(1));
    let second = Instant::now();
    server.signal(Signal::TERM);
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(143), "{log:#?}");
    assert!(second.elapsed() < Duration::from_secs(10), "{log:#?}");
    until_gone(&family);
}

/// A server within this process, and its sandboxes too, so that what they leave can be counted.
#[test]
fn a_server_that_has_ended_leaves_nothing_behind() {
    ember_leak::isolated!(|| {
        // What the first leaves is the process's own.
        runtime().block_on(a_life());
        let gate = LeakGate::arm().unwrap();
        runtime().block_on(a_life());
        gate.check().unwrap();
    });
}

async fn a_life() {
    let options = Options::parse_from([
        "ember-server",
        "--listen=127.0.0.1:0",
        "--packs=bash",
        "--ready=1",
        "--max=1",
        "--queue-timeout=300ms",
        "--idle-timeout=1s",
        "--drain-timeout=1s",
        "--placement=in-process",
    ]);
    let server = Server::bind(&options).await.unwrap();
    let client = Client::new(server.address());
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async { stopped.await.unwrap() }));
    client.until_ready().await;

    // Its one sandbox is in use, and there is no other.
    let exec = format!("{}/exec", client.create("bash").await);
    let using = client.vanish(&exec, json!({"code": FOREVER}), Duration::from_secs(2));
    let refused = async {
        for (path, body) in [
            ("/sandboxes", json!({"language_pack": "bash"})),
            ("/v1/exec", json!({"code": "echo", "language": "bash"})),
        ] {
            let answer = client.post(path, body).await;
            assert_eq!(answer.status, 503, "{answer:?}");
            assert_eq!(answer.headers["retry-after"], "1");
            assert!(answer.json()["error"].is_string());
        }
    };
    tokio::join!(using, refused);
    let turned_away = r#"ember_pool_turned_away_total{pack="bash"}"#;
    assert_eq!(client.metric(turned_away).await, 2.0);
    // Then it lies idle, and is ended.
    client.until("ember_sandboxes_held", 0.0).await;
    let answer = client.post(&exec, json!({"code": "echo"})).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    let evicted = r#"ember_sandboxes_evicted_total{pack="bash"}"#;
    assert_eq!(client.metric(evicted).await, 1.0);

    // What is under way when it ends, and does not end by itself, is broken off.
    let ready = r#"ember_pool_sandboxes{pack="bash",state="ready"}"#;
    client.until(ready, 1.0).await;
    let exec = format!("{}/exec", client.create("bash").await);
    let last = tokio::spawn({
        let client = client.clone();
        let body = json!({"code": FOREVER});
        async move { client.try_ask("POST", &exec, &body).await.is_err() }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.send(()).unwrap();
    assert_eq!(running.await.unwrap().unwrap(), 0);
    assert!(last.await.unwrap());
}
