//! What a command uses while it runs.

use std::time::Duration;

use super::Malformed;
use super::codec::Reader;
use super::spawn::micros;

/// What a command, and everything it has started, uses and has used so far.
///
/// It is the kernel's count for their cgroup. In a guest without cgroups, and for what is not counted
/// of a command without limits, it is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// For how long it has run, by the guest's clock.
    pub wall: Duration,
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// How much memory it has, in bytes: what it added to the guest's use, with the files that it
    /// wrote to memory.
    pub memory: u64,
    /// The most it had at a time.
    pub peak_memory: u64,
    /// How many processes and threads it has. A confined command's room has one of its own.
    pub processes: u64,
    /// The most it had at a time.
    pub peak_processes: u64,
    /// How many bytes it wrote to its outputs, as far as they were read.
    pub output: u64,
    /// How many bytes of files it has in memory.
    pub disk: u64,
}

impl Usage {
    /// The length of its payload.
    pub(super) const LENGTH: usize = 9 * 8;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for number in [
            micros(self.wall),
            micros(self.user),
            micros(self.system),
            self.memory,
            self.peak_memory,
            self.processes,
            self.peak_processes,
            self.output,
            self.disk,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            wall: Duration::from_micros(reader.u64("wall time")?),
            user: Duration::from_micros(reader.u64("user time")?),
            system: Duration::from_micros(reader.u64("system time")?),
            memory: reader.u64("memory")?,
            peak_memory: reader.u64("peak memory")?,
            processes: reader.u64("processes")?,
            peak_processes: reader.u64("peak processes")?,
            output: reader.u64("output")?,
            disk: reader.u64("disk")?,
        })
    }
}
