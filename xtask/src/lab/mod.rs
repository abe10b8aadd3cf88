//! The lab: a virtual machine of QEMU's software CPU, in which `/dev/kvm` is the kernel's real one.
//!
//! See `docs/lab.md`. The host's side is here and in `session.rs`; `image.rs` makes what is
//! booted, `boot.sh`, `guard.pl` and `init.rs` run inside, `at_once.rs` has suites of tests
//! run in several at once.

mod at_once;
mod image;
pub(crate) mod init;
mod qemu;
mod session;
mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{debian, dirs};

pub(crate) use at_once::run_suites;
pub(crate) use session::{Exit, Inherit, Output};

/// Environment variable that tells a command where its results survive the lab.
pub(crate) const OUT_VARIABLE: &str = "EMBER_LAB_OUT";

/// In seconds.
const DEFAULT_TIMEOUT: u64 = 1800;

/// Where this very executable is in the lab.
pub(crate) const SELF: &str = "/run/lab-init";

/// How the lab's machine is made.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Machine {
    /// The deterministic clock: time is the number of instructions executed, 1 ns each; one CPU
    #[arg(long)]
    pub(crate) icount: bool,
    /// Guard VMs against QEMU's faults under that clock too, which adds some microseconds for each
    /// interrupt that a VM gets (docs/lab.md)
    #[arg(long, requires = "icount")]
    pub(crate) guard: bool,
    /// CPUs of the lab
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u8,
    /// Memory of the lab in MiB [default: half of the machine's, at most 6144]
    #[arg(long, value_name = "MIB")]
    pub(crate) memory: Option<u32>,
    /// End the command after so many seconds, with status 124; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT)]
    pub(crate) timeout: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            icount: false,
            guard: false,
            cpus: 1,
            memory: None,
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

/// What is run in a lab.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Program and arguments.
    pub(crate) command: Vec<OsString>,
    /// Where.
    pub(crate) directory: PathBuf,
    /// With what environment, besides what the lab adds.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Whether the caller's standard input goes to the command.
    pub(crate) stdin: bool,
}

impl Job {
    /// `command` as the caller itself would run it.
    pub(crate) fn inherit(command: Vec<OsString>) -> Result<Self> {
        Ok(Self {
            command,
            directory: std::env::current_dir().context("finding the working directory")?,
            environment: std::env::vars_os().collect(),
            stdin: true,
        })
    }
}

/// Makes ready whatever a lab needs, and says where its kernel is from.
pub(crate) fn prepare() -> Result<String> {
    debian::ensure(&debian::LAB_TOOLS)?;
    Ok(image::prepare()?.origin)
}

/// Boots a lab, runs the job in it and waits for its end.
pub(crate) fn run(machine: &Machine, job: &Job, output: &mut dyn Output) -> Result<Exit> {
    debian::ensure(&debian::LAB_TOOLS)?;
    let image = image::prepare()?;
    let run = dirs::Scratch::below(&dirs::target()?.join("lab-run"))?;
    let out = results_directory()?;
    dirs::create(&out)?;

    let in_tmp = job.directory.starts_with("/tmp");
    let guard = machine.guard || !machine.icount;
    let initramfs = qemu::initramfs(&image.initramfs, run.path(), &out, !in_tmp, guard)?;
    let qemu = qemu::Qemu {
        kernel: &image.kernel,
        initramfs: &initramfs,
        out: &out,
        run: run.path(),
        machine,
    };
    let mut environment = job.environment.clone();
    let clock = if machine.icount { "icount" } else { "tcg" };
    environment.extend([
        ("EMBER_LAB".into(), clock.into()),
        (OUT_VARIABLE.into(), out.clone().into_os_string()),
    ]);
    let timeout = (machine.timeout > 0).then(|| Duration::from_secs(machine.timeout));
    session::run(&qemu, job, &environment, timeout, output)
}

/// Where the writable share is: what the caller chose, or one fixed place in the target directory.
pub(crate) fn results_directory() -> Result<PathBuf> {
    let chosen = std::env::var_os(OUT_VARIABLE).map(PathBuf::from);
    match chosen.filter(|path| path.is_absolute()) {
        Some(path) => Ok(path),
        None => Ok(dirs::target()?.join("lab-out")),
    }
}
