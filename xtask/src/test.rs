//! `cargo xtask test` and `cargo xtask stress`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::background::Background;
use crate::cargo::{self, Built};
use crate::lab;
use crate::suites::{self, Lines, Report, Suite};
use crate::{debian, dirs, kernel, licences, probe, say};

/// Integration tests whose file name begins so need a KVM that can boot Linux.
const KVM_PREFIX: &str = "kvm_";
/// The same, and they take long: `cargo xtask stress` runs them.
const STRESS_PREFIX: &str = "stress_";
/// The packs that the tests of a change need.
pub(crate) const PACKS: &[&str] = &["python", "javascript", "bash"];
/// Those that the tests need which take longer: over half a gigabyte of packages.
pub(crate) const STRESS_PACKS: &[&str] = &["typescript", "csharp", "cpp", "rust", "go", "ruby"];

/// The package that tests have an image of.
const TESTED_PACKAGE: &str = "bc";

/// Packages whose tests have sandboxes, which run where the environment says.
const PLACED: [&str; 3] = ["ember-core", "ember-cli", "ember-embed"];

/// What of the tests is run.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Selection {
    /// Only tests whose name contains this (and no checks)
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only the test executables of this name, such as kvm_lifecycle (and no checks)
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Leave out format, clippy, documentation and licences
    #[arg(long)]
    no_checks: bool,
    /// Leave out everything that needs KVM
    #[arg(long)]
    no_kvm: bool,
}

impl Selection {
    fn whole(&self) -> bool {
        self.filter.is_none() && self.suite.is_empty()
    }

    fn wants(&self, built: &Built) -> bool {
        self.suite.is_empty() || self.suite.contains(&built.target)
    }

    fn left_out(&self) -> Vec<String> {
        let mut text = Vec::new();
        if self.no_checks || !self.whole() {
            text.push("format, clippy, documentation, licences".to_owned());
        }
        if !self.whole() {
            text.push("doc tests, and whatever was not chosen".to_owned());
        }
        if self.no_kvm {
            text.push("everything that needs KVM".to_owned());
        }
        text
    }
}

/// Everything that must hold before a change is merged.
pub(crate) fn test(selection: &Selection) -> Result<u8> {
    let mut steps = Steps::new();
    let is_for_kvm = selection.whole() && !selection.no_kvm;
    let mut beside = Vec::new();
    if is_for_kvm {
        say!("kernels, the lab and a Debian are made beside what follows, unless they are there");
        let begun = Background::start("kernels and the lab", ["prepare-tests"]);
        beside.extend(steps.try_run("begin what takes long", || begun));
    }
    if !selection.no_checks && selection.whole() {
        checks(&mut steps);
    }
    let built = steps.try_run("build the tests", || {
        cargo::build(&["test", "--workspace", "--no-run"])
    });
    let Some(built) = built else {
        return Ok(steps.finish(selection));
    };
    if is_for_kvm {
        let begun = ember(&built).and_then(|ember| {
            let arguments = [
                "prepare-tests".as_ref(),
                "--ember".as_ref(),
                ember.as_os_str(),
            ];
            Background::start("packs", arguments)
        });
        beside.extend(steps.try_run("begin to make packs", || begun));
    }
    let arguments: Vec<String> = selection.filter.iter().cloned().collect();
    let chosen = |wanted: fn(&Built) -> bool| -> Vec<Suite> {
        let chosen = built.iter().filter(|built| is_test(built) && wanted(built));
        let chosen = chosen.filter(|built| selection.wants(built));
        chosen
            .map(|built| Suite::new(built, &arguments, suites::TEST_LIMIT))
            .collect()
    };
    let plain = chosen(|built| !needs_kvm(built));
    if !plain.is_empty() {
        steps.try_run("look for the tests' tools", || {
            debian::ensure(&debian::TEST_TOOLS)
        });
        steps.run("unit tests", || run_here(&plain));
    }
    if selection.whole() {
        steps.run("doc tests", doc_tests);
    }
    let kvm = chosen(|built| needs_kvm(built) && !is_stress(built));
    if is_for_kvm {
        let wait = || beside.into_iter().try_for_each(Background::finish);
        if steps.try_run("wait for what was begun", wait).is_none() {
            return Ok(steps.finish(selection));
        }
    }
    if !selection.no_kvm && !kvm.is_empty() {
        kvm_suites(&mut steps, &built, &kvm, PACKS);
    }
    Ok(steps.finish(selection))
}

/// The tests that take longer, and those marked to be ignored elsewhere.
pub(crate) fn stress(selection: &Selection) -> Result<u8> {
    let mut steps = Steps::new();
    let built = steps.try_run("build the tests", || {
        cargo::build(&["test", "--workspace", "--no-run"])
    });
    let Some(built) = built else {
        return Ok(steps.finish(selection));
    };
    let mut suites = Vec::new();
    for built in built
        .iter()
        .filter(|built| is_test(built) && selection.wants(built))
    {
        let mode = if is_stress(built) {
            "--include-ignored"
        } else {
            "--ignored"
        };
        if is_stress(built) || needs_kvm(built) {
            let mut arguments = vec![mode.to_owned()];
            arguments.extend(selection.filter.iter().cloned());
            suites.push(Suite::new(built, &arguments, suites::STRESS_LIMIT));
        }
        // All tests of sandboxes once more, with each sandbox in a process of its own.
        if needs_kvm(built) && !is_stress(built) && PLACED.contains(&built.package.as_str()) {
            let arguments: Vec<String> = selection.filter.iter().cloned().collect();
            let suite = Suite::new(built, &arguments, suites::TEST_LIMIT);
            suites.push(suite.with("EMBER_PLACEMENT", "worker"));
        }
    }
    if suites.is_empty() {
        bail!("no suite of that name needs KVM");
    }
    let packs = [PACKS, STRESS_PACKS].concat();
    kvm_suites(&mut steps, &built, &suites, &packs);
    Ok(steps.finish(selection))
}

/// `cargo test --no-run` also names the programs that integration tests start.
fn is_test(built: &Built) -> bool {
    built
        .executable
        .parent()
        .is_some_and(|directory| directory.ends_with("deps"))
}

fn needs_kvm(built: &Built) -> bool {
    built.kind == "test" && (built.target.starts_with(KVM_PREFIX) || is_stress(built))
}

fn is_stress(built: &Built) -> bool {
    built.kind == "test" && built.target.starts_with(STRESS_PREFIX)
}

fn checks(steps: &mut Steps) {
    steps.check("format", || cargo::run(&["fmt", "--all", "--check"], &[]));
    steps.check("clippy", || {
        cargo::run(
            &[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
            &[],
        )
    });
    steps.check("documentation", || {
        cargo::run(
            &[
                "doc",
                "--quiet",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ],
            &[("RUSTDOCFLAGS", "-D warnings")],
        )
    });
    steps.check("licences and sources", || licences::check().map(drop));
}

fn run_here(suites: &[Suite]) -> Report {
    let mut total = Report::default();
    for suite in suites {
        total.add(suites::run(suite, &mut io::stdout()));
    }
    total
}

fn doc_tests() -> Report {
    const NAME: &str = "doc tests";
    let output = cargo::cargo(&["test", "--quiet", "--workspace", "--doc"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            print!("{text}");
            let mut lines = Lines::default();
            text.lines().for_each(|line| lines.take(line));
            let mut report = lines.report(NAME);
            if !output.status.success() && report.failed == 0 {
                report.add(Report::single(NAME, false));
            }
            report
        }
        Err(error) => {
            println!("running cargo: {error}");
            Report::single(NAME, false)
        }
    }
}

/// Runs suites where KVM is real, and says where that is.
fn kvm_suites(steps: &mut Steps, built: &[Built], suites: &[Suite], packs: &[&str]) {
    if steps
        .try_run("prepare kernels and packs", || prepare(built, packs))
        .is_none()
    {
        return;
    }
    let verdict = probe::probe();
    println!("this machine's KVM is {verdict}");
    if verdict.is_real() {
        steps.run("KVM tests, on this machine's own KVM", || {
            // As in the lab: tests that count descriptors and threads are alone in their process.
            let alone = suites.iter().map(one_at_a_time).collect::<Vec<_>>();
            run_here(&alone)
        });
        return;
    }
    let kernel = steps.try_run("prepare the lab", lab::prepare);
    let Some(kernel) = kernel else {
        return;
    };
    println!("the lab's kernel is {kernel}");
    steps.run("KVM tests, in the lab", || {
        lab::run_suites(suites.iter().map(one_at_a_time).collect())
    });
}

fn one_at_a_time(suite: &Suite) -> Suite {
    let mut suite = suite.clone();
    suite.arguments.push("--test-threads=1".to_owned());
    suite
}

/// Kernels and packs: there is no network in the lab.
fn prepare(built: &[Built], packs: &[&str]) -> Result<()> {
    kernel::run(false)?;
    self::packs(&ember(built)?, packs)
}

/// What `cargo xtask test` has done beside the rest: all that KVM tests need and takes minutes to
/// make, without the command line what does not need it, and with it what does.
pub(crate) fn prepare_beside(ember: Option<&Path>) -> Result<()> {
    if let Some(ember) = ember {
        return packs(ember, PACKS);
    }
    if !probe::probe().is_real() {
        lab::prepare()?;
    }
    foreign_archive()?;
    kernel::run(false)?;
    Ok(())
}

/// Root file systems, made by the command line that was built.
fn packs(ember: &Path, packs: &[&str]) -> Result<()> {
    ember_prepare(ember, packs)?;
    foreign_image(ember)?;
    packages_image(ember)
}

/// The image of packages that tests ask for by their names, unless it is there: to build it looks
/// for newer packages each time.
fn packages_image(ember: &Path) -> Result<()> {
    let listed = Command::new(ember)
        .args(["image", "ls", "--json"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", ember.display()))?;
    let listed: serde_json::Value =
        serde_json::from_slice(&listed.stdout).context("reading the list of images")?;
    let mut names = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| it["names"].as_array());
    let wanted = format!("packages:{TESTED_PACKAGE}");
    if names.any(|names| names.iter().any(|name| *name == *wanted)) {
        return Ok(());
    }
    build_image(ember, Path::new(TESTED_PACKAGE))
}

/// A Debian that is not of Ember's making, as the tests of images want it: made once by Debian's own
/// tool.
fn foreign_archive() -> Result<PathBuf> {
    let archive = dirs::cache()?.join("tests/debian.tar");
    let _lock = dirs::lock(&archive)?;
    if !archive.is_file() {
        debian::ensure(&debian::TEST_TOOLS)?;
        say!("making a small Debian for the tests of images: a minute, once");
        let new = archive.with_extension("new");
        let status = Command::new("mmdebstrap")
            .args(["--quiet", "--variant=minbase", "--format=tar", "bookworm"])
            .arg(&new)
            .stdin(Stdio::null())
            .status()
            .context("starting mmdebstrap")?;
        if !status.success() {
            bail!("mmdebstrap failed ({status})");
        }
        std::fs::rename(&new, &archive).context("keeping the archive")?;
    }
    Ok(archive)
}

/// The same, imported as it is.
fn foreign_image(ember: &Path) -> Result<()> {
    build_image(ember, &foreign_archive()?)
}

fn build_image(ember: &Path, from: &Path) -> Result<()> {
    let status = Command::new(ember)
        .args(["image", "build"])
        .arg(from)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", ember.display()))?;
    if !status.success() {
        bail!("ember image build failed ({status})");
    }
    Ok(())
}

/// The command line's executable, which cargo has built for its integration tests.
fn ember(built: &[Built]) -> Result<PathBuf> {
    let found = built
        .iter()
        .find(|built| built.target == "ember" && !is_test(built));
    match found {
        Some(ember) => Ok(ember.executable.clone()),
        None => build_ember(&[]),
    }
}

/// Builds the command line and gives its executable.
pub(crate) fn build_ember(options: &[&str]) -> Result<PathBuf> {
    let arguments = [&["build", "--package", "ember-cli"], options].concat();
    let built = cargo::build(&arguments)?
        .into_iter()
        .find(|built| built.target == "ember");
    Ok(built
        .context("cargo built no executable of the name ember")?
        .executable)
}

/// Fetches the stock kernel and builds the packs, unless they are in the cache.
pub(crate) fn ember_prepare(ember: &Path, packs: &[&str]) -> Result<()> {
    let status = Command::new(ember)
        .args(["prepare", "--kernel", "stock"])
        .args(packs)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {}", ember.display()))?;
    if !status.success() {
        bail!("ember prepare failed ({status})");
    }
    Ok(())
}

/// The steps of a run, with what they reported.
struct Steps {
    started: Instant,
    total: Report,
    times: Vec<(String, f64)>,
}

impl Steps {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            total: Report::default(),
            times: Vec::new(),
        }
    }

    fn run(&mut self, name: &str, step: impl FnOnce() -> Report) {
        println!("==> {name}");
        let started = Instant::now();
        let report = step();
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "==> {name}: {} passed, {} failed, {seconds:.1} s",
            report.passed, report.failed
        );
        self.times.push((name.to_owned(), seconds));
        self.total.add(report);
    }

    /// A step that counts as one test.
    fn check(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        self.run(name, || {
            let outcome = step();
            if let Err(error) = &outcome {
                println!("{name}: {error:#}");
            }
            Report::single(name, outcome.is_ok())
        });
    }

    /// A step that the following ones need; it only counts when it fails.
    fn try_run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("==> {name}");
        let started = Instant::now();
        let outcome = step();
        let seconds = started.elapsed().as_secs_f64();
        println!("==> {name}: {seconds:.1} s");
        self.times.push((name.to_owned(), seconds));
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                println!("{name}: {error:#}");
                self.total.add(Report::single(name, false));
                None
            }
        }
    }

    fn finish(mut self, selection: &Selection) -> u8 {
        println!();
        self.total
            .slow
            .sort_unstable_by_key(|(_, seconds)| std::cmp::Reverse(*seconds));
        for (name, seconds) in &self.total.slow {
            println!("{seconds:6} s    {name}");
        }
        for (name, seconds) in &self.times {
            println!("{seconds:8.1} s  {name}");
        }
        println!("{:8.1} s  in all", self.started.elapsed().as_secs_f64());
        for name in &self.total.ignored {
            println!("not run (marked so; see `cargo xtask stress`): {name}");
        }
        for text in selection.left_out() {
            println!("not run (as asked): {text}");
        }
        for name in &self.total.failures {
            println!("failed: {name}");
        }
        println!("{} passed, {} failed", self.total.passed, self.total.failed);
        u8::from(self.total.failed > 0)
    }
}

#[cfg(test)]
#[path = "test_tests.rs"]
mod tests;
