//! What can be asked for on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ember_core::Kernel;

/// Run programs in microVMs.
#[derive(Debug, Parser)]
#[command(name = "ember", version)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) task: Task,
}

/// Options that stand before or after the command.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Print what there is to say as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The kernel: `stock`, `tuned` or a file; the best that is there if not given.
    #[arg(long, global = true, value_name = "KERNEL", value_parser = kernel)]
    pub(crate) kernel: Option<Kernel>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Get everything ready that sandboxes are made from: the kernel and the packs.
    Prepare(Prepare),
}

#[derive(Debug, Args)]
pub(crate) struct Prepare {
    /// The packs to prepare.
    #[arg(default_value = "python", value_name = "PACK")]
    pub(crate) packs: Vec<String>,
    /// Look for a newer kernel and newer packages than those that are there.
    #[arg(long)]
    pub(crate) renew: bool,
    /// Also write the initramfs that guests start from to FILE.
    #[arg(long, value_name = "FILE", requires = "agent")]
    pub(crate) initramfs: Option<PathBuf>,
    /// The agent that goes into the initramfs.
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "the shape of a parser of arguments"
)]
fn kernel(text: &str) -> Result<Kernel, String> {
    Ok(match text {
        "stock" => Kernel::stock(),
        "tuned" => Kernel::tuned(),
        path => Kernel::file(path),
    })
}
