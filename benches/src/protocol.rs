//! The JSON protocol, as its clients see it.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ember_core::{Code, Image, JsonProtocol, Kernel, Sandbox};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::figure::Figure;
use crate::limits::number;
use crate::sandbox::{ms_since, read_ahead};

const MESSAGES: usize = 100;
const STARTS: usize = 20;
const RUNS: usize = 20;
const WARM_UP: usize = 3;
const CONDITIONS: &str = "tuned kernel, 1 vCPU, the bash pack";
/// `:`, a program that does nothing.
const NOTHING: &str = "Og==";
/// RSS in KiB of the server and of what runs programs for one client.
const SERVER_RSS: &str = "for process in /proc/[0-9]*; do \
     grep -qs ^ember-json $process/cmdline && \
     sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' $process/status; done; true";

struct Client(UnixStream);

impl Client {
    async fn send(&mut self, request: &Value) -> Result<()> {
        let text = request.to_string();
        let mut frame = u32::try_from(text.len())?.to_be_bytes().to_vec();
        frame.extend_from_slice(text.as_bytes());
        Ok(self.0.write_all(&frame).await?)
    }

    async fn answer(&mut self) -> Result<Value> {
        let mut bytes = vec![0; self.0.read_u32().await? as usize];
        self.0.read_exact(&mut bytes).await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The next answer, which has to be of this type.
    async fn expect(&mut self, kind: &str) -> Result<Value> {
        let answer = self.answer().await?;
        if answer["type"] != kind {
            bail!("no {kind} but {answer}");
        }
        Ok(answer)
    }
}

/// `protocol.*`: until it is served, for a message that is answered at once, what it adds to an
/// execution, and what it takes of the guest's memory.
pub(crate) fn measure(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let image = Image::pack("bash");
        read_ahead(&image)?;
        let sandbox = Sandbox::builder(image)
            .kernel(Kernel::tuned())
            .boot()
            .await?;
        let mut ready = Vec::new();
        for start in 0..WARM_UP + STARTS {
            let begun = Instant::now();
            let served = sandbox.json_protocol().await?;
            if start >= WARM_UP {
                ready.push(ms_since(begun));
            }
            drop(served);
            // It has ended when its port is free, and who asks is not told that it serves already.
            while sandbox.connect(JsonProtocol::PORT).await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
        let _served = sandbox.json_protocol().await?;
        let mut client = Client(sandbox.connect(JsonProtocol::PORT).await?);
        let mut messages = Vec::new();
        for message in 0..WARM_UP + MESSAGES {
            let begun = Instant::now();
            client.send(&json!({"id": "x", "type": "ask"})).await?;
            client.expect("error").await?;
            if message >= WARM_UP {
                messages.push(ms_since(begun));
            }
        }
        let mut added = Vec::new();
        for run in 0..WARM_UP + RUNS {
            // In turns with what it is held against.
            let begun = Instant::now();
            let output = sandbox.run(Code::new("bash", ":")).await?;
            let usual = ms_since(begun);
            ensure!(output.success(), "the program failed: {output:?}");
            let begun = Instant::now();
            client
                .send(&json!({
                    "id": "x", "type": "execute", "language": "bash", "code": NOTHING,
                    "timeout": 60_000, "memory_limit": 64 << 20,
                }))
                .await?;
            client.expect("ack").await?;
            let result = client.expect("result").await?;
            let elapsed = ms_since(begun);
            ensure!(
                result["status"] == "success",
                "the program failed: {result}"
            );
            if run >= WARM_UP {
                added.push(elapsed - usual);
            }
        }
        let rss = number(&sandbox, SERVER_RSS)
            .await
            .context("the protocol's server")?;
        sandbox.close().await;
        let time = |name, kind, goal, what: &str, samples: &[f64]| {
            Figure::of(
                name,
                kind,
                "ms",
                Some(goal),
                format!("{CONDITIONS}; {what}"),
                samples,
            )
        };
        Ok(vec![
            time(
                "protocol.ready",
                "reply",
                50.0,
                "asked for until it is served",
                &ready,
            ),
            time(
                "protocol.message",
                "reply",
                5.0,
                "a request that is refused",
                &messages,
            ),
            time(
                "protocol.added",
                "result",
                10.0,
                "a program that does nothing, less the same by `Sandbox::run`",
                &added,
            ),
            Figure::of(
                "protocol.memory",
                "memory",
                "MB",
                Some(10.0),
                format!(
                    "{CONDITIONS}; RSS of its processes, with one client that has run programs"
                ),
                &[rss * 1024.0 / 1e6],
            ),
        ])
    })
}
