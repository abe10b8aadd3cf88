//! What a clone takes of the host's memory.

use std::fs;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use crate::figure::Figure;
use crate::sandbox::{CONDITIONS, template};

/// Enough that a page more or less of the allocator's is lost among them.
const CLONES: usize = 16;
/// What the kernel keeps for processes and VMs, by the names in `/proc/meminfo` (proc(5)): objects,
/// the stacks of threads, and page tables, both those of processes and those of guests.
const KERNEL: [&str; 5] = [
    "Slab",
    "KernelStack",
    "PageTables",
    "SecPageTables",
    "Percpu",
];

/// Memory in bytes.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    /// This process's proportional set size: guests included.
    pss: f64,
    /// The kernel's own, of all the machine.
    kernel: f64,
}

impl Footprint {
    fn now() -> Result<Self> {
        let process = fs::read_to_string("/proc/self/smaps_rollup")?;
        let machine = fs::read_to_string("/proc/meminfo")?;
        let kernel = KERNEL
            .iter()
            .map(|name| bytes(&machine, name))
            .sum::<Result<f64>>()?;
        Ok(Self {
            pss: bytes(&process, "Pss")?,
            kernel,
        })
    }
}

/// The number behind `name` and a colon, which is in KiB.
fn bytes(text: &str, name: &str) -> Result<f64> {
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<f64>().ok())
        .with_context(|| format!("the kernel does not say {name}"))?;
    Ok(kib * 1024.0)
}

/// `clone.memory`: what each clone beside another adds that has replied, to this process's memory and
/// to the kernel's. Nobody else is to run on the machine.
pub(crate) fn clones(runtime: &Runtime) -> Result<Vec<Figure>> {
    runtime.block_on(async {
        let template = template(1)?.build().await?;
        // What the first leave behind is the process's own: an allocator's arenas, threads' stacks.
        for _ in 0..2 {
            template.fork().await?.close().await;
        }
        // The first of those that live on has what all of them share, the template's memory as far as
        // clones look at it: no clone adds that.
        let mut alive = Vec::with_capacity(1 + CLONES);
        alive.push(template.fork().await?);
        let before = Footprint::now()?;
        for _ in 0..CLONES {
            alive.push(template.fork().await?);
        }
        let after = Footprint::now()?;
        for clone in alive {
            clone.close().await;
        }
        let each = |before: f64, after: f64| (after - before) / CLONES as f64 / f64::from(1 << 20);
        let (pss, kernel) = (
            each(before.pss, after.pss),
            each(before.kernel, after.kernel),
        );
        let figure = |name, goal, what: &str, mib: f64| {
            let conditions = format!("{CONDITIONS}; {what}, of {CLONES} clones that have replied");
            Figure::of(name, "memory", "MiB", goal, conditions, &[mib])
        };
        Ok(vec![
            figure(
                "clone.memory",
                Some(0.6),
                "PSS and kernel memory",
                pss + kernel,
            ),
            figure("clone.memory.pss", None, "PSS", pss),
            figure("clone.memory.kernel", None, &KERNEL.join(" + "), kernel),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "SPageTables:   7 kB\nPageTables:      12 kB\nSlab:  1 pages\n";
        assert_eq!(bytes(text, "PageTables").unwrap(), 12.0 * 1024.0);
        assert!(bytes(text, "Slab").is_err());
        assert!(bytes(text, "Pss").is_err());
    }
}
