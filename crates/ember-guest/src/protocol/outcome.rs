//! How a command ended, which limit ended it, and what it used.

use std::fmt;
use std::time::Duration;

use super::Malformed;
use super::codec::Reader;
use super::spawn::micros;

/// How a command ended, of itself or by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It called exit with this code.
    Exited(u8),
    /// This signal ended it.
    Signaled(u8),
}

impl Status {
    /// The code a shell reports: 128 and the signal's number for a command that a signal ended.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code),
            Self::Signaled(signal) => 128 + i32::from(signal),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(formatter, "exit code {code}"),
            Self::Signaled(signal) => write!(formatter, "signal {signal}"),
        }
    }
}

/// A limit that ended a command and everything it had started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum LimitHit {
    /// Its timeout passed while it, or something it had started, was alive.
    WallTime = 1,
    /// All of it together used the processor for longer than it might
    /// ([`Limits::cpu_time`](super::Limits::cpu_time)).
    CpuTime = 2,
    /// There was no memory left for it: of its own limit
    /// ([`Limits::memory`](super::Limits::memory)), or of the guest.
    Memory = 3,
    /// It was refused a process or thread ([`Limits::processes`](super::Limits::processes)).
    Processes = 4,
    /// It wrote more to its outputs than it might ([`Limits::output`](super::Limits::output)).
    Output = 5,
    /// Its files grew larger together than they might ([`Limits::disk`](super::Limits::disk)).
    Disk = 6,
    /// A file grew larger than it might, and the command did not ignore the signal that says so
    /// ([`Limits::file_size`](super::Limits::file_size)).
    FileSize = 7,
}

impl LimitHit {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::WallTime,
        Self::CpuTime,
        Self::Memory,
        Self::Processes,
        Self::Output,
        Self::Disk,
        Self::FileSize,
    ];
}

impl fmt::Display for LimitHit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::WallTime => "wall time",
            Self::CpuTime => "processor time",
            Self::Memory => "memory",
            Self::Processes => "processes",
            Self::Output => "output",
            Self::Disk => "disk",
            Self::FileSize => "file size",
        })
    }
}

/// How a command ended and what it used.
///
/// What it used is that of the command and everything it has started, as the kernel counts it for
/// their cgroup. In a guest without cgroups it is that of the command and the children that it
/// waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How the command itself ended (not its children).
    pub status: Status,
    /// The limit that ended it, if one did: the first one that was hit.
    pub limit: Option<LimitHit>,
    /// From its start until its end was known, by the guest's clock.
    pub wall: Duration,
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The most memory it had at a time, in bytes: what it added to the guest's use, with the files
    /// that it wrote to memory. Of a command without limits, the most that one of its processes had
    /// resident, shared memory included.
    pub peak_memory: u64,
    /// The most processes and threads it had at a time; 0 if they were not counted.
    pub peak_processes: u64,
    /// How many bytes it wrote to its outputs, as far as they were read.
    pub output: u64,
    /// How many bytes the files that it wrote took when last looked at: in memory, or what there was
    /// more on the disk that is written to than before; 0 if they were not counted.
    pub disk: u64,
}

impl Outcome {
    /// Whether it exited with code 0, within its limits.
    pub fn success(&self) -> bool {
        self.status == Status::Exited(0) && self.limit.is_none()
    }

    /// Whether its timeout ended it.
    pub fn timed_out(&self) -> bool {
        self.limit == Some(LimitHit::WallTime)
    }

    /// Whether want of memory ended it.
    pub fn out_of_memory(&self) -> bool {
        self.limit == Some(LimitHit::Memory)
    }
}

mod exit {
    pub(super) const EXITED: u8 = 0;
    pub(super) const SIGNALED: u8 = 1;
}

impl Outcome {
    /// The length of its payload.
    pub(super) const LENGTH: usize = 3 + 7 * 8;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, code) = match self.status {
            Status::Exited(code) => (exit::EXITED, code),
            Status::Signaled(signal) => (exit::SIGNALED, signal),
        };
        out.extend_from_slice(&[kind, code, self.limit.map_or(0, |limit| limit as u8)]);
        for number in [
            micros(self.wall),
            micros(self.user),
            micros(self.system),
            self.peak_memory,
            self.peak_processes,
            self.output,
            self.disk,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let kind = reader.u8("status")?;
        let code = reader.u8("code")?;
        let status = match kind {
            exit::EXITED => Status::Exited(code),
            exit::SIGNALED => Status::Signaled(code),
            _ => return Err(reader.out_of_range("status", u64::from(kind))),
        };
        let limit = match reader.u8("limit")? {
            0 => None,
            number => match LimitHit::ALL.into_iter().find(|it| *it as u8 == number) {
                Some(limit) => Some(limit),
                None => return Err(reader.out_of_range("limit", u64::from(number))),
            },
        };
        Ok(Self {
            status,
            limit,
            wall: Duration::from_micros(reader.u64("wall time")?),
            user: Duration::from_micros(reader.u64("user time")?),
            system: Duration::from_micros(reader.u64("system time")?),
            peak_memory: reader.u64("peak memory")?,
            peak_processes: reader.u64("peak processes")?,
            output: reader.u64("output")?,
            disk: reader.u64("disk")?,
        })
    }
}
