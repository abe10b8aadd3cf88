//! `ember bench`: how long things take on this very host.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ember_core::{ByteSize, Code, Command, Error, Host, Pool, Sandbox, Template};
use serde_json::json;

use crate::arguments::{Bench, Common};
use crate::figures::{Figure, figure, show};
use crate::guest::{guest, template, until_signal};
use crate::report::say;

/// Clones that are kept ready while such are measured.
const READY: usize = 4;
/// How often is measured what takes a large part of a second.
const SLOW: usize = 5;
/// Far longer than it takes to end some clones that nobody uses.
const DRAINING: Duration = Duration::from_secs(10);

pub(crate) async fn bench(options: &Bench, common: &Common) -> Result<ExitCode> {
    let host = Host::examine();
    if !host.can_boot() {
        bail!("this host cannot run sandboxes; `ember doctor` says why");
    }
    until_signal(measure(options, common, &host)).await
}

/// The guests' memory: figures are compared, so it does not depend on the pack.
fn memory(common: &Common) -> ByteSize {
    common.memory.unwrap_or(ByteSize::mib(256))
}

async fn measure(options: &Bench, common: &Common, host: &Host) -> Result<ExitCode> {
    let samples = usize::from(options.samples);
    let common = &Common {
        memory: Some(memory(common)),
        ..common.clone()
    };
    let mut figures = Vec::new();
    guests(common, samples, &mut figures).await?;
    let begun = Instant::now();
    let template = template(common)?.cached(false).build().await?;
    let built = begun.elapsed();
    figures.push(figure(
        "template.build",
        "a guest is booted and saved",
        vec![built],
    ));
    clones(&template, samples, &mut figures).await?;
    clones_kept_ready(&template, samples, &mut figures).await?;

    if common.json {
        let figures: Vec<_> = figures.iter().map(Figure::to_json).collect();
        let conditions =
            json!({ "vcpus": common.vcpus, "memory_bytes": memory(common).as_bytes() });
        let all = json!({ "host": host, "conditions": conditions, "figures": figures });
        say!("{all:#}");
        return Ok(ExitCode::SUCCESS);
    }
    for finding in &host.findings {
        say!("{:<16} {}", finding.subject, finding.found);
    }
    say!("");
    say!("{:<20} {:>10} {:>10}", "", "p50", "p99");
    for figure in &figures {
        let (median, slow) = (figure.percentile(50), figure.percentile(99));
        say!(
            "{:<20} {:>10} {:>10}  {} ({}×)",
            figure.name,
            show(median),
            show(slow),
            figure.what,
            figure.samples()
        );
    }
    say!("");
    say!(
        "{} vCPUs, {}. By this host's clock, with whatever else it does.",
        common.vcpus,
        memory(common)
    );
    Ok(ExitCode::SUCCESS)
}

/// How long each of `count` turns of `timed` takes. What comes before and after it is not counted.
async fn times<T>(
    count: usize,
    before: impl AsyncFn(),
    timed: impl AsyncFn() -> Result<T, Error>,
    after: impl AsyncFn(T),
) -> Result<Vec<Duration>, Error> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        before().await;
        let begun = Instant::now();
        let made = timed().await?;
        times.push(begun.elapsed());
        after(made).await;
    }
    Ok(times)
}

/// Nothing to wait for first.
async fn at_once() {}

/// Guests that are booted.
async fn guests(common: &Common, samples: usize, figures: &mut Vec<Figure>) -> Result<()> {
    let few = samples.min(SLOW);
    // What the first one reads from disk the others find in memory.
    guest(common)?.boot().await?.close().await;
    let mut boots = Vec::new();
    for _ in 0..few {
        let builder = guest(common)?;
        let begun = Instant::now();
        let sandbox = builder.boot().await?;
        boots.push(begun.elapsed());
        sandbox.close().await;
    }
    let sandbox = guest(common)?.boot().await?;
    let pings = times(
        samples,
        at_once,
        async || sandbox.ping().await,
        async |_| (),
    )
    .await?;
    let command = async || sandbox.exec(Command::new("/bin/true")).await;
    let commands = times(samples, at_once, command, async |_| ()).await?;
    let forks = times(few, at_once, async || sandbox.fork().await, Sandbox::close).await?;
    sandbox.close().await;

    figures.extend([
        figure("boot.agent", "a guest is booted and has answered", boots),
        figure("channel.ping", "a request to a guest and its answer", pings),
        figure("exec.true", "/bin/true, request to exit status", commands),
        figure(
            "livefork.reply",
            "a running guest is cloned, the clone has answered",
            forks,
        ),
    ]);
    Ok(())
}

/// Clones of a template, with nothing prepared.
async fn clones(template: &Template, samples: usize, figures: &mut Vec<Figure>) -> Result<()> {
    let object = async || template.shell().await;
    let objects = times(samples, at_once, object, async |shell| drop(shell)).await?;
    let reply = async || template.fork().await;
    let replies = times(samples, at_once, reply, Sandbox::close).await?;
    figures.extend([
        figure(
            "fork.object.cold",
            "a clone is made, and has not run yet",
            objects,
        ),
        figure(
            "fork.reply.cold",
            "a clone is made and has answered",
            replies,
        ),
    ]);
    Ok(())
}

/// Clones that were prepared.
async fn clones_kept_ready(
    template: &Template,
    samples: usize,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    template.keep_shells(READY);
    let prepared = async || {
        while template.ready_shells() < READY {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reply = async || template.fork().await;
    let replies = times(samples, prepared, reply, Sandbox::close).await?;
    figures.push(figure(
        "fork.reply.shell",
        "a clone from a ready shell has answered",
        replies,
    ));

    let clone = template.fork().await?;
    let has_python = clone.languages().iter().any(|lang| lang.name == "python");
    clone.close().await;
    if has_python {
        let result = async || {
            let clone = template.fork().await?;
            clone.run(Code::python("print(6 * 7)")).await?;
            Ok(clone)
        };
        let results = times(samples, prepared, result, Sandbox::close).await?;
        figures.push(figure(
            "fork.run.python",
            "the same, and it has run a Python program",
            results,
        ));
    }
    template.keep_shells(0);

    let builder = Pool::builder(template.clone()).ready(READY).max(2 * READY);
    let pool = builder.build().await?;
    let filled = async || {
        while pool.status().ready < READY {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let acquired = async || pool.acquire().await;
    let acquired = times(samples, filled, acquired, async |clone| drop(clone)).await?;
    pool.drain(DRAINING).await;
    figures.push(figure(
        "pool.acquire",
        "a clone that is ready is handed out",
        acquired,
    ));
    Ok(())
}
