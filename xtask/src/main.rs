//! The project's commands, the same for people and for CI: `cargo xtask COMMAND`.

mod background;
mod bench;
mod cargo;
mod cpio;
mod debian;
mod dirs;
mod kernel;
mod lab;
mod languages_table;
mod licences;
mod modules;
// Included, not depended on: this crate must build while the monitor does not.
#[path = "../../crates/ember-vmm/src/probe.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "it is a public module of another crate"
)]
mod probe;
mod quickstart;
mod suites;
mod test;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Prints a line of progress, on standard error: standard output belongs to what is run.
macro_rules! say {
    ($($arguments:tt)*) => {
        eprintln!("xtask: {}", format_args!($($arguments)*))
    };
}
pub(crate) use say;

/// Status of an xtask that failed itself, so that it is not taken for the command's.
const FAILED: u8 = 125;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The project's commands"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// From a fresh machine to a Python program in a microVM
    ///
    /// Installs what is missing and says what and why. Safe to run again.
    Quickstart,
    /// Run a command where KVM is real: in a virtual machine of QEMU's software CPU
    ///
    /// The command has the caller's working directory, environment, standard streams and exit
    /// status. It may write anywhere and only what it writes to $EMBER_LAB_OUT stays.
    Lab {
        #[command(flatten)]
        machine: lab::Machine,
        /// Say what was booted and how long it took
        #[arg(long, short)]
        verbose: bool,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Build the tuned guest kernel from Debian's source package
    ///
    /// Optional: every command works with Debian's stock kernel too. Kept in the cache; the last
    /// line is its path.
    Kernel {
        /// Build again if Debian has newer source
        #[arg(long)]
        update: bool,
    },
    /// Say whether this machine's own KVM can boot Linux, by timing it
    ///
    /// The exit status is 0 when it can, 1 when it cannot.
    Probe,
    /// Format, clippy, documentation, licences, unit tests, doc tests and all KVM tests
    ///
    /// KVM tests are integration tests named kvm_*; they run on this machine's own KVM if it can
    /// boot Linux, and else in the lab. The last line is `N passed, M failed`.
    Test {
        #[command(flatten)]
        selection: test::Selection,
    },
    /// The KVM tests that take longer: integration tests named stress_*, and those marked ignored
    Stress {
        #[command(flatten)]
        selection: test::Selection,
    },
    /// Measure the published figures, by the lab's instruction clock
    ///
    /// Prints a table and writes target/bench/figures.json.
    Bench {
        /// Figures to measure, such as boot.agent [default: all]
        names: Vec<String>,
    },
    /// Check licences, bans and sources with cargo-deny, which is installed if it is missing
    Deny,
    /// First process in the lab
    #[command(hide = true)]
    LabInit,
    /// The programs of quickstart, where KVM is real
    #[command(hide = true)]
    QuickstartPrograms { ember: PathBuf },
    /// What the tests need that takes long to make
    #[command(hide = true)]
    PrepareTests {
        #[arg(long)]
        ember: Option<PathBuf>,
    },
    /// Run the test executables that standard input names
    #[command(hide = true)]
    RunSuites,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Lab {
            machine,
            verbose,
            command,
        } => {
            if verbose {
                say!("the lab's kernel: {}", lab::prepare()?);
            }
            let job = lab::Job::inherit(command)?;
            let exit = lab::run(&machine, &job, &mut lab::Inherit)?;
            if verbose {
                let (boot, command) = (exit.boot.as_secs_f64(), exit.command.as_secs_f64());
                say!("the lab took {boot:.1} s to boot, the command {command:.1} s");
            }
            Ok(exit.status)
        }
        Command::Kernel { update } => {
            println!("{}", kernel::run(update)?.display());
            Ok(0)
        }
        Command::Probe => {
            let verdict = probe::probe();
            println!("{verdict}");
            if let Some(advice) = verdict.advice() {
                println!("to change that: {advice}");
            }
            Ok(u8::from(!verdict.is_real()))
        }
        Command::Test { selection } => test::test(&selection),
        Command::Stress { selection } => test::stress(&selection),
        Command::RunSuites => {
            suites::run_each(std::io::stdin().lock(), &mut std::io::stdout()).map(|()| 0)
        }
        Command::PrepareTests { ember } => test::prepare_beside(ember.as_deref()).map(|()| 0),
        Command::Quickstart => quickstart::run(),
        Command::QuickstartPrograms { ember } => quickstart::programs(&ember),
        Command::Bench { names } => bench::run(&names),
        Command::Deny => licences::deny(),
        Command::LabInit => lab::init::run().map(|()| 0),
    }
}
