//! Memory that the guest does not use is made to cost nothing in a snapshot.
//!
//! A snapshot leaves pages of zeroes out. Linux does not clear what it frees, so everything that
//! was ever used would be kept. Giving it back to the host takes a balloon, and the kernel's own
//! reports of free pages come two seconds late and leave out what is smaller than a huge page
//! (`mm/page_reporting.c`). But the kernel clears what it hands to a program: the agent takes all
//! memory that is free, and gives it back untouched.

use std::fs;
use std::io;

use super::sys;
use crate::protocol::{ErrorCode, Failure};

/// What is taken at a time. What is free is looked at in between, since others take some, too.
const STEP: u64 = 1024 * 1024;
/// What is left free beside what the kernel wants to keep: what others may take meanwhile.
const RESERVE: u64 = 1024 * 1024;
/// The size of a page, in which the kernel counts its zones.
const PAGE: u64 = 4096;

/// Clears what is free. What is cached stays: it is shared by all clones, costs none of them
/// anything, and reading it again would.
pub(crate) fn release() -> Result<(), Failure> {
    clear().map_err(|error| {
        let message = format!("cannot clear free memory: {error}");
        Failure::new(ErrorCode::Internal, message)
    })
}

fn clear() -> io::Result<()> {
    let keep = watermarks(&fs::read_to_string("/proc/zoneinfo")?).saturating_add(RESERVE);
    let mut taken = Vec::new();
    loop {
        let free = free_memory(&fs::read_to_string("/proc/meminfo")?);
        let spare = free.saturating_sub(keep);
        if spare < STEP {
            return Ok(());
        }
        // In larger steps as long as much is left: each look at what is free takes its time.
        let step = (spare / 16).max(STEP) / STEP * STEP;
        match sys::Pages::take(usize::try_from(step).unwrap_or(STEP as usize)) {
            Ok(pages) => taken.push(pages),
            // Somebody else was faster. What has been taken is clear.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Ok(()),
            // Linux before 5.14 cannot be asked this way. It only costs memory.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// `MemFree:  123 kB` of proc(5), in bytes.
fn free_memory(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemFree:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
        .map_or(0, |kib: u64| kib.saturating_mul(1024))
}

/// What the kernel wants to have free in all its zones, in bytes: below that it begins to reclaim,
/// and would drop the programs that are to be kept.
fn watermarks(zoneinfo: &str) -> u64 {
    let pages = zoneinfo.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "high").then(|| words.next()?.parse::<u64>().ok())?
    });
    pages.fold(0, |sum, count| {
        sum.saturating_add(count.saturating_mul(PAGE))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let meminfo = "MemTotal:         111 kB\nMemFree:         2048 kB\nMemAvailable:  3 kB\n";
        assert_eq!(free_memory(meminfo), 2048 * 1024);
        assert_eq!(free_memory("MemFree: x kB"), 0);
        assert_eq!(free_memory(""), 0);
        let zoneinfo = "Node 0, zone      DMA\n  per-node stats\n  pages free     3840\n\
            \x20       boost    0\n        min      66\n        low      82\n        high     98\n\
            \x20   pagesets\n    cpu: 0\n              count: 0\n              high:  0\n\
            Node 0, zone    DMA32\n        high     2\n        high_min: 5\n";
        assert_eq!(watermarks(zoneinfo), 100 * 4096);
    }

    /// Of the real files, whatever this machine's kernel.
    #[test]
    fn this_machine_has_memory() {
        assert!(free_memory(&fs::read_to_string("/proc/meminfo").unwrap()) > 0);
    }

    #[test]
    fn pages_can_be_taken() {
        drop(sys::Pages::take(STEP as usize).unwrap());
    }
}
