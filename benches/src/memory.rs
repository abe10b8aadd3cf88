//! What the monitor takes beyond the guest's memory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

use crate::figure::Figure;
use crate::sandbox::{CONDITIONS, builder};

/// The argument that makes this program boot a sandbox, say that it has, and wait.
pub(crate) const CHILD: &str = "--be-monitored";
/// The guest's memory, by which its mapping is told from everything else.
const GUEST_BYTES: u64 = 128 << 20;

/// `monitor.memory`: the proportional set size (PSS) of a process with one running sandbox, its
/// program and runtime included, without the guest's memory.
pub(crate) fn monitor(_runtime: &Runtime) -> Result<Vec<Figure>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(CHILD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the process to be measured")?;
    let mut ready = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut ready)?;
    let measured = if ready.trim() == "ready" {
        monitor_bytes(&fs::read_to_string(format!("/proc/{}/smaps", child.id()))?)
    } else {
        Err(anyhow::anyhow!(
            "the process to be measured did not come up"
        ))
    };
    drop(child.stdin.take());
    let status = child.wait()?;
    if !status.success() {
        bail!("the measured process ended with {status}");
    }
    let mib = measured? as f64 / f64::from(1 << 20);
    Ok(vec![Figure::of(
        "monitor.memory",
        "memory",
        "MiB",
        Some(3.0),
        CONDITIONS,
        &[mib],
    )])
}

/// Boots a sandbox, runs a program in it, says so, and keeps it until standard input ends.
pub(crate) fn be_monitored() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let sandbox = builder()?.boot().await?;
        let output = sandbox.exec(ember_core::Command::new("/bin/true")).await?;
        anyhow::ensure!(output.success(), "/bin/true failed");
        println!("ready");
        std::io::stdin().read_line(&mut String::new())?;
        sandbox.close().await;
        Ok(())
    })
}

/// Sums the PSS of all mappings in `smaps` but the one as large as the guest's memory.
fn monitor_bytes(smaps: &str) -> Result<u64> {
    let mut total = 0;
    let mut guest_seen = false;
    let mut is_guest = false;
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            is_guest = end - start >= GUEST_BYTES;
            guest_seen |= is_guest;
        } else if let Some(rest) = line.strip_prefix("Pss:")
            && !is_guest
        {
            let kib: u64 = rest.trim().trim_end_matches(" kB").parse()?;
            total += kib << 10;
        }
    }
    if !guest_seen {
        bail!("the guest's memory was not found among the mappings");
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
Pss:               40000 kB
Pss_Dirty:         40000 kB
7f0010000000-7f0010002000 rw-p 00000000 00:00 0
Pss:                   8 kB
55d000000000-55d000100000 r-xp 00000000 00:00 0 /bin/x
Pss:                 100 kB
";

    #[test]
    fn the_guests_memory_does_not_count() {
        assert_eq!(monitor_bytes(SMAPS).unwrap(), 108 << 10);
        assert!(monitor_bytes(&SMAPS.replace("7f0008000000", "7f0000001000")).is_err());
    }
}
