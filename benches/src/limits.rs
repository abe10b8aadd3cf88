//! What it costs to bound a program, and to be there: the agent's memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ember_core::{Command, Limits, Sandbox};
use tokio::runtime::Runtime;

use crate::figure::Figure;
use crate::sandbox::{CONDITIONS, builder, ms_since};

const RUNS: usize = 50;
const WARM_UP: usize = 5;

/// Processes that run the agent's program, PID 1 and its helpers: what each has of its own and shares
/// with nobody is in its PSS. A line with KiB for each.
const AGENT_PSS: &str = "for process in /proc/[0-9]*; do \
     [ \"$(readlink $process/exe)\" = \"$(readlink /proc/1/exe)\" ] && \
     sed -n 's/^Pss: *\\([0-9]*\\) kB/\\1/p' $process/smaps_rollup; done; true";

/// A program as it is run for others: nobody, confined, and with every limit.
fn bounded() -> Command {
    Command::new("/bin/true")
        .user("nobody")
        .confined()
        .timeout(Duration::from_secs(60))
        .limits(Limits {
            memory: Some(64 << 20),
            processes: Some(64),
            cpu_time: Some(Duration::from_secs(60)),
            output: Some(1 << 20),
            disk: Some(16 << 20),
            open_files: Some(256),
            file_size: Some(16 << 20),
            ..Limits::default()
        })
}

/// How long `command` takes, and how long if somebody watches what it uses.
async fn elapsed(sandbox: &Sandbox, command: Command, is_watched: bool) -> Result<f64> {
    let start = Instant::now();
    let (outcome, elapsed) = if is_watched {
        let mut process = sandbox.spawn(command).await?;
        let mut watch = process.watch_usage();
        let watching = async { while let Ok(Some(_)) = watch.next().await {} };
        let waiting = async {
            let outcome = process.wait().await;
            (outcome, ms_since(start))
        };
        // Who watches sees its end at the next look, for which nobody waits.
        let ((outcome, elapsed), ()) = tokio::join!(waiting, watching);
        (outcome?, elapsed)
    } else {
        let outcome = sandbox.exec(command).await?.outcome;
        (outcome, ms_since(start))
    };
    ensure!(outcome.success(), "/bin/true failed: {outcome:?}");
    Ok(elapsed)
}

/// `limits.overhead`: what a program's execution takes longer for being confined, bounded and counted;
/// and `agent.memory`, after that.
pub(crate) fn overhead(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let sandbox = builder()?.boot().await?;
        let mut bounded_only = Vec::new();
        let mut watched = Vec::new();
        for run in 0..WARM_UP + RUNS {
            // In turns, so that whatever else changes with time changes them all.
            let free = elapsed(&sandbox, Command::new("/bin/true"), false).await?;
            let bound = elapsed(&sandbox, bounded(), false).await?;
            let seen = elapsed(&sandbox, bounded(), true).await?;
            if run >= WARM_UP {
                bounded_only.push(bound - free);
                watched.push(seen - free);
            }
        }
        let resident = number(
            &sandbox,
            "sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/1/status",
        );
        let resident = resident.await?;
        let all = number(&sandbox, AGENT_PSS).await?;
        sandbox.close().await;
        let time = |name, what: &str, samples: &[f64]| {
            let conditions = format!("{CONDITIONS}; `/bin/true`, {what}, less the same unbounded");
            Figure::of(name, "result", "ms", Some(10.0), conditions, samples)
        };
        let memory = |name, goal, what: &str, kib: f64| {
            let conditions = format!(
                "{CONDITIONS}; {what}, after {} programs",
                3 * (WARM_UP + RUNS)
            );
            Figure::of(
                name,
                "memory",
                "MB",
                goal,
                conditions,
                &[kib * 1024.0 / 1e6],
            )
        };
        Ok(vec![
            time("limits.overhead", "confined, with limits", &bounded_only),
            time(
                "limits.overhead.watched",
                "the same, its usage watched",
                &watched,
            ),
            memory("agent.memory", Some(10.0), "RSS of PID 1", resident),
            memory(
                "agent.memory.all",
                None,
                "PSS of all processes of the agent",
                all,
            ),
        ])
    })
}

/// The sum of the numbers that a script in the guest prints.
pub(crate) async fn number(sandbox: &Sandbox, script: &str) -> Result<f64> {
    let output = sandbox
        .exec(Command::from_argv(["/bin/sh", "-c", script]))
        .await?;
    let text = output.stdout.to_string_lossy();
    ensure!(
        output.success() && !text.trim().is_empty(),
        "the guest does not say its memory: {output:?}"
    );
    text.lines().try_fold(0.0, |sum, line| {
        let number: f64 = line
            .trim()
            .parse()
            .with_context(|| format!("no number: {line}"))?;
        Ok(sum + number)
    })
}
