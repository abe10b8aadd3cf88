//! QEMU's command line.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::Machine;
use super::init::PORT_NAME;
use crate::cpio::Archive;
use crate::debian::quote;

/// Keeps VMs in the lab from getting interrupts twice. It costs each injected interrupt one more exit,
/// so there is none under the deterministic clock unless it is asked for: it is part of the figures.
const GUARD: &str = include_str!("guard.pl");

/// The software CPU whose instructions the deterministic clock counts.
const CPU: &str = "EPYC-Milan";
/// The same without `rep stosb` and `rep movsb` as what is fast (they are not: QEMU does them byte by
/// byte), so that no kernel and no C library chooses them to clear and copy memory. A fifth of all
/// the time went into clearing pages.
const QUICK_CPU: &str = "EPYC-Milan,-erms,-fsrm";

/// The parameters of the lab's kernel.
const PARAMETERS: &str = "console=ttyS0 quiet reboot=k panic=-1 mitigations=off nokaslr rdinit=/init \
     cryptomgr.notests random.trust_cpu=on systemd.unified_cgroup_hierarchy=1";
/// With these it does not take `rep stosq` for fast either (`arch/x86/lib/clear_page_64.S`), in what
/// it clears itself: guests choose for themselves.
const QUICK_PARAMETERS: &str = " clearcpuid=rep_good";

/// What one lab may come to use of the machine's memory when several run, in MiB.
const LAB_MIB: u64 = 8192;

/// What one QEMU is started with.
#[derive(Debug)]
pub(crate) struct Qemu<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) out: &'a Path,
    pub(crate) run: &'a Path,
    pub(crate) machine: &'a Machine,
}

/// The cached initramfs followed by one with this run's parameters and this executable, which is
/// init there: the kernel unpacks both.
pub(crate) fn initramfs(
    cached: &Path,
    run: &Path,
    out: &Path,
    tmp: bool,
    guard: bool,
) -> Result<PathBuf> {
    let text = |path: &Path| quote(&String::from_utf8_lossy(path.as_os_str().as_bytes()));
    let tmp = if tmp { "yes" } else { "" };
    let parameters = format!("LAB_OUT={}\nLAB_TMP={tmp}\n", text(out));
    let mut archive = Archive::default();
    archive.file("lab/parameters", 0o644, parameters.as_bytes());
    if guard {
        archive.file("lab/guard.pl", 0o644, GUARD.as_bytes());
    }
    // Also right when cargo has just replaced the file this was started from.
    let init = fs::read("/proc/self/exe").context("reading this executable")?;
    archive.file("lab/init", 0o755, &init);

    let path = run.join("initramfs");
    fs::copy(cached, &path).with_context(|| format!("copying {}", cached.display()))?;
    let mut file = File::options().append(true).open(&path)?;
    file.write_all(&archive.finish())?;
    Ok(path)
}

impl Qemu<'_> {
    /// Where the kernel's messages go.
    pub(crate) fn console(&self) -> PathBuf {
        self.run.join("console")
    }

    /// Where QEMU's own messages go.
    pub(crate) fn messages(&self) -> PathBuf {
        self.run.join("qemu")
    }

    /// Starts QEMU with `port` as its standard input, which the virtio-serial port is connected to.
    pub(crate) fn spawn(&self, port: OwnedFd) -> Result<Child> {
        let messages = File::create(self.messages())?;
        // setpriv (util-linux): QEMU must not outlive this process, however that ends.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(self.arguments())
            .stdin(Stdio::from(port))
            .stdout(messages.try_clone()?)
            .stderr(messages)
            // A terminal's Ctrl-C is for this process, which passes it on to the command.
            .process_group(0)
            .spawn()
            .context("starting qemu-system-x86_64")
    }

    fn arguments(&self) -> Vec<OsString> {
        let cpus = if self.machine.icount {
            1
        } else {
            self.machine.cpus.max(1)
        };
        let cache = code_cache_mib(&host_memory());
        // The software CPU is SVM-capable whatever the host is.
        let cpu = if self.machine.icount { CPU } else { QUICK_CPU };
        let mut arguments: Vec<OsString> = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-M",
            "q35",
            "-cpu",
            cpu,
        ]
        .map(OsString::from)
        .to_vec();
        let mut add = |option: &str, value: String| {
            arguments.push(option.into());
            arguments.push(value.into());
        };
        if self.machine.icount {
            add("-accel", format!("tcg,thread=single,tb-size={cache}"));
            add("-icount", "shift=0,sleep=off".to_owned());
            // Else the guest reads the host's time of day beside its own clock.
            add("-rtc", "base=utc,clock=vm".to_owned());
        } else {
            add("-accel", format!("tcg,thread=multi,tb-size={cache}"));
        }
        add("-smp", cpus.to_string());
        add("-m", self.machine.memory_mib().to_string());
        add("-serial", format!("file:{}", self.console().display()));
        add("-device", "virtio-serial-pci".to_owned());
        add("-chardev", "socket,id=port,fd=0".to_owned());
        add(
            "-device",
            format!("virtserialport,chardev=port,name={PORT_NAME}"),
        );
        add(
            "-fsdev",
            "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap".to_owned(),
        );
        add(
            "-device",
            "virtio-9p-pci,fsdev=host,mount_tag=host".to_owned(),
        );
        // A comma in a value is doubled.
        let out = self.out.to_string_lossy().replace(',', ",,");
        add(
            "-fsdev",
            format!("local,id=out,path={out},security_model=none"),
        );
        add(
            "-device",
            "virtio-9p-pci,fsdev=out,mount_tag=out".to_owned(),
        );
        let quick = if self.machine.icount {
            ""
        } else {
            QUICK_PARAMETERS
        };
        add("-append", format!("{PARAMETERS}{quick}"));
        for (option, path) in [("-kernel", self.kernel), ("-initrd", self.initramfs)] {
            arguments.push(option.into());
            arguments.push(path.into());
        }
        arguments
    }
}

impl Machine {
    fn memory_mib(&self) -> u64 {
        self.memory
            .map_or_else(|| default_memory_mib(&host_memory()), u64::from)
    }
}

/// How many labs this machine has room for at a time.
pub(super) fn at_once() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = total_mib(&host_memory()) / LAB_MIB;
    processors.clamp(1, usize::try_from(memory).unwrap_or(1).max(1))
}

fn host_memory() -> String {
    fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// What a lab is given whose suite is known to need more than others. QEMU takes what is touched of
/// it.
pub(super) fn large_memory_mib() -> u64 {
    let memory = host_memory();
    default_memory_mib(&memory).max(total_mib(&memory) / 8 * 5)
}

fn default_memory_mib(meminfo: &str) -> u64 {
    (total_mib(meminfo) / 2).clamp(1024, 6144)
}

/// Room for translated code, of which QEMU takes at most 2 GiB and touches what it needs. When it
/// is full, QEMU stops its CPUs to empty it, which is a danger to VMs where there are several: see
/// `docs/lab.md`.
fn code_cache_mib(meminfo: &str) -> u64 {
    (total_mib(meminfo) / 8).clamp(512, 2048)
}

fn total_mib(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
    });
    total.unwrap_or(4 << 20) / 1024
}

#[cfg(test)]
#[path = "qemu_tests.rs"]
mod tests;
