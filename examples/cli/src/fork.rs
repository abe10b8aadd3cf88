//! `ember fork`: one guest is booted, and cloned as often as is asked for.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ember_core::{Command, Output, Sandbox};
use serde_json::json;
use tokio::task::JoinSet;

use crate::arguments::{Common, Fork};
use crate::exec::command;
use crate::figures::{figure, milliseconds, show};
use crate::guest::{template, until_signal};
use crate::report;
use crate::report::say;

pub(crate) async fn fork(options: &Fork, common: &Common) -> Result<ExitCode> {
    let how = &options.how;
    if options.words.is_empty() && (how.user.is_some() || how.workdir.is_some()) {
        bail!("name the command that --user and --workdir are for");
    }
    until_signal(clone_and_run(options, common)).await
}

async fn clone_and_run(options: &Fork, common: &Common) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut builder = template(common)?.shells(options.shells.into());
    for script in &options.prepare {
        builder = builder.prepare(Command::from_argv(["/bin/sh", "-c", script]));
    }
    let template = builder.build().await?;
    let built = begun.elapsed();
    while template.ready_shells() < options.shells.into() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let mut clones = Vec::new();
    let mut times = Vec::new();
    for _ in 0..options.count {
        let begun = Instant::now();
        clones.push(template.fork().await?);
        times.push(begun.elapsed());
    }
    let outputs = if options.words.is_empty() {
        Vec::new()
    } else {
        let command = command(&options.words, &options.how);
        everywhere(&mut clones, &command).await?
    };
    let closing: JoinSet<()> = clones.into_iter().map(Sandbox::close).collect();
    closing.join_all().await;

    if common.json {
        let clones: Vec<_> = times
            .iter()
            .enumerate()
            .map(|(index, time)| {
                let output = outputs.get(index).map(report::output);
                json!({ "fork_ms": milliseconds(*time), "output": output })
            })
            .collect();
        let template = json!({ "build_seconds": built.as_secs_f64() });
        say!("{:#}", json!({ "template": template, "clones": clones }));
    } else {
        outputs.iter().enumerate().for_each(show_output);
        summary(built, times);
    }
    let status = outputs.iter().map(|output| report::number(&output.outcome));
    Ok(ExitCode::from(status.max().unwrap_or(0)))
}

/// Runs `command` in all of `clones` at once. The outputs are in the clones' order, and so are the
/// clones when this returns.
async fn everywhere(clones: &mut Vec<Sandbox>, command: &Command) -> Result<Vec<Output>> {
    let mut running = JoinSet::new();
    for (index, clone) in clones.drain(..).enumerate() {
        let command = command.clone();
        running.spawn(async move {
            let output = clone.exec(command).await;
            (index, clone, output)
        });
    }
    let mut ended = running.join_all().await;
    ended.sort_unstable_by_key(|(index, ..)| *index);
    let mut outputs = Vec::new();
    for (_, clone, output) in ended {
        clones.push(clone);
        outputs.push(output?);
    }
    Ok(outputs)
}

/// Shows what a clone wrote, each line with the clone's number.
fn show_output((index, output): (usize, &Output)) {
    let number = index + 1;
    for line in output.stdout.split_inclusive(|byte| *byte == b'\n') {
        write(io::stdout(), number, line);
    }
    for line in output.stderr.split_inclusive(|byte| *byte == b'\n') {
        write(io::stderr(), number, line);
    }
}

/// Writes a line. Nobody has to read it: a reader that is gone is nothing to fail for.
fn write(mut to: impl Write, number: usize, line: &[u8]) {
    let mut text = format!("[{number}] ").into_bytes();
    text.extend_from_slice(line);
    if !line.ends_with(b"\n") {
        text.push(b'\n');
    }
    let _ = to.write_all(&text);
}

fn summary(built: Duration, times: Vec<Duration>) {
    let figure = figure("fork.reply", "a clone has answered", times);
    eprintln!(
        "ember: template in {:.1} s; {} clones, each ready after {} (p50), {} (p99)",
        built.as_secs_f64(),
        figure.samples(),
        show(figure.percentile(50)),
        show(figure.percentile(99))
    );
}
