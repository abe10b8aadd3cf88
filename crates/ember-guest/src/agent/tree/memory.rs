//! What there is of the guest's memory for commands.

/// What commands with limits leave of the guest's memory, beside a thirty-second part of it: the
/// agent takes a few MiB, and the kernel some for each process, page table and socket.
const RESERVE: u64 = 12 * 1024 * 1024;

/// What the guest's memory is used for, in bytes, as `/proc/meminfo` shows it.
#[derive(Debug)]
pub(super) struct Memory {
    total: u64,
    free: u64,
    /// Cached files, and what the kernel keeps and could give back.
    cached: u64,
    /// Of processes, and files in memory.
    held: u64,
}

impl Memory {
    pub(super) fn read(meminfo: &str) -> Option<Self> {
        let bytes = |key| Some(field(meminfo, key)?.saturating_mul(1024));
        Some(Self {
            total: bytes("MemTotal:")?,
            free: bytes("MemFree:")?,
            cached: bytes("Active(file):")?
                .saturating_add(bytes("Inactive(file):")?)
                .saturating_add(bytes("SReclaimable:")?),
            held: bytes("AnonPages:")?.saturating_add(bytes("Shmem:")?),
        })
    }

    /// What the rest is: the kernel's own. That is too much while free memory is being reported to
    /// the host (`mm/page_reporting.c` takes up to 32 of the largest blocks off the free lists at a
    /// time, which can be all that there is), so the least of several looks is the truth.
    pub(super) fn kernel(&self) -> u64 {
        self.total
            .saturating_sub(self.free)
            .saturating_sub(self.cached)
            .saturating_sub(self.held)
    }

    /// What limited commands may have at most, which hold `theirs` now. What is cached could be
    /// taken as well, but not all of it: programs that run are cached files, too, and a guest that
    /// has to read them again and again does nothing else.
    pub(super) fn limit(&self, kernel: u64, theirs: u64) -> u64 {
        let reserve = RESERVE + self.total / 32;
        self.total
            .saturating_sub(kernel)
            .saturating_sub(self.held.saturating_sub(theirs))
            .saturating_sub(self.cached / 2)
            .saturating_sub(reserve)
            .max(RESERVE)
    }
}

/// The number behind `key` in a file of a key and a value a line.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == key).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn meminfo(free: u64) -> Memory {
        let text = format!(
            "MemTotal:         163840 kB\nMemFree:          {free} kB\n\
             Active(file):       1024 kB\nInactive(file):     2048 kB\n\
             AnonPages:         10240 kB\nShmem:              2048 kB\n\
             SReclaimable:       1024 kB\n"
        );
        Memory::read(&text).unwrap()
    }

    #[test]
    fn the_rest_is_for_limited_commands() {
        let memory = meminfo(102_400);
        assert_eq!(memory.kernel(), (160 - 100 - 4 - 12) * MIB);
        // 160 less the kernel's 44, half of what is cached, and the reserve of 12 and 5.
        let alone = memory.limit(memory.kernel(), 12 * MIB);
        assert_eq!(alone, (160 - 44 - 2 - 17) * MIB);
        // Others hold something.
        assert_eq!(memory.limit(memory.kernel(), 2 * MIB), alone - 10 * MIB);
    }

    #[test]
    fn memory_that_is_being_reported_is_not_the_kernels() {
        let kernel = meminfo(102_400).kernel();
        let reporting = meminfo(1024);
        assert!(reporting.kernel() > kernel);
        assert_eq!(
            reporting.limit(kernel, 0),
            meminfo(102_400).limit(kernel, 0)
        );
    }

    #[test]
    fn there_is_always_something() {
        assert_eq!(meminfo(0).limit(u64::MAX, 0), RESERVE);
        assert_eq!(meminfo(0).limit(160 * MIB, 12 * MIB), RESERVE);
        assert!(Memory::read("MemTotal: 1 kB\n").is_none());
        assert!(Memory::read("").is_none());
    }
}
