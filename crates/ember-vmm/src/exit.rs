//! How a VM ended.

use std::fmt;

use ember_snapshot::vcpu::VcpuRegisters;
use serde::{Deserialize, Serialize};

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest asked for a reset. A VM is not started again: a new one is built.
    Reset,
    /// The guest's kernel panicked.
    Panicked {
        /// What it said on its console, if it got to say it.
        message: String,
    },
    /// [`Vm::stop`](crate::Vm::stop) was called, or the VM was dropped.
    Stopped,
    /// The guest could not handle a fault, the way a PC then resets.
    TripleFault {
        /// The vCPU that faulted.
        vcpu: usize,
        /// Where it was, as far as the processor still says.
        registers: Box<VcpuRegisters>,
    },
    /// The monitor itself failed: a bug of ours, which ended this VM and nothing else.
    MonitorFailed {
        /// What failed.
        what: String,
    },
    /// KVM could not go on with a vCPU.
    InternalError {
        /// The vCPU.
        vcpu: usize,
        /// What KVM reported.
        what: String,
        /// Where the vCPU was.
        registers: Box<VcpuRegisters>,
    },
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Panicked { message } if message.is_empty() => {
                f.write_str("the guest's kernel panicked")
            }
            Self::Panicked { message } => write!(f, "the guest's kernel panicked: {message}"),
            Self::Stopped => f.write_str("the VM was stopped"),
            Self::MonitorFailed { what } => write!(f, "the monitor failed ({what})"),
            Self::TripleFault { vcpu, registers } => {
                write!(f, "triple fault on vCPU {vcpu}\n{registers}")
            }
            Self::InternalError {
                vcpu,
                what,
                registers,
            } => {
                write!(f, "KVM cannot go on with vCPU {vcpu} ({what})\n{registers}")
            }
        }
    }
}

/// The message of a kernel panic in console output, if there is one.
pub(crate) fn panic_message(console: &[u8]) -> Option<String> {
    const MARK: &str = "Kernel panic - not syncing: ";
    /// A panic message is a line; a hostile guest's could be anything.
    const LONGEST: usize = 512;
    let text = String::from_utf8_lossy(console);
    let message = text.rsplit_once(MARK)?.1.lines().next()?;
    Some(
        message
            .chars()
            .filter(|c| !c.is_control())
            .take(LONGEST)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_panic_of_a_console_is_found() {
        let console = b"[    0.1] Kernel panic - not syncing: No working init found.\r\n[ 0.2] CPU";
        assert_eq!(
            panic_message(console).as_deref(),
            Some("No working init found.")
        );
        assert_eq!(panic_message(b"all is well"), None);
        let long = [b"Kernel panic - not syncing: ".as_slice(), &[b'x'; 9999]].concat();
        assert_eq!(panic_message(&long).map(|m| m.len()), Some(512));
    }
}
