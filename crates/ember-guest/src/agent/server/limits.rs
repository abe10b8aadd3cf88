//! What a command has used so far, and which of its limits it has hit.
//!
//! The kernel enforces some limits by itself: memory by ending everything in the cgroup, processes
//! by refusing more. The others are looked at from time to time ([`Watch::look`]), and what is
//! found is acted on by who asked.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::statfs::statfs;

use crate::agent::init;
use crate::agent::sys::Reaped;
use crate::agent::tree::Tree;
use crate::protocol::{LimitHit, Limits, Outcome, Status, Usage};

/// How often limits are looked at that the kernel does not enforce.
const LOOK: Duration = Duration::from_millis(100);
/// The shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(2);

/// Keeps watch over the limits of one command.
#[derive(Debug)]
pub(super) struct Watch {
    limits: Limits,
    /// What its tree had used before the command began.
    before: (Duration, Duration),
    /// What was on the disk before, if what is written goes to one.
    disk_before: Option<u64>,
    /// When to look again, if ever.
    pub(super) next: Option<Instant>,
    /// The limit that ended it.
    hit: Option<LimitHit>,
    /// Bytes of its outputs that were passed on.
    output: u64,
}

impl Watch {
    pub(super) fn new(limits: Limits, tree: &Tree, now: Instant) -> Self {
        let looked_at =
            limits.cpu_time.is_some() || limits.processes.is_some() || limits.disk.is_some();
        let counted = tree.processor_time();
        let mut watch = Self {
            limits,
            before: counted.unwrap_or_default(),
            disk_before: used_disk(),
            next: None,
            hit: None,
            output: 0,
        };
        if looked_at && counted.is_some() {
            watch.next = Some(now + watch.interval(Duration::ZERO));
        }
        watch
    }

    /// How long nothing can be amiss but by a little: all processors at work, it could have used its
    /// time up after that.
    fn interval(&self, used: Duration) -> Duration {
        let Some(limit) = self.limits.cpu_time else {
            return LOOK;
        };
        let processors = std::thread::available_parallelism().map_or(1, |it| it.get() as u32);
        (limit.saturating_sub(used) / processors).clamp(SHORTEST, LOOK)
    }

    /// Bytes of the files that it wrote. Nobody knows whose the files on a disk are: what there is
    /// more of them than before counts, whoever wrote it.
    fn disk(&self, tree: &Tree) -> u64 {
        let written = match (self.disk_before, used_disk()) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => 0,
        };
        tree.disk().saturating_add(written)
    }

    fn used(&self, tree: &Tree) -> Option<(Duration, Duration)> {
        let (user, system) = tree.processor_time()?;
        let (user_before, system_before) = self.before;
        Some((
            user.saturating_sub(user_before),
            system.saturating_sub(system_before),
        ))
    }

    /// Looks whether a limit has been hit, if it is time to. Says whether one has.
    pub(super) fn look(&mut self, tree: &Tree, now: Instant) -> bool {
        if self.next.is_none_or(|next| next > now) {
            return false;
        }
        let used = self.used(tree).unwrap_or_default();
        let used = used.0 + used.1;
        let limits = &self.limits;
        let hit = if limits.cpu_time.is_some_and(|limit| used >= limit) {
            Some(LimitHit::CpuTime)
        } else if limits.processes.is_some() && tree.ran_out_of_processes() {
            Some(LimitHit::Processes)
        } else if limits.disk.is_some_and(|limit| self.disk(tree) > limit) {
            Some(LimitHit::Disk)
        } else {
            None
        };
        match hit {
            Some(hit) => {
                self.hit(hit);
                true
            }
            None => {
                self.next = Some(now + self.interval(used));
                false
            }
        }
    }

    /// It has hit a limit. Only the first one counts.
    pub(super) fn hit(&mut self, hit: LimitHit) {
        self.hit.get_or_insert(hit);
        self.next = None;
    }

    /// How many bytes of output may still be passed on.
    pub(super) fn output_left(&self) -> u64 {
        let limit = self.limits.output.unwrap_or(u64::MAX);
        limit.saturating_sub(self.output)
    }

    /// So many have been.
    pub(super) fn passed_on(&mut self, bytes: usize) {
        self.output = self.output.saturating_add(bytes as u64);
    }

    /// What a command has used that runs for so long.
    pub(super) fn usage(&self, wall: Duration, tree: &Tree) -> Usage {
        let (user, system) = self.used(tree).unwrap_or_default();
        Usage {
            wall,
            user,
            system,
            memory: tree.memory().unwrap_or(0),
            peak_memory: tree.peak_memory().unwrap_or(0),
            processes: tree.processes().unwrap_or(0),
            peak_processes: tree.peak_processes().unwrap_or(0),
            output: self.output,
            disk: self.disk(tree),
        }
    }

    /// The outcome of a command that has ended like this.
    pub(super) fn outcome(&self, reaped: &Reaped, wall: Duration, tree: &Tree) -> Outcome {
        let (user, system) = self.used(tree).unwrap_or((reaped.user, reaped.system));
        let limits = &self.limits;
        // What the kernel did by itself is read from its counters. Whoever ended before the next
        // look is judged here.
        let limit = self.hit.or_else(|| {
            let signal = |number: libc::c_int| {
                reaped.status == Status::Signaled(u8::try_from(number).unwrap_or(0))
            };
            if tree.ran_out_of_memory() {
                Some(LimitHit::Memory)
            } else if limits.processes.is_some() && tree.ran_out_of_processes() {
                Some(LimitHit::Processes)
            } else if limits.cpu_time.is_some_and(|limit| user + system >= limit) {
                Some(LimitHit::CpuTime)
            } else if limits.file_size.is_some() && signal(libc::SIGXFSZ) {
                Some(LimitHit::FileSize)
            } else if limits.disk.is_some_and(|limit| self.disk(tree) > limit) {
                Some(LimitHit::Disk)
            } else {
                None
            }
        });
        Outcome {
            status: reaped.status,
            limit,
            wall,
            user,
            system,
            peak_memory: tree.peak_memory().unwrap_or(reaped.peak_rss),
            peak_processes: tree.peak_processes().unwrap_or(0),
            output: self.output,
            disk: self.disk(tree),
        }
    }
}

/// How many bytes are taken of the disk that is written to, if what is written goes to one. An overlay's
/// numbers are those of what is written to (Linux `fs/overlayfs/super.c`, `ovl_statfs`).
fn used_disk() -> Option<u64> {
    static IS_ON_DISK: LazyLock<bool> = LazyLock::new(init::writes_to_disk);
    let disk = IS_ON_DISK.then(|| statfs("/").ok())??;
    let blocks = disk.blocks().saturating_sub(disk.blocks_free());
    Some(blocks.saturating_mul(u64::try_from(disk.block_size()).ok()?))
}
