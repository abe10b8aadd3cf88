//! The guest channel.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ember_core::{Command, Stdin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use crate::figure::Figure;
use crate::sandbox::{CONDITIONS, builder, ms_since};

const PINGS: usize = 300;
const WARM_UP: usize = 20;
const TRANSFERS: usize = 3;
/// How many bytes a throughput sample moves.
const BYTES: usize = 32 << 20;

/// `channel.ping`: a request to the agent and its answer.
pub(crate) fn ping(runtime: &Runtime) -> Result<Vec<Figure>> {
    let samples = runtime.block_on(async {
        let sandbox = builder()?.boot().await?;
        let mut samples = Vec::new();
        for ping in 0..WARM_UP + PINGS {
            let start = Instant::now();
            sandbox.ping().await?;
            if ping >= WARM_UP {
                samples.push(ms_since(start));
            }
        }
        sandbox.close().await;
        anyhow::Ok(samples)
    })?;
    Ok(vec![Figure::of(
        "channel.ping",
        "reply",
        "ms",
        Some(0.15),
        CONDITIONS,
        &samples,
    )])
}

/// `channel.throughput`: a program's output to the host, and the host's input to a program.
pub(crate) fn throughput(runtime: &Runtime) -> Result<Vec<Figure>> {
    let mut to_host = Vec::new();
    let mut to_guest = Vec::new();
    runtime.block_on(async {
        let sandbox = builder()?.boot().await?;
        for _ in 0..TRANSFERS {
            let command = Command::new("head").args(["-c", &BYTES.to_string(), "/dev/zero"]);
            let start = Instant::now();
            let mut process = sandbox.spawn(command).await?;
            let mut stdout = process.take_stdout().context("no stdout")?;
            let mut buffer = vec![0; 256 << 10];
            let mut got = 0;
            loop {
                match stdout.read(&mut buffer).await? {
                    0 => break,
                    count => got += count,
                }
            }
            process.wait().await?;
            to_host.push(megabytes_a_second(got, start));
            ensure!(got == BYTES, "{got} bytes arrived");

            let command = Command::new("wc").arg("-c").stdin(Stdin::Piped);
            let start = Instant::now();
            let mut process = sandbox.spawn(command).await?;
            let mut stdin = process.take_stdin().context("no stdin")?;
            let chunk = vec![0; 256 << 10];
            for _ in 0..BYTES / chunk.len() {
                stdin.write_all(&chunk).await?;
            }
            stdin.shutdown().await?;
            drop(stdin);
            let output = process.output(1024).await?;
            to_guest.push(megabytes_a_second(BYTES, start));
            let counted = output.stdout.to_string_lossy().trim().to_owned();
            ensure!(counted == BYTES.to_string(), "the guest counted {counted}");
        }
        sandbox.close().await;
        anyhow::Ok(())
    })?;
    let figure = |kind, what: &str, samples: &[f64]| {
        let conditions = format!("{CONDITIONS}; {what}");
        Figure::of(
            "channel.throughput",
            kind,
            "MB/s",
            None,
            conditions,
            samples,
        )
    };
    Ok(vec![
        figure(
            "throughput to host",
            "stdout of `head -c 32M /dev/zero`",
            &to_host,
        ),
        figure("throughput to guest", "stdin of `wc -c`, 32 MiB", &to_guest),
    ])
}

fn megabytes_a_second(bytes: usize, start: Instant) -> f64 {
    bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
}
