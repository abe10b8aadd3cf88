//! Test suites in labs: several labs at once, each of which does the next suite that waits.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use super::{SELF, qemu};
use crate::dirs;
use crate::say;
use crate::suites::{self, Report, Suite};

/// Suites have time limits of their own, which say more: this one is for a lab that has come to rest.
const LIMIT_SECONDS: &str = "86400";

/// The suites that take longest, in that order, which are begun first: one of them begun last would
/// have a lab to itself while the others stand idle. The order changes nothing else.
const LONG: [&str; 18] = [
    "kvm_clones",
    "kvm_devices",
    "kvm_overlay",
    "kvm_programs",
    "kvm_cli",
    "kvm_template_cache",
    "kvm_protocol",
    "kvm_limits",
    "kvm_survival",
    "kvm_template",
    "kvm_faults",
    "kvm_boot",
    "kvm_worker",
    "kvm_sessions",
    "kvm_server",
    "kvm_volumes",
    "kvm_caps",
    "kvm_cycles",
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

/// Runs suites in as many labs as this machine has room for. What a suite printed comes in one piece
/// when it has ended, unless there is no other it could be mixed up with.
pub(crate) fn run_suites(mut suites: Vec<Suite>) -> Report {
    suites.sort_by_key(rank);
    let labs = qemu::at_once().min(suites.len());
    let waiting = Mutex::new(VecDeque::from(suites));
    let total = Mutex::new(Report::default());
    let work = || {
        let mut lab = None;
        loop {
            let next = waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(suite) = next else { return };
            let report = one(&suite, &mut lab, labs == 1).unwrap_or_else(|error| {
                println!("the lab of {}: {error:#}", suite.name);
                Report::single(&format!("{} (it did not report)", suite.name), false)
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

/// Runs a suite in `lab`, or in a new one if there is none that is as it should be.
fn one(suite: &Suite, lab: &mut Option<Lab>, alone: bool) -> Result<Report> {
    let large = LARGE.contains(&target(suite));
    let mut usable = match lab.take().filter(|lab| lab.large == large) {
        Some(lab) => lab,
        None => Lab::start(large)?,
    };
    if !alone {
        say!("running {}", suite.name);
    }
    let report = usable.run(suite, alone)?;
    // Who failed may have left something that the next one would stumble over.
    if report.failed == 0 {
        *lab = Some(usable);
    }
    Ok(report)
}

/// What tests say of how far they have got, wherever in a line (`ember_leak::progress`).
const PROGRESS: &str = "progress: ";

/// A lab that does suites one after another: they find what the ones before have put into the cache,
/// and QEMU what it has translated already.
struct Lab {
    child: Child,
    /// Dropped when there are no more.
    suites: Option<ChildStdin>,
    output: BufReader<PipeReader>,
    large: bool,
}

impl Lab {
    fn start(large: bool) -> Result<Self> {
        // A process for each: a lab takes over the signals of the one that runs it.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(std::env::current_exe().context("finding this executable")?)
            .args(["lab", "--timeout", LIMIT_SECONDS]);
        if large {
            command.args(["--memory", &qemu::large_memory_mib().to_string()]);
        }
        let (reader, writer) = io::pipe().context("making a pipe")?;
        command
            .args(["--", SELF, "run-suites"])
            .current_dir(dirs::workspace())
            .stdin(Stdio::piped())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command.spawn().context("starting a lab")?;
        Ok(Self {
            suites: child.stdin.take(),
            child,
            output: BufReader::new(reader),
            large,
        })
    }

    /// An error is a lab that cannot be used any more.
    fn run(&mut self, suite: &Suite, alone: bool) -> Result<Report> {
        let input = self.suites.as_mut().context("the lab takes no suites")?;
        let asked = writeln!(input, "{}", suite.to_line()).and_then(|()| input.flush());
        let mut printed = Vec::new();
        let report = follow(&mut self.output, suite, alone, &mut printed);
        io::stdout().lock().write_all(&printed)?;
        asked.context("telling the lab what to do")?;
        if let Some(report) = report.context("reading what a lab prints")? {
            return Ok(report);
        }
        let status = self.child.wait().context("waiting for a lab")?;
        bail!("it ended with {status}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.suites.take());
        // It has nothing left to do, or is of no use: no reason to be told why.
        let _ = self.child.wait();
    }
}

/// Reads what a lab says of a suite, until it reports. How far it has got is said at once.
fn follow(
    reader: &mut impl BufRead,
    suite: &Suite,
    at_once: bool,
    printed: &mut Vec<u8>,
) -> io::Result<Option<Report>> {
    loop {
        let begin = printed.len();
        if reader.read_until(b'\n', printed)? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&printed[begin..]);
        if let Some((at, report)) = suites::report_in(&line, suite) {
            printed.truncate(begin + at);
            return Ok(Some(report));
        }
        if at_once {
            io::stdout().lock().write_all(printed)?;
            printed.clear();
        } else if let Some(at) = line.find(PROGRESS) {
            say!("{}: {}", suite.name, line[at + PROGRESS.len()..].trim_end());
        }
    }
}
