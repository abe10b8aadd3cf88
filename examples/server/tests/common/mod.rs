//! A client of the server, and the server as a program.
#![allow(dead_code, reason = "not every test binary uses all of it")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// Longer than anything here takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(240);

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Somebody who asks the server, each time on a connection of his own.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) key: Option<String>,
}

/// What the server said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, key: None }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        let ask = self.try_ask(method, path, body);
        tokio::time::timeout(LONG, ask).await.unwrap().unwrap()
    }

    /// Fails when there is no connection, or it breaks. Dropping the future closes it.
    pub(crate) async fn try_ask(
        &self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string());
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let bytes = body.collect().await?.to_bytes();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                text: String::from_utf8(bytes.to_vec())?,
            })
        };
        // In this task, so that it ends with it.
        let mut exchange = std::pin::pin!(exchange);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            answer = &mut exchange => answer,
            over = &mut connection => {
                over?;
                exchange.await
            }
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask("POST", path, &body).await
    }

    /// Goes away after a while without having waited for the answer.
    pub(crate) async fn vanish(&self, path: &str, body: Value, after: Duration) {
        let asking = self.try_ask("POST", path, &body);
        tokio::time::timeout(after, asking)
            .await
            .expect_err("there was an answer");
    }

    /// Waits until all pools are filled.
    pub(crate) async fn until_ready(&self) {
        let begun = Instant::now();
        loop {
            match self.try_ask("GET", "/readyz", &Value::Null).await {
                Ok(answer) if answer.status == StatusCode::OK => return,
                other => assert!(begun.elapsed() < LONG, "not ready: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The value of a metric, with its labels as they are shown; 0 if it is not there.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text;
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric has this value.
    pub(crate) async fn until(&self, name: &str, value: f64) {
        let begun = Instant::now();
        loop {
            let found = self.metric(name).await;
            if found == value {
                return;
            }
            assert!(begun.elapsed() < LONG, "{name} is {found}, not {value}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Takes a sandbox and gives the path at which it is.
    pub(crate) async fn create(&self, pack: &str) -> String {
        let answer = self
            .post("/sandboxes", serde_json::json!({"language_pack": pack}))
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        assert!(id.starts_with("sb_"), "{id}");
        format!("/sandboxes/{id}")
    }
}

/// The server as a program.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    pub(crate) address: SocketAddr,
    reading: Option<JoinHandle<Vec<String>>>,
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ember-server"));
    command
        .args(arguments)
        .env_remove("EMBER_API_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Program {
    /// Starts it on a free port, which its log says.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = command(&["--listen", "127.0.0.1:0", "--json"]);
        let mut child = command.args(arguments).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, address) = mpsc::channel();
        let reading = std::thread::spawn(move || {
            let mut lines = Vec::new();
            for line in stderr.lines() {
                let line = line.unwrap();
                let value: Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(address) = value["address"].as_str() {
                    let _ = sender.send(address.parse().unwrap());
                }
                lines.push(line);
            }
            lines
        });
        let address = address.recv_timeout(LONG).unwrap();
        Self {
            child,
            address,
            reading: Some(reading),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// The processes that it has started, with when that was: their numbers may be another's later.
    pub(crate) fn descendants(&self) -> Vec<(u32, String)> {
        let all: Vec<(u32, u32, String)> = processes();
        let mut family = vec![self.child.id()];
        let mut found = Vec::new();
        while let Some(parent) = family.pop() {
            for (pid, _, started) in all.iter().filter(|(_, of, _)| *of == parent) {
                family.push(*pid);
                found.push((*pid, started.clone()));
            }
        }
        found
    }

    /// Waits for its end, and gives its status and its log.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<String>) {
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(begun.elapsed() < LONG, "the server does not end"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let lines = self.reading.take().unwrap().join().unwrap();
        (status, lines)
    }
}

impl Drop for Program {
    /// After a test that has failed.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reading) = self.reading.take() {
            let lines = reading.join().unwrap_or_default();
            eprintln!("the server's log:\n{}", lines.join("\n"));
        }
    }
}

/// Every process with its parent and when it was started (proc(5), `stat`: fields 1, 4 and 22).
fn processes() -> Vec<(u32, u32, String)> {
    let numbers = std::fs::read_dir("/proc").unwrap();
    numbers
        .filter_map(|entry| {
            let pid: u32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The second field may have anything in it, and ends with the last parenthesis.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            Some((pid, fields[1].parse().ok()?, fields[19].to_owned()))
        })
        .collect()
}

/// Waits until none of these processes is left.
pub(crate) fn until_gone(family: &[(u32, String)]) {
    let begun = Instant::now();
    loop {
        let now = processes();
        let left: Vec<_> = family
            .iter()
            .filter(|(pid, started)| now.iter().any(|(p, _, s)| p == pid && s == started))
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "left: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
