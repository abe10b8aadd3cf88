//! `ember`: run programs in microVMs, from the command line.
#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod copy;
mod doctor;
mod exec;
mod figures;
mod fork;
mod guest;
mod image;
mod lang;
mod prepare;
mod progress;
mod report;
mod run;
mod session;
mod shell;
mod streams;
mod template;
mod transfer;
mod volume;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use arguments::{Arguments, Task};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match perform(&arguments) {
        Ok(code) => code,
        Err(error) => report::failure(&error, arguments.common.json),
    }
}

fn perform(arguments: &Arguments) -> Result<ExitCode> {
    // One thread is enough: all it does is to pass bytes along.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let common = &arguments.common;
    let outcome = match &arguments.task {
        Task::Run(options) => runtime.block_on(run::run(options, common)),
        Task::Exec(options) => runtime.block_on(exec::exec(options, common)),
        Task::Session(options) => runtime.block_on(session::session(options, common)),
        Task::Shell(options) => runtime.block_on(shell::shell(options, common)),
        Task::Cp(options) => runtime.block_on(copy::copy(options, common)),
        Task::Fork(options) => runtime.block_on(fork::fork(options, common)),
        Task::Template(action) => runtime.block_on(template::template(action, common)),
        Task::Lang(action) => lang::lang(action, common),
        Task::Image(action) => image::image(action, common),
        Task::Doctor => doctor::doctor(common),
        Task::Bench(options) => runtime.block_on(bench::bench(options, common)),
        Task::Prepare(options) => prepare::prepare(options, common),
    };
    // A thread may still wait for standard input, which nobody has to type any more.
    runtime.shutdown_background();
    outcome
}
