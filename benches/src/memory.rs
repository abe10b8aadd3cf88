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
/// Its part that is a mapping of its own.
const LOWEST_BYTES: u64 = 2 << 20;

/// `monitor.memory`: what the monitor's process takes with one running sandbox, its program
/// included, without the guest's memory: proportional set size (PSS) of a worker process, and the
/// same as if it shared nothing. In-process the monitor has no process: what is measured is this
/// whole program.
pub(crate) fn monitor(_runtime: &Runtime) -> Result<Vec<Figure>> {
    let worker = measure("worker")?;
    let in_process = measure("in-process")?;
    let figure = |name, goal, what: &str, bytes: u64| {
        let mib = bytes as f64 / f64::from(1 << 20);
        let conditions = format!("{CONDITIONS}; {what}");
        Figure::of(name, "memory", "MiB", goal, conditions, &[mib])
    };
    Ok(vec![
        figure(
            "monitor.memory",
            Some(3.0),
            "PSS of a worker process, beside those that are kept ready",
            worker.pss,
        ),
        figure(
            "monitor.memory.unshared",
            None,
            "RSS of a worker process: as if no other ran its program",
            worker.rss,
        ),
        figure(
            "monitor.memory.in-process",
            None,
            "PSS of this program, all of it, with a sandbox in-process",
            in_process.pss,
        ),
    ])
}

/// What the process with the VM takes, where sandboxes are placed like this.
fn measure(placement: &str) -> Result<Sizes> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(CHILD)
        .env("EMBER_PLACEMENT", placement)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the process to be measured")?;
    let mut ready = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut ready)?;
    let measured = if ready.trim() == "ready" {
        process_with_guest(child.id())
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
    measured
}

/// What takes a guest's memory, of a process and its children.
fn process_with_guest(pid: u32) -> Result<Sizes> {
    let mut family = vec![pid.to_string()];
    // Workers are the children of whichever thread has started them.
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children"))?;
        family.extend(children.split_ascii_whitespace().map(str::to_owned));
    }
    let mut failure = anyhow::anyhow!("there is no process {pid}");
    for member in family {
        // One that is started ahead may end meanwhile.
        match fs::read_to_string(format!("/proc/{member}/smaps")).map(|smaps| monitor_sizes(&smaps))
        {
            Ok(Ok(sizes)) => return Ok(sizes),
            Ok(Err(error)) => failure = error,
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
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

/// Memory of some mappings, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sizes {
    /// Proportional: pages that several processes have are divided among them.
    pss: u64,
    /// Resident: all pages count, shared or not.
    rss: u64,
}

/// A mapping of a process.
struct Mapping {
    start: u64,
    end: u64,
    sizes: Sizes,
}

/// The mappings in `smaps` (proc(5)).
fn mappings(smaps: &str) -> Result<Vec<Mapping>> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            let sizes = Sizes::default();
            all.push(Mapping { start, end, sizes });
        } else if let ("Pss:" | "Rss:", Some(mapping)) = (first, all.last_mut()) {
            let kib: u64 = words
                .next()
                .context("a line of smaps is cut off")?
                .parse()?;
            match first {
                "Pss:" => mapping.sizes.pss = kib << 10,
                _ => mapping.sizes.rss = kib << 10,
            }
        }
    }
    Ok(all)
}

/// Sums all mappings in `smaps` but the guest's memory: two mappings, one behind the other, since
/// the first 2 MiB have pages of another size. The kernel joins the second with what comes to lie
/// behind it; that is counted as if all of it were resident.
fn monitor_sizes(smaps: &str) -> Result<Sizes> {
    let all = mappings(smaps)?;
    let guest = all.windows(2).position(|pair| {
        pair[0].end == pair[1].start
            && pair[0].end - pair[0].start == LOWEST_BYTES
            && pair[1].end - pair[0].start >= GUEST_BYTES
    });
    let Some(guest) = guest else {
        bail!("the guest's memory was not found among the mappings");
    };
    let joined = all[guest + 1].end - all[guest].start - GUEST_BYTES;
    let mut total = Sizes {
        pss: joined,
        rss: joined,
    };
    for (index, mapping) in all.iter().enumerate() {
        if index != guest && index != guest + 1 {
            total.pss += mapping.sizes.pss;
            total.rss += mapping.sizes.rss;
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
Rss:                 100 kB
Pss:                 100 kB
7f0000200000-7f0008001000 rw-p 00000000 00:00 0
Size:             129028 kB
Rss:               40000 kB
Pss:               40000 kB
Pss_Dirty:         40000 kB
7f0010000000-7f0010002000 rw-p 00000000 00:00 0
Rss:                   8 kB
Pss:                   8 kB
55d000000000-55d000100000 r-xp 00000000 00:00 0 /bin/x
Rss:                 200 kB
Pss:                 100 kB
";

    #[test]
    fn the_guests_memory_does_not_count() {
        let sizes = monitor_sizes(SMAPS).unwrap();
        let kib = |pss: u64, rss: u64| Sizes {
            pss: pss << 10,
            rss: rss << 10,
        };
        assert_eq!(sizes, kib(8 + 100 + 4, 8 + 200 + 4));
        assert!(monitor_sizes(&SMAPS.replace("7f0008001000", "7f0000201000")).is_err());
    }
}
