//! What the host can do: found out by trying, not by looking for files alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ember_vmm::probe;
use kvm_ioctls::Kvm;
use serde::Serialize;

use crate::assets::Assets;

/// What was found out about a host.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// One by one, the most important first.
    pub findings: Vec<Finding>,
}

/// One thing about a host.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What it is about: `KVM`, `memory`.
    pub subject: &'static str,
    /// How good it is.
    pub condition: Condition,
    /// What was found, in words.
    pub found: String,
    /// The same as a number, where it was measured.
    pub measured: Option<Measured>,
    /// What to change, where something can be.
    pub advice: Option<String>,
}

/// A number with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// The number.
    pub value: f64,
    /// `ms`, `MiB` or `count`.
    pub unit: &'static str,
}

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// As it should be.
    Good,
    /// Sandboxes run, with less speed or less isolation.
    Poor,
    /// Sandboxes cannot run.
    Bad,
}

impl Finding {
    fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            subject,
            condition: Condition::Good,
            found: found.into(),
            measured: None,
            advice: None,
        }
    }

    fn advise(mut self, condition: Condition, advice: impl Into<String>) -> Self {
        self.condition = condition;
        self.advice = Some(advice.into());
        self
    }

    fn measured(mut self, value: f64, unit: &'static str) -> Self {
        self.measured = Some(Measured { value, unit });
        self
    }
}

impl Host {
    /// Examines this host. Takes a fraction of a second.
    pub fn examine() -> Self {
        let findings = [
            Some(kvm()),
            create_vm(),
            Some(nesting()),
            Some(kernel()),
            Some(processors()),
            Some(memory()),
            Some(huge_pages()),
            Some(control_groups()),
            Some(open_files()),
            Some(tools()),
            Some(cache()),
        ];
        Self {
            findings: findings.into_iter().flatten().collect(),
        }
    }

    /// Whether sandboxes run here.
    pub fn can_boot(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.condition != Condition::Bad)
    }
}

fn kvm() -> Finding {
    let verdict = probe::probe();
    let finding = Finding::good("KVM", verdict.to_string());
    match verdict.advice() {
        Some(advice) => finding.advise(Condition::Bad, advice),
        None => finding,
    }
}

/// How long the kernel takes to create a VM: the part of a sandbox's start that no preparation
/// makes shorter.
fn create_vm() -> Option<Finding> {
    const ATTEMPTS: usize = 5;
    let kvm = Kvm::new().ok()?;
    let mut times = Vec::with_capacity(ATTEMPTS);
    for _ in 0..ATTEMPTS {
        let begun = Instant::now();
        let vm = kvm.create_vm().ok()?;
        times.push(begun.elapsed());
        drop(vm);
    }
    times.sort();
    let median = milliseconds(times[ATTEMPTS / 2]);
    let finding = Finding::good("VM creation", format!("{median:.2} ms")).measured(median, "ms");
    // With this mitigation on, each VM gets a kernel thread, whose start waits for other things.
    let mitigation = read("/sys/module/kvm/parameters/nx_huge_pages");
    let mitigated = matches!(mitigation.as_deref(), Some("Y" | "1" | "force"));
    Some(if median > 10.0 && mitigated {
        finding.advise(
            Condition::Poor,
            "load kvm with nx_huge_pages=never on processors without the iTLB multihit flaw",
        )
    } else {
        finding
    })
}

/// Whether this host is itself a guest. Then each exit of a guest of its own takes the way through
/// two hypervisors, which costs some ten times as much.
fn nesting() -> Finding {
    let text = read("/proc/cpuinfo").unwrap_or_default();
    let mut flags = text.lines().filter_map(|line| line.strip_prefix("flags"));
    let nested = flags
        .next()
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"));
    let found = if nested {
        "nested: this machine is a virtual machine itself"
    } else {
        "on the processor itself"
    };
    Finding::good("virtualization", found)
}

fn kernel() -> Finding {
    /// The oldest long-term kernel whose KVM this was tried on.
    const OLDEST: (u32, u32) = (5, 10);
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    let finding = Finding::good("kernel", release.clone());
    if version.is_some_and(|version| version < OLDEST) {
        finding.advise(Condition::Poor, "use Linux 5.10 or newer")
    } else {
        finding
    }
}

fn processors() -> Finding {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    Finding::good("processors", format!("{count} for this process")).measured(count as f64, "count")
}

fn memory() -> Finding {
    /// A guest of the usual size, and what it takes to build one.
    const LEAST_MIB: u64 = 512;
    let text = read("/proc/meminfo").unwrap_or_default();
    let mebibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kibibytes / 1024)
    };
    let (Some(total), Some(available)) = (mebibytes("MemTotal:"), mebibytes("MemAvailable:"))
    else {
        return Finding::good("memory", "unknown");
    };
    let finding = Finding::good("memory", format!("{available} of {total} MiB available"))
        .measured(available as f64, "MiB");
    if available < LEAST_MIB {
        finding.advise(
            Condition::Poor,
            "free some: a guest of the usual size has 256 MiB",
        )
    } else {
        finding
    }
}

fn huge_pages() -> Finding {
    let transparent = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let mode = transparent
        .as_deref()
        .and_then(|text| text.split_once('[')?.1.split_once(']'))
        .map_or("absent", |(mode, _)| mode);
    let reserved = read("/proc/sys/vm/nr_hugepages").unwrap_or_else(|| "0".to_owned());
    let found = format!("transparent: {mode}; reserved: {reserved}");
    let finding = Finding::good("huge pages", found);
    match mode {
        "always" | "madvise" | "absent" => finding,
        _ => finding.advise(
            Condition::Poor,
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
    }
}

fn control_groups() -> Finding {
    match read("/sys/fs/cgroup/cgroup.controllers") {
        Some(controllers) => Finding::good("cgroup v2", controllers),
        None => Finding::good("cgroup v2", "not mounted at /sys/fs/cgroup").advise(
            Condition::Poor,
            "boot with systemd.unified_cgroup_hierarchy=1: limits on processor time and memory \
             from outside a guest need it",
        ),
    }
}

fn open_files() -> Finding {
    /// Descriptors that one sandbox takes, generously.
    const EACH: u64 = 64;
    /// How many sandboxes a process should be able to have without anybody thinking of it.
    const SANDBOXES: u64 = 100;
    let text = read("/proc/self/limits").unwrap_or_default();
    let soft = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let Some(soft) = soft else {
        return Finding::good("open files", "unlimited");
    };
    let finding = Finding::good("open files", format!("{soft} for this process"))
        .measured(soft as f64, "count");
    if soft < EACH * SANDBOXES {
        finding.advise(
            Condition::Poor,
            format!(
                "for more than about {} sandboxes in a process, raise it: ulimit -n 65536",
                soft / EACH
            ),
        )
    } else {
        finding
    }
}

fn tools() -> Finding {
    const TOOLS: [&str; 4] = ["apt-get", "dpkg-deb", "tar", "ldconfig"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(["/sbin".into(), "/usr/sbin".into()])
        .collect();
    let missing: Vec<&str> = TOOLS
        .into_iter()
        .filter(|tool| !places.iter().any(|place| place.join(tool).is_file()))
        .collect();
    let finding = Finding::good("package tools", "all there");
    if missing.is_empty() {
        return finding;
    }
    Finding {
        found: format!("{} missing", missing.join(", ")),
        ..finding
    }
    .advise(
        Condition::Poor,
        "packs and the stock kernel are made from Debian packages: prepare them on a Debian \
         machine and copy its cache, or give an image and a kernel as files",
    )
}

fn cache() -> Finding {
    let assets = match Assets::of_user() {
        Ok(assets) => assets,
        Err(error) => {
            return Finding::good("cache", "there is no place for it")
                .advise(Condition::Bad, error.to_string());
        }
    };
    let directory = assets.directory();
    let has = |name: &str| {
        fs::read_dir(directory.join(name)).is_ok_and(|mut entries| entries.next().is_some())
    };
    let found = directory.display().to_string();
    let finding = Finding::good("cache", &found);
    if !writable(directory) {
        finding.advise(
            Condition::Poor,
            "this user may not write there; EMBER_CACHE chooses another directory",
        )
    } else if has("kernels") && has("images") {
        Finding {
            found: format!("{found}: has a kernel and an image"),
            ..finding
        }
    } else {
        finding.advise(
            Condition::Poor,
            "the first sandbox has to wait for a download and a build; `ember prepare` does it \
             beforehand",
        )
    }
}

/// Whether a file could be created in `directory`, or in the first of its parents that exists.
fn writable(directory: &Path) -> bool {
    let existing = directory.ancestors().find(|path| path.is_dir());
    existing.is_some_and(|path| {
        rustix::fs::access(
            path,
            rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
        )
        .is_ok()
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_described_whatever_it_is() {
        let host = Host::examine();
        let subjects: Vec<&str> = host
            .findings
            .iter()
            .map(|finding| finding.subject)
            .collect();
        for subject in [
            "KVM",
            "virtualization",
            "kernel",
            "processors",
            "memory",
            "cache",
        ] {
            assert!(subjects.contains(&subject), "{subjects:?}");
        }
        for finding in &host.findings {
            assert!(!finding.found.is_empty(), "{finding:?}");
            // What is not as it should be comes with what to do.
            assert!(
                finding.condition == Condition::Good || finding.advice.is_some(),
                "{finding:?}"
            );
        }
        assert_eq!(
            host.can_boot(),
            host.findings.iter().all(|f| f.condition != Condition::Bad)
        );
    }
}
