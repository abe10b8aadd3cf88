//! Test suites, each in a lab of its own, several labs at once.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use super::{SELF, qemu, results_directory};
use crate::dirs;
use crate::say;
use crate::suites::{self, Report, Suite};

/// Suites have time limits of their own, which say more: this one is for a lab that has come to rest.
const LIMIT_SECONDS: &str = "86400";

/// The suites that take minutes, which are begun first: one of them begun last would have a lab to
/// itself while the others stand idle. The order changes nothing else.
const LONG: [&str; 9] = [
    "kvm_clones",
    "kvm_devices",
    "kvm_cli",
    "kvm_template_cache",
    "kvm_faults",
    "kvm_cycles",
    "kvm_boot",
    "kvm_template",
    "kvm_programs",
];

/// The suites that have a thousand guests at once, each of which takes some ten MiB.
const LARGE: [&str; 1] = ["stress_clones"];

/// The name of its executable.
fn target(suite: &Suite) -> &str {
    suite.name.rsplit("::").next().unwrap_or_default()
}

/// Where in the order a suite belongs.
fn rank(suite: &Suite) -> usize {
    let target = target(suite);
    LONG.iter()
        .position(|long| *long == target)
        .unwrap_or(LONG.len())
}

/// Runs each suite in a lab of its own. What a suite printed comes in one piece when it has ended,
/// unless there is no other it could be mixed up with.
pub(crate) fn run_suites(mut suites: Vec<Suite>) -> Report {
    suites.sort_by_key(rank);
    let labs = qemu::at_once().min(suites.len());
    let waiting = Mutex::new(VecDeque::from(suites));
    let total = Mutex::new(Report::default());
    let work = || {
        loop {
            let next = waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(suite) = next else { return };
            let report = one(&suite, labs == 1).unwrap_or_else(|error| {
                println!("the lab of {}: {error:#}", suite.name);
                Report::single(&suite.name, false)
            });
            total
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(report);
        }
    };
    thread::scope(|scope| {
        for _ in 0..labs {
            scope.spawn(work);
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What tests say of how far they have got, wherever in a line (`ember_leak::progress`).
const PROGRESS: &str = "progress: ";

/// Reads what a suite says, to its end. How far it has got is said at once.
fn follow(reader: impl Read, name: &str, output: &mut Vec<u8>) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    loop {
        let begin = output.len();
        if reader.read_until(b'\n', output)? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&output[begin..]);
        if let Some(at) = line.find(PROGRESS) {
            say!("{name}: {}", line[at + PROGRESS.len()..].trim_end());
        }
    }
}

fn one(suite: &Suite, alone: bool) -> Result<Report> {
    let scratch = dirs::Scratch::below(&results_directory()?.join("suites"))?;
    let (list, results) = (scratch.path().join("list"), scratch.path().join("results"));
    suites::write_list(std::slice::from_ref(suite), &list)?;
    // A process for each: a lab takes over the signals of the one that runs it.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "--"])
        .arg(std::env::current_exe().context("finding this executable")?)
        .args(["lab", "--timeout", LIMIT_SECONDS]);
    if LARGE.contains(&target(suite)) {
        command.args(["--memory", &qemu::large_memory_mib().to_string()]);
    }
    command
        .args(["--", SELF, "run-suites"])
        .args([&list, &results])
        .current_dir(dirs::workspace())
        .stdin(Stdio::null());
    let status = if alone {
        command.status()
    } else {
        say!("running {}", suite.name);
        let (reader, writer) = io::pipe().context("making a pipe")?;
        command.stdout(writer.try_clone()?).stderr(writer);
        let child = command.spawn();
        // The pipe's end that it holds would keep it from ending.
        drop(command);
        let mut output = Vec::new();
        let read = follow(reader, &suite.name, &mut output);
        io::stdout().lock().write_all(&output)?;
        read.context("reading what a lab prints")?;
        child.and_then(|mut child| child.wait())
    };
    let status = status.context("starting a lab")?;
    let report = suites::read_results(std::slice::from_ref(suite), &results);
    if !status.success() && report.failed == 0 {
        bail!("it ended with {status}");
    }
    Ok(report)
}
