//! Memory that the guest has freed is given back before its state is taken, so that it costs
//! nothing: neither in the template nor on disk.
//!
//! The balloon takes it, page by page and without touching it, and lets it go again at once. To
//! fill it with zeroes from the inside would make the guest touch all of it first; free page
//! reporting gives back whole blocks of 2 MiB only, and two seconds late (`PAGE_REPORTING_DELAY`
//! in Linux `mm/page_reporting.c`).

use std::sync::Arc;
use std::time::Duration;

use ember_guest::host::Command;
use tokio::time::{Instant, sleep};

use crate::blocking::blocking;
use crate::error::{Error, ErrorKind};
use crate::sandbox::Sandbox;
use crate::sandbox::vm::GuestVm;

/// What the guest keeps, in bytes: its kernel must not begin to look for memory.
const RESERVE: u64 = 12 << 20;
/// How often the balloon is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// When nothing changed for so long, nothing more will.
const STILL: Duration = Duration::from_millis(250);
/// The longest that it may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Gives the free memory of a template's guest back. What cannot be given back only costs what it
/// costs.
///
/// # Errors
/// If the guest does not say how much is free, or has ended.
pub(super) async fn free_memory(sandbox: &Sandbox) -> Result<(), Error> {
    let vm = sandbox.parts()?.vm;
    if !vm.has_balloon() {
        return Ok(());
    }
    const FILE: &str = "/proc/meminfo";
    let show = Command::new("cat").arg(FILE).user("root").current_dir("/");
    let text = match sandbox.exec(show).await {
        Ok(output) => output.stdout.to_string_lossy().into_owned(),
        // An image may have nothing but the one program that it is for.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let bytes = sandbox.files().as_root().read(FILE).await?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Err(error) => return Err(error),
    };
    let Some(free) = free_bytes(&text) else {
        return Ok(());
    };
    if let Some(target) = free.checked_sub(RESERVE) {
        settle(&vm, target).await?;
        settle(&vm, 0).await?;
    }
    Ok(())
}

/// Asks for `target` bytes in the balloon and waits until the guest has done what it will.
async fn settle(vm: &Arc<GuestVm>, target: u64) -> Result<(), Error> {
    vm.set_balloon(target);
    // In whole pages, as the guest counts.
    let target = target / 4096 * 4096;
    let end = Instant::now() + PATIENCE;
    let mut seen = (actual(vm).await?, Instant::now());
    while seen.0 != target && Instant::now() < end && seen.1.elapsed() < STILL {
        sleep(LOOK).await;
        let now = actual(vm).await?;
        if now != seen.0 {
            seen = (now, Instant::now());
        }
    }
    Ok(())
}

/// How many bytes are in the balloon.
async fn actual(vm: &Arc<GuestVm>) -> Result<u64, Error> {
    let vm = Arc::clone(vm);
    blocking("asking for a guest's memory", move || vm.balloon()).await
}

/// The bytes of `MemFree` in the text of `/proc/meminfo` (proc(5)).
fn free_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemFree:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::free_bytes;

    #[test]
    fn free_memory_is_read_from_what_the_kernel_says() {
        let text = "MemTotal:         101964 kB\nMemFree:           68840 kB\nBuffers: 0 kB\n";
        assert_eq!(free_bytes(text), Some(68840 * 1024));
        assert_eq!(free_bytes("MemFree: many kB\n"), None);
        assert_eq!(free_bytes(""), None);
    }
}
