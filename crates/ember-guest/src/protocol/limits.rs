//! What a command may use.

use std::time::Duration;

use super::Malformed;
use super::codec::Reader;
use super::spawn::micros;

/// What a command may use. `None` leaves the guest's own limit.
///
/// The first five hold for the command and everything it has started together; whoever exceeds one
/// is ended as a whole, and its outcome says which it was ([`LimitHit`](super::LimitHit)). Those of
/// them that the kernel does not enforce itself are looked at every 100 ms, and at the end. The
/// others are each process's own, and exceeding one is an error that the process is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, with the files that are written to memory (cgroup `memory.max`).
    pub memory: Option<u64>,
    /// Processes and threads (cgroup `pids.max`).
    pub processes: Option<u64>,
    /// Processor time (cgroup `cpu.stat`). In a guest without cgroups, of each process, in whole
    /// seconds.
    pub cpu_time: Option<Duration>,
    /// Bytes that may be written to standard output and standard error together.
    pub output: Option<u64>,
    /// Bytes that files may take which are written over the root and to `/tmp`: to memory (cgroup
    /// `memory.stat`, `shmem`), or to a disk, of which counts what there is more than before, whoever
    /// wrote it.
    pub disk: Option<u64>,
    /// Bytes of address space of each process (`RLIMIT_AS`).
    pub address_space: Option<u64>,
    /// Processes of the command's user in the whole guest (`RLIMIT_NPROC`; not for root).
    pub user_processes: Option<u64>,
    /// Open files of each process (`RLIMIT_NOFILE`).
    pub open_files: Option<u64>,
    /// Bytes of a file a process writes (`RLIMIT_FSIZE`).
    pub file_size: Option<u64>,
}

/// How a limit that is not set is written. As a number it would be no limit either.
const UNLIMITED: u64 = u64::MAX;
const COUNT: usize = 9;

impl Limits {
    /// Whether any is set that takes the controllers of cgroups to count.
    pub fn need_controllers(&self) -> bool {
        let counted = [self.memory, self.processes, self.disk];
        counted.iter().any(Option::is_some)
    }

    /// The length of its bytes.
    pub(super) const LENGTH: usize = COUNT * 8;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let Self {
            memory,
            processes,
            cpu_time,
            output,
            disk,
            address_space,
            user_processes,
            open_files,
            file_size,
        } = *self;
        let list: [Option<u64>; COUNT] = [
            memory,
            processes,
            cpu_time.map(micros),
            output,
            disk,
            address_space,
            user_processes,
            open_files,
            file_size,
        ];
        for limit in list {
            out.extend_from_slice(&limit.unwrap_or(UNLIMITED).to_le_bytes());
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut list = [None; COUNT];
        for limit in &mut list {
            let value = reader.u64("limits")?;
            *limit = (value != UNLIMITED).then_some(value);
        }
        let [
            memory,
            processes,
            cpu_time,
            output,
            disk,
            address_space,
            user_processes,
            open_files,
            file_size,
        ] = list;
        Ok(Self {
            memory,
            processes,
            cpu_time: cpu_time.map(Duration::from_micros),
            output,
            disk,
            address_space,
            user_processes,
            open_files,
            file_size,
        })
    }
}
