//! What can be said on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ember_core::{ByteSize, Kernel, Placement};
use tracing::level_filters::LevelFilter;

const AFTER_HELP: &str = "\
Keys: each line of --key-file, or else the variable EMBER_API_KEY, is a key; clients send it as
`Authorization: Bearer KEY`. Without one the server listens only on loopback, and whoever can reach
it there may use it.

The first start with a pack builds its image and template, which takes up to some minutes; later ones
find them in the cache. `GET /readyz` says when the pools are filled.

SIGTERM and SIGINT end the server in order: what is under way may end, then all sandboxes do. A
second signal ends it at once.";

/// Sandboxes over HTTP: real Linux microVMs, cloned from templates and kept ready in pools.
///
/// It speaks the protocols of emberd (/sandboxes) and zeroboot (/v1/exec); /openapi.json describes
/// both.
#[derive(Debug, Clone, Parser)]
#[command(name = "ember-server", version, after_help = AFTER_HELP)]
pub struct Options {
    /// The address and port to listen on. Port 0 is any that is free; the log says which.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// A file with the keys that clients may use, one a line.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// The language packs that there are sandboxes of, separated by commas.
    #[arg(
        long = "packs",
        value_name = "PACKS",
        value_delimiter = ',',
        default_value = "python,javascript,bash"
    )]
    pub packs: Vec<String>,
    /// A program to run while the template of its language is built (more than once for several).
    /// What it imports is there in every sandbox.
    #[arg(long = "warm-up", value_name = "FILE")]
    pub warm_up: Vec<PathBuf>,

    /// How many sandboxes of each pack are kept ready.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        help_heading = "Sandboxes"
    )]
    pub ready: usize,
    /// How many of each pack may be alive at once.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        help_heading = "Sandboxes"
    )]
    pub max: usize,
    /// How many processors each has.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Sandboxes",
          value_parser = clap::value_parser!(u8).range(1..=32))]
    pub vcpus: u8,
    /// How much memory each has, in MiB [default: what the pack needs, else 256].
    #[arg(long, value_name = "MIB", value_parser = mebibytes, help_heading = "Sandboxes")]
    pub memory: Option<ByteSize>,
    /// Their kernel: `stock`, `tuned` or a file [default: tuned if it has been built, else stock].
    #[arg(long, value_name = "KERNEL", value_parser = kernel, help_heading = "Sandboxes")]
    pub kernel: Option<Kernel>,
    /// Where they run: `worker`, each in a process of its own, or `in-process`.
    #[arg(
        long,
        value_name = "PLACEMENT",
        default_value = "worker",
        env = "EMBER_PLACEMENT",
        help_heading = "Sandboxes"
    )]
    pub placement: Placement,

    /// How long one program may take, whatever its client asks for.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration,
          help_heading = "Limits")]
    pub exec_timeout: Duration,
    /// How long a request waits for a sandbox when none is free, before it is told 503.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration,
          help_heading = "Limits")]
    pub queue_timeout: Duration,
    /// How long a client's sandbox may lie idle before it is ended.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration,
          help_heading = "Limits")]
    pub idle_timeout: Duration,
    /// How long a client's sandbox may live.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration,
          help_heading = "Limits")]
    pub max_age: Duration,
    /// How long what is under way may take to end when the server ends.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration,
          help_heading = "Limits")]
    pub drain_timeout: Duration,
    /// How much output of a program is returned, in KiB, on both streams together. One that writes
    /// more is ended.
    #[arg(long, value_name = "KIB", default_value = "1024", value_parser = kibibytes,
          help_heading = "Limits")]
    pub output_limit: ByteSize,
    /// How much of its memory a sandbox may copy, in MiB: one that has more is ended [default: all of
    /// it].
    #[arg(long, value_name = "MIB", value_parser = mebibytes, help_heading = "Limits")]
    pub memory_cap: Option<ByteSize>,
    /// How large a request's body may be, in KiB.
    #[arg(long, value_name = "KIB", default_value = "1024", value_parser = kibibytes,
          help_heading = "Limits")]
    pub body_limit: ByteSize,
    /// How many connections may be open at once. More wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Limits",
          value_parser = positive)]
    pub max_connections: usize,

    /// Write the log as one JSON object a line.
    #[arg(long, help_heading = "Log")]
    pub json: bool,
    /// How much is logged: off, error, warn, info, debug or trace.
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Log"
    )]
    pub log: LevelFilter,
}

type Parsed<T> = Result<T, String>;

fn duration(text: &str) -> Parsed<Duration> {
    match humantime::parse_duration(text) {
        Ok(time) if time.is_zero() => Err("it must be more than nothing".to_owned()),
        // Sums of some of these have to be times as well.
        Ok(time) if time > Duration::from_secs(366 * 24 * 3600) => {
            Err("it must be at most a year".to_owned())
        }
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write it like 30s or 5m")),
    }
}

fn count(text: &str, unit: &str) -> Parsed<u64> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("it is a number{unit} of at least 1")),
        Ok(count) => Ok(count),
    }
}

fn positive(text: &str) -> Parsed<usize> {
    let count = count(text, "")?;
    usize::try_from(count).map_err(|error| error.to_string())
}

fn mebibytes(text: &str) -> Parsed<ByteSize> {
    count(text, " of MiB").map(ByteSize::mib)
}

fn kibibytes(text: &str) -> Parsed<ByteSize> {
    count(text, " of KiB").map(ByteSize::kib)
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of a parser")]
fn kernel(text: &str) -> Parsed<Kernel> {
    Ok(match text {
        "stock" => Kernel::stock(),
        "tuned" => Kernel::tuned(),
        path => Kernel::file(path),
    })
}
