//! `ember`: run programs in microVMs, from the command line.

mod arguments;
mod prepare;
mod progress;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Task};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.task {
        Task::Prepare(options) => prepare::run(options, &arguments.common),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ember: {error:#}");
            ExitCode::FAILURE
        }
    }
}
