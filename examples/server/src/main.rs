//! `ember-server`: sandboxes over HTTP.
#![forbid(unsafe_code)]

use std::io;
use std::process::{self, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use ember_server::{Options, Server};
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> ExitCode {
    let options = Options::parse();
    log(&options);
    match perform(&options) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(left) => {
            eprintln!("ember-server: {left} sandboxes had not ended in time");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("ember-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the number of sandboxes that had not ended.
fn perform(options: &Options) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let server = Server::bind(options).await?;
        let stop = async move {
            let name = signals.next().await;
            tracing::info!(
                signal = name,
                "ending; what is under way has {} to end, another signal ends it at once",
                humantime::format_duration(options.drain_timeout)
            );
            tokio::spawn(async move {
                let name = signals.next().await;
                tracing::warn!(signal = name, "ended at once");
                // Virtual machines end with this process, and so do those in workers: the kernel
                // kills a worker whose owner is gone.
                process::exit(if name == "SIGINT" { 130 } else { 143 });
            });
        };
        server.run(stop).await
    });
    // A thread may still be building an image, which nobody waits for any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// What asks the server to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

fn log(options: &Options) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(options.log)
        .with_target(false)
        .with_writer(io::stderr);
    if options.json {
        builder.json().flatten_event(true).init();
    } else {
        let colours = io::IsTerminal::is_terminal(&io::stderr());
        builder.with_ansi(colours).init();
    }
}
