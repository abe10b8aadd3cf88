//! `cargo xtask bench`: the published figures, by the lab's instruction clock.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{self, Job, Machine, Output};
use crate::{cargo, dirs, kernel, say, test};

/// Columns of the table, by their names in the figures.
const COLUMNS: [&str; 7] = ["name", "kind", "p50", "p99", "unit", "goal", "conditions"];

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

    say!("the lab's clock counts instructions, 1 ns each; this takes its time");
    let mut command = vec![benches.executable.clone().into_os_string()];
    command.extend(names.iter().map(Into::into));
    let job = Job {
        command,
        directory: dirs::workspace(),
        environment: std::env::vars_os().collect(),
        stdin: false,
    };
    let machine = Machine {
        icount: true,
        timeout: 3600,
        ..Machine::default()
    };
    let mut collected = Collected::default();
    let exit = lab::run(&machine, &job, &mut collected)?;
    let figures = collected.figures();
    if exit.status != 0 {
        bail!("the benches ended with status {}", exit.status);
    }
    if figures.is_empty() {
        bail!("the benches reported no figure");
    }
    print!("{}", table(&figures));
    let path = dirs::target()?.join("bench/figures.json");
    save(&figures, &path)?;
    say!("written: {}", path.display());
    let silent: Vec<_> = names
        .iter()
        .filter(|name| !figures.iter().any(|f| f["name"] == **name))
        .collect();
    if !silent.is_empty() {
        bail!("no figure of these names: {silent:?}");
    }
    Ok(0)
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
