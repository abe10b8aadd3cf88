//! The project's commands, the same for people and for CI: `cargo xtask COMMAND`.

mod cpio;
mod debian;
mod dirs;
mod lab;
mod modules;
// Included, not depended on: this crate must build while the monitor does not.
#[path = "../../crates/ember-vmm/src/probe.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "it is a public module of another crate"
)]
mod probe;

use std::ffi::OsString;
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
    /// Say whether this machine's own KVM can boot Linux, by timing it
    ///
    /// The exit status is 0 when it can, 1 when it cannot.
    Probe,
    /// First process in the lab
    #[command(hide = true)]
    LabInit,
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
        Command::Probe => {
            let verdict = probe::probe();
            println!("{verdict}");
            if let Some(advice) = verdict.advice() {
                println!("to change that: {advice}");
            }
            Ok(u8::from(!verdict.is_real()))
        }
        Command::LabInit => lab::init::run().map(|()| 0),
    }
}
