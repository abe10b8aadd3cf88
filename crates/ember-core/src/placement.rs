//! Where a sandbox's monitor runs.

use std::env;
use std::fmt;
use std::str::FromStr;

use ember_worker::host::Workers;

use crate::error::{Error, ErrorKind};
use crate::sandbox::vm::worker_error;

/// The variable of the environment that says where sandboxes run whose caller does not say so.
const VARIABLE: &str = "EMBER_PLACEMENT";

/// Where a sandbox runs: its processors, its devices and its memory.
///
/// Whoever does not say gets what the environment variable `EMBER_PLACEMENT` says, `in-process` or
/// `worker`; without one it is [`InProcess`](Self::InProcess).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Placement {
    /// In threads of the caller's process. The cheapest, for a caller who trusts the monitor with
    /// what it runs: a flaw in the monitor is a flaw in this process.
    #[default]
    InProcess,
    /// In a process of its own, a small program that has nothing of the caller's: neither memory nor
    /// descriptors nor environment. It ends with the sandbox, and with the caller's process however
    /// that ends. Some are kept started ahead, for as long as anything is there that uses them.
    ///
    /// Needs `/proc`, and a kernel that lets files in memory be executed.
    Worker,
}

impl Placement {
    /// What it is if the caller does not say.
    fn usual() -> Result<Self, Error> {
        match env::var_os(VARIABLE) {
            None => Ok(Self::default()),
            Some(value) => value.to_string_lossy().parse().map_err(|error: Error| {
                let message =
                    format!("the environment variable {VARIABLE} has no meaning: {error}");
                Error::new(ErrorKind::InvalidRequest, message)
            }),
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProcess => "in-process",
            Self::Worker => "worker",
        })
    }
}

impl FromStr for Placement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "in-process" => Ok(Self::InProcess),
            "worker" => Ok(Self::Worker),
            _ => {
                let message = format!("a placement is `in-process` or `worker`, not `{text}`");
                Err(Error::new(ErrorKind::InvalidRequest, message))
            }
        }
    }
}

/// A placement with what it takes.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    InProcess,
    Worker(Workers),
}

impl Place {
    /// The place for what the caller said. Waits for the operating system.
    pub(crate) fn of(placement: Option<Placement>) -> Result<Self, Error> {
        let placement = match placement {
            Some(placement) => placement,
            None => Placement::usual()?,
        };
        match placement {
            Placement::InProcess => Ok(Self::InProcess),
            Placement::Worker => {
                let workers = Workers::shared();
                workers
                    .map(Self::Worker)
                    .map_err(|error| worker_error("cannot have worker processes", error))
            }
        }
    }

    /// What was asked for, if it is another placement than this.
    pub(crate) fn other(&self, asked: Option<Placement>) -> Option<Placement> {
        let own = match self {
            Self::InProcess => Placement::InProcess,
            Self::Worker(_) => Placement::Worker,
        };
        asked.filter(|asked| *asked != own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_is_read_as_it_is_written() {
        for placement in [Placement::InProcess, Placement::Worker] {
            assert_eq!(
                placement.to_string().parse::<Placement>().unwrap(),
                placement
            );
        }
        let error = "elsewhere".parse::<Placement>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("`elsewhere`"), "{error}");
    }
}
