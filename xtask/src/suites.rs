//! Running test executables, here or in the lab, and counting what they report.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::cargo::Built;
use crate::lab::init::shell_status;

/// A test that takes longer hangs: the longest takes some minutes on a busy machine of two processors.
pub(crate) const TEST_LIMIT: Duration = Duration::from_secs(900);
/// The same for tests that are long by nature.
pub(crate) const STRESS_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// A test executable and how it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suite {
    /// `package::target`.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    /// The package's directory: where cargo runs tests.
    pub(crate) directory: PathBuf,
    /// For libtest.
    pub(crate) arguments: Vec<String>,
    /// Variables of its environment, besides those of everybody.
    pub(crate) environment: Vec<(String, String)>,
    /// How long it may say nothing, which is at most as long as its longest test takes.
    pub(crate) limit: Duration,
}

impl Suite {
    pub(crate) fn new(built: &Built, arguments: &[String], limit: Duration) -> Self {
        let kind = if built.kind == "test" {
            String::new()
        } else {
            format!(" ({})", built.kind)
        };
        Self {
            name: format!("{}::{}{kind}", built.package, built.target),
            executable: built.executable.clone(),
            directory: built.directory.clone(),
            arguments: arguments.to_vec(),
            environment: Vec::new(),
            limit,
        }
    }

    /// The same tests with this variable in their environment, which says so in its name.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.name = format!("{} ({name}={value})", self.name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// For [`run_each`].
    pub(crate) fn to_line(&self) -> String {
        self.to_json().to_string()
    }

    fn to_json(&self) -> Value {
        json!({
            "environment": self.environment,
            "name": self.name,
            "executable": self.executable.to_string_lossy(),
            "directory": self.directory.to_string_lossy(),
            "arguments": self.arguments,
            "limit": self.limit.as_secs(),
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let arguments = value["arguments"].as_array()?.iter();
        let environment = value["environment"].as_array()?.iter();
        Some(Self {
            name: value["name"].as_str()?.to_owned(),
            executable: value["executable"].as_str()?.into(),
            directory: value["directory"].as_str()?.into(),
            arguments: arguments
                .filter_map(|word| word.as_str().map(str::to_owned))
                .collect(),
            environment: environment
                .filter_map(|pair| {
                    let text = |index: usize| pair[index].as_str().map(str::to_owned);
                    text(0).zip(text(1))
                })
                .collect(),
            limit: Duration::from_secs(value["limit"].as_u64()?),
        })
    }
}

/// What suites reported, added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Names of what failed.
    pub(crate) failures: Vec<String>,
    /// Names of what was marked to be ignored.
    pub(crate) ignored: Vec<String>,
    /// What took long, with its seconds.
    pub(crate) slow: Vec<(String, u64)>,
}

impl Report {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.ignored.extend(other.ignored);
        self.slow.extend(other.slow);
    }

    /// One thing that passed or not, such as the format check.
    pub(crate) fn single(name: &str, passed: bool) -> Self {
        let failures = if passed {
            Vec::new()
        } else {
            vec![name.to_owned()]
        };
        Self {
            passed: passed.into(),
            failed: (!passed).into(),
            failures,
            ..Self::default()
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "passed": self.passed,
            "failed": self.failed,
            "failures": self.failures,
            "ignored": self.ignored,
            "slow": self.slow,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let names = |value: &Value| -> Option<Vec<String>> {
            let list = value.as_array()?.iter();
            Some(
                list.filter_map(|name| name.as_str().map(str::to_owned))
                    .collect(),
            )
        };
        Some(Self {
            passed: value["passed"].as_u64()?,
            failed: value["failed"].as_u64()?,
            failures: names(&value["failures"])?,
            ignored: names(&value["ignored"])?,
            slow: serde_json::from_value(value["slow"].clone()).ok()?,
        })
    }
}

/// Runs one suite; its standard output goes to `out` as it comes.
pub(crate) fn run(suite: &Suite, out: &mut dyn Write) -> Report {
    // A reader of `out` that has gone away changes nothing about the tests.
    let _ = writeln!(out, "--- {} ---", suite.name);
    let started = Instant::now();
    let report = start(suite).and_then(|child| follow(suite, child, out));
    let report = report.unwrap_or_else(|error| {
        let _ = writeln!(out, "{}: {error:#}", suite.name);
        Report::single(&suite.name, false)
    });
    let _ = writeln!(
        out,
        "--- {}: {:.1} s ---",
        suite.name,
        started.elapsed().as_secs_f64()
    );
    report
}

fn start(suite: &Suite) -> Result<Child> {
    let package = suite.name.split("::").next().unwrap_or_default();
    Command::new(&suite.executable)
        .args(&suite.arguments)
        .envs(suite.environment.iter().cloned())
        .current_dir(&suite.directory)
        .env("CARGO_MANIFEST_DIR", &suite.directory)
        .env("CARGO_PKG_NAME", package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("starting {}", suite.executable.display()))
}

fn follow(suite: &Suite, mut child: Child, out: &mut dyn Write) -> Result<Report> {
    let mut lines = Lines::begun_now();
    let status = watch(suite.limit, &mut child, &mut lines, out);
    let mut report = lines.report(&suite.name);
    match status {
        // No libtest harness: the executable is one test.
        Ok(status) if status.success() && !lines.has_result => {
            report.add(Report::single(&suite.name, true));
        }
        Ok(status) if status.success() => {}
        // A failed test was counted already; anything else (a crash, an abort) was not.
        Ok(_) if report.failed > 0 => {}
        Ok(status) => {
            writeln!(
                out,
                "{}: ended with status {}",
                suite.name,
                shell_status(status)
            )?;
            report.add(Report::single(&suite.name, false));
        }
        Err(error) => {
            writeln!(out, "{}: {error:#}", suite.name)?;
            report.add(Report::single(&suite.name, false));
        }
    }
    Ok(report)
}

/// Passes output on until the suite has ended or has said nothing for `limit`.
fn watch(
    limit: Duration,
    child: &mut Child,
    lines: &mut Lines,
    out: &mut dyn Write,
) -> Result<ExitStatus> {
    let output = child.stdout.take().context("a child without its output")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            if sender.send(std::mem::take(&mut line)).is_err() {
                break;
            }
        }
    });
    loop {
        match receiver.recv_timeout(limit) {
            Ok(line) => {
                out.write_all(&line)?;
                out.flush()?;
                lines.take(&String::from_utf8_lossy(&line));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(child.wait()?),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                // What libtest has written of a line by now: which test it is.
                let begun = receiver.recv().unwrap_or_default();
                let begun = String::from_utf8_lossy(&begun);
                let seconds = limit.as_secs();
                return Err(anyhow!("{begun}: nothing for {seconds} s: stopped"));
            }
        }
    }
}

/// A test that takes longer is worth a line at the end.
const SLOW: Duration = Duration::from_secs(20);

/// What libtest prints, line by line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
    ignored: Vec<String>,
    /// Whether there was a line of totals.
    has_result: bool,
    /// A name whose verdict comes on another line, after what the test printed.
    open: Option<String>,
    /// When the last test ended, or the first began; of use where they run one after another.
    since: Option<Instant>,
    slow: Vec<(String, u64)>,
}

impl Lines {
    fn begun_now() -> Self {
        Self {
            since: Some(Instant::now()),
            ..Self::default()
        }
    }

    pub(crate) fn take(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(totals) = line.strip_prefix("test result: ") {
            self.has_result = true;
            for part in totals.split(['.', ';']) {
                match part.trim().split_once(' ') {
                    Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                    Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                    _ => {}
                }
            }
        } else if let Some((name, verdict)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            self.verdict(name, verdict);
        } else if let Some(name) = self.open.take() {
            self.verdict(&name, line);
        }
    }

    fn verdict(&mut self, name: &str, verdict: &str) {
        if verdict == "FAILED" {
            self.failures.push(name.to_owned());
        } else if verdict.starts_with("ignored") {
            self.ignored.push(name.to_owned());
        } else if verdict != "ok" {
            self.open = Some(name.to_owned());
            return;
        }
        if let Some(since) = self.since.replace(Instant::now()) {
            let took = since.elapsed();
            if took >= SLOW {
                self.slow.push((name.to_owned(), took.as_secs()));
            }
        }
    }

    pub(crate) fn report(&self, suite: &str) -> Report {
        let full = |names: &[String]| names.iter().map(|name| format!("{suite} {name}")).collect();
        Report {
            passed: self.passed,
            failed: self.failed,
            failures: full(&self.failures),
            ignored: full(&self.ignored),
            slow: self
                .slow
                .iter()
                .map(|(name, seconds)| (format!("{suite} {name}"), *seconds))
                .collect(),
        }
    }
}

/// What a report begins with where suites are run one after another for somebody else.
const REPORT: &str = "suite reports: ";

/// Runs the suites that `input` names, a line each ([`Suite::to_line`]). Each one's report follows
/// what it printed ([`report_in`]).
pub(crate) fn run_each(input: impl BufRead, out: &mut dyn Write) -> Result<()> {
    for line in input.lines() {
        let line = line.context("reading which suite is next")?;
        let value: Value = serde_json::from_str(&line).context("reading which suite is next")?;
        let suite = Suite::from_json(&value).with_context(|| format!("no suite: {line}"))?;
        let report = run(&suite, out);
        let report = json!({"suite": suite.name, "report": report.to_json()});
        // In one piece, whoever else writes.
        out.write_all(format!("{REPORT}{report}\n").as_bytes())?;
        out.flush()?;
    }
    Ok(())
}

/// The report of `suite` in this line, and where in the line: something that was printed without an
/// end of line may come before it.
pub(crate) fn report_in(line: &str, suite: &Suite) -> Option<(usize, Report)> {
    let at = line.find(REPORT)?;
    let value: Value = serde_json::from_str(&line[at + REPORT.len()..]).ok()?;
    let is_its = value["suite"] == suite.name.as_str();
    let report = is_its.then(|| Report::from_json(&value["report"]))??;
    Some((at, report))
}

#[cfg(test)]
#[path = "suites_tests.rs"]
mod tests;
