//! `cargo xtask quickstart`: from a fresh machine to a Python program in a microVM.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::lab::{self, Inherit, Job, Machine};
use crate::{dirs, probe, say, test};

const PROGRAM: &str = include_str!("quickstart.py");

/// Sets up what is missing and runs two programs.
pub(crate) fn run() -> Result<u8> {
    let mut steps = Steps { times: Vec::new() };

    let verdict = steps.run("see what this machine's KVM can do", || Ok(probe::probe()))?;
    say!("this machine's KVM is {verdict}");
    if let Some(advice) = verdict.advice() {
        say!("to change that: {advice}");
    }
    if !verdict.is_real() {
        say!("so this runs in the lab, a virtual machine of QEMU's software CPU: slower, and real");
        let kernel = steps.run("the lab", lab::prepare)?;
        say!("the lab's kernel is {kernel}");
    }
    let ember = steps.run("build ember, optimized", || {
        test::build_ember(&["--release", "--quiet"])
    })?;
    steps.run("the guest's kernel and the Python pack", || {
        test::ember_prepare(&ember, &["python"])
    })?;

    let status = steps.run("run two programs", || {
        if verdict.is_real() {
            return programs(&ember);
        }
        let command = [
            lab::SELF.into(),
            "quickstart-programs".into(),
            ember.clone().into(),
        ];
        let mut job = Job::inherit(command.into())?;
        job.stdin = false;
        let machine = Machine {
            timeout: 600,
            ..Machine::default()
        };
        let exit = lab::run(&machine, &job, &mut Inherit)?;
        say!(
            "the lab itself took {:.1} s to boot",
            exit.boot.as_secs_f64()
        );
        Ok(exit.status)
    })?;
    if status != 0 {
        bail!("a program that should have worked did not (status {status})");
    }

    eprintln!("\n{}", steps.summary());
    let prefix = if verdict.is_real() {
        ""
    } else {
        "cargo xtask lab -- "
    };
    let path = ember.strip_prefix(dirs::workspace()).unwrap_or(&ember);
    eprintln!(
        "Now yours:\n  {prefix}{} run --lang python -c 'print(6*7)'",
        path.display()
    );
    eprintln!("  {prefix}{} doctor", path.display());
    Ok(0)
}

/// The two programs, where KVM is real.
pub(crate) fn programs(ember: &Path) -> Result<u8> {
    let (status, output) = timed(ember, &["run", "--lang", "python", "-c", "print(6*7)"])?;
    if status != 0 || output != "42\n" {
        bail!("print(6*7) gave status {status} and {output:?}");
    }
    let scratch = dirs::Scratch::below(&std::env::temp_dir().join("ember-quickstart"))?;
    let file = scratch.path().join("quickstart.py");
    fs::write(&file, PROGRAM)?;
    let (status, output) = timed(ember, &["run", &file.to_string_lossy()])?;
    if status != 0 || !output.contains("17984 primes") {
        bail!("the longer program gave status {status} and {output:?}");
    }
    Ok(0)
}

/// Runs `ember` with these arguments and shows what it printed and how long it took.
fn timed(ember: &Path, arguments: &[&str]) -> Result<(u8, String)> {
    let words: Vec<_> = arguments
        .iter()
        .map(|word| crate::debian::quote(word))
        .collect();
    println!("$ ember {}", words.join(" "));
    let started = Instant::now();
    let output = Command::new(ember)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {}", ember.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    println!("({:.2} s in all)", started.elapsed().as_secs_f64());
    Ok((lab::init::shell_status(output.status), text))
}

struct Steps {
    times: Vec<(&'static str, f64)>,
}

impl Steps {
    fn run<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        say!("==> {name}");
        let started = Instant::now();
        let outcome = step().with_context(|| format!("quickstart stopped at: {name}"))?;
        self.times.push((name, started.elapsed().as_secs_f64()));
        Ok(outcome)
    }

    fn summary(&self) -> String {
        let mut text = String::new();
        for (name, seconds) in &self.times {
            let _ = writeln!(text, "{seconds:8.1} s  {name}");
        }
        let total: f64 = self.times.iter().map(|(_, seconds)| seconds).sum();
        let _ = writeln!(text, "{total:8.1} s  in all");
        text
    }
}
