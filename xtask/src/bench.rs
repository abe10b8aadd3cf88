//! `cargo xtask bench`: the published figures, by the lab's instruction clock.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{self, Job, Machine, Output};
use crate::{cargo, dirs, kernel, languages_table, say, test};

/// Columns of the table, by their names in the figures.
const COLUMNS: [&str; 7] = ["name", "kind", "p50", "p99", "unit", "goal", "conditions"];

/// What a group may take: several times what the longest takes on an idle machine.
const GROUP_SECONDS: u64 = 900;
const ATTEMPTS: usize = 3;
/// The status of what Ctrl-C ended, or SIGTERM: 128 and the number of the signal.
const INTERRUPTED: [u8; 2] = [130, 143];

/// Measures the figures of these names, or all.
pub(crate) fn run(names: &[String]) -> Result<u8> {
    kernel::run(false)?;
    // Figures of languages are `language.PACK.KIND`.
    let mut packs = vec!["python"];
    packs.extend(names.iter().filter_map(|name| name.split('.').nth(1)));
    packs.retain(|pack| test::PACKS.contains(pack) || test::STRESS_PACKS.contains(pack));
    test::ember_prepare(&test::build_ember(&["--release", "--quiet"])?, &packs)?;
    let built = cargo::build(&[
        "build",
        "--quiet",
        "--release",
        "--package",
        "ember-benches",
    ])?;
    let benches = built
        .first()
        .context("the package ember-benches has no executable")?;

    let groups = chosen(&list(&benches.executable)?, names)?;
    say!("the lab's clock counts instructions, 1 ns each; this takes its time");
    let path = dirs::target()?.join("bench/figures.json");
    let mut figures = Vec::new();
    let mut failed = Vec::new();
    for group in groups {
        match measure(&benches.executable, &group) {
            Ok(Measured::Interrupted(status)) => {
                say!("interrupted: what was measured before is kept");
                return Ok(status);
            }
            Ok(Measured::Figures(measured)) => {
                // What there is is kept, whatever becomes of the others.
                save(&measured, &path)?;
                figures.extend(measured);
            }
            Err(error) => {
                say!("{}: {error:#}", group.names.join(", "));
                failed.extend(group.names);
            }
        }
    }
    if !figures.is_empty() {
        print!("{}", table(&figures));
        say!("written: {}", path.display());
        if let Some(readme) = languages_table::write(&figures)? {
            say!("written: the languages in {}", readme.display());
        }
    }
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    Ok(0)
}

/// What came of measuring a group.
enum Measured {
    Figures(Vec<Value>),
    /// Somebody wants all of it to end, which it has with this status.
    Interrupted(u8),
}

/// The figures of one group, measured in a lab of their own.
///
/// QEMU's nested virtualization can deliver an interrupt twice, after which a guest stands still or
/// dies; what keeps it from doing so is in the figures of the groups that ask for it (docs/lab.md). One
/// of the others that fails or comes to no end is measured again.
fn measure(benches: &Path, group: &Group) -> Result<Measured> {
    let mut command = vec![benches.as_os_str().to_owned()];
    command.extend(group.names.iter().map(Into::into));
    let job = Job {
        command,
        directory: dirs::workspace(),
        environment: std::env::vars_os().collect(),
        stdin: false,
    };
    let machine = Machine {
        icount: true,
        guard: group.is_guarded,
        timeout: GROUP_SECONDS,
        ..Machine::default()
    };
    let mut attempt = 1;
    loop {
        let mut collected = Collected::default();
        let exit = lab::run(&machine, &job, &mut collected)?;
        let figures = collected.figures();
        if exit.status == 0 && !figures.is_empty() {
            return Ok(Measured::Figures(figures));
        }
        if INTERRUPTED.contains(&exit.status) {
            return Ok(Measured::Interrupted(exit.status));
        }
        if attempt == ATTEMPTS {
            bail!(
                "the benches ended with status {}, attempt {attempt}",
                exit.status
            );
        }
        attempt += 1;
        say!("status {}, attempt {attempt} of {ATTEMPTS}", exit.status);
    }
}

/// Figures that are measured together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    names: Vec<String>,
    /// Whether they are measured if nobody names them.
    is_usual: bool,
    /// Whether the lab guards its VMs.
    is_guarded: bool,
}

impl Group {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let mut flag = || words.next()?.parse().ok();
        let (is_usual, is_guarded) = (flag()?, flag()?);
        let names: Vec<_> = words.map(str::to_owned).collect();
        (!names.is_empty()).then_some(Self {
            names,
            is_usual,
            is_guarded,
        })
    }
}

/// The groups that the benches have.
fn list(benches: &Path) -> Result<Vec<Group>> {
    let listed = Command::new(benches)
        .arg("--list")
        .output()
        .with_context(|| format!("running {}", benches.display()))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    let groups: Vec<_> = text.lines().filter_map(Group::parse).collect();
    if groups.is_empty() {
        bail!("{} has no figures", benches.display());
    }
    Ok(groups)
}

/// The groups that have one of `names`, or the usual ones if there are none.
fn chosen(groups: &[Group], names: &[String]) -> Result<Vec<Group>> {
    let known: Vec<&String> = groups.iter().flat_map(|group| &group.names).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
        bail!(
            "there is no figure {unknown}; there are {}",
            known.join(", ")
        );
    }
    let is_wanted = |group: &&Group| match names {
        [] => group.is_usual,
        names => group.names.iter().any(|name| names.contains(name)),
    };
    Ok(groups.iter().filter(is_wanted).cloned().collect())
}

/// Standard output, one JSON object a line; what is not one is shown.
#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
}

impl Collected {
    fn figures(&self) -> Vec<Value> {
        let text = String::from_utf8_lossy(&self.bytes);
        let values = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        values.filter(|value| value["name"].is_string()).collect()
    }
}

impl Output for Collected {
    fn stdout(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        let mut err = io::stderr().lock();
        // Progress: a figure can take minutes.
        for line in String::from_utf8_lossy(bytes)
            .lines()
            .filter(|line| !line.is_empty())
        {
            writeln!(err, "{line}")?;
        }
        Ok(())
    }

    fn stderr(&mut self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }
}

/// Figures measured now take the place of those of the same name and kind; the others stay.
fn save(figures: &[Value], path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        dirs::create(parent)?;
    }
    let old = fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let merged = merge(old.unwrap_or_default(), figures);
    fs::write(path, format!("{:#}\n", Value::from(merged)))
        .with_context(|| format!("writing {}", path.display()))
}

fn merge(mut old: Vec<Value>, new: &[Value]) -> Vec<Value> {
    old.retain(|figure| {
        !new.iter()
            .any(|other| other["name"] == figure["name"] && other["kind"] == figure["kind"])
    });
    old.extend_from_slice(new);
    old
}

fn table(figures: &[Value]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(
        figures
            .iter()
            .map(|figure| COLUMNS.map(|column| cell(&figure[column]))),
    );
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(value) if number.is_f64() => format!("{value:.3}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "bench_tests.rs"]
mod tests;
