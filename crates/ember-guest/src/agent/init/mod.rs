//! PID 1: from the kernel's first breath to the first connection, and the way back.
//!
//! The kernel starts this from an initramfs that holds little more than it. Nothing is printed
//! unless something fails; then one line goes to the console, and the machine powers off.

mod modules;
mod mounts;
mod parameters;
mod power;
mod volumes;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use nix::sys::stat::{Mode, umask};

use super::identity::Identities;
use super::server::{Agent, End, Hooks};
use super::sys;
use super::tree::Trees;
use parameters::{Overlay, ParameterError, Parameters};
use volumes::VolumeProblem;

/// The host's address on every vsock (vsock(7)).
const HOST: u32 = 2;
/// How long the host may take to listen. Later, it is waited for without end.
const FIRST_CONNECTION: Duration = Duration::from_secs(30);
/// Open files: soft and hard limit of the agent and, by inheritance, of commands. The kernel's own
/// (1,024 and 4,096) is less than programs count on.
const OPEN_FILES: (u64, u64) = (65_536, 524_288);
/// Where processes ask to be told of new identities, and programs that are run at each.
const RESEED: &str = "/run/ember/reseed";
const RESEED_PROGRAMS: &str = "/etc/ember/reseed.d";
/// What lets an idle guest rest: each wake-up of one is little, and of a thousand a processor's work
/// (`Documentation/admin-guide/sysctl/vm.rst`). And what keeps links that programs make from leading
/// root, which is not the default of every kernel (`Documentation/admin-guide/sysctl/fs.rst`).
const SETTINGS: [(&str, &str); 5] = [
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_symlinks", "1"),
    // Else the kernel looks twice a second whether there is memory to compact ahead of need.
    ("/proc/sys/vm/compaction_proactiveness", "0"),
    // Seconds from one collection of the statistics in `/proc/vmstat` to the next, which is 1.
    ("/proc/sys/vm/stat_interval", "10"),
    // Who waits for all processors to have passed a point interrupts them, rather than wait for some
    // ticks of their clocks (kernel-parameters.txt, `rcupdate.rcu_expedited`): in a small guest time
    // is worth more than that.
    ("/sys/kernel/rcu_expedited", "1"),
];
/// Where commands get their cgroups.
const CGROUPS: &str = "/sys/fs/cgroup/ember";

/// Whether what is written over this guest's root goes to a disk.
pub(super) fn writes_to_disk() -> bool {
    let line = fs::read("/proc/cmdline").unwrap_or_default();
    let overlay = Parameters::parse(&line).map(|parameters| parameters.overlay);
    matches!(overlay, Ok(Overlay::Device(_)))
}

/// Why a guest cannot be set up.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("cannot mount {what} on {}: {}", target.display(), errno.desc())]
    Mount {
        what: String,
        target: PathBuf,
        errno: Errno,
    },
    #[error("cannot make {} the root directory: {}", path.display(), errno.desc())]
    SwitchRoot { path: PathBuf, errno: Errno },
    #[error(
        "the block device {} did not appear within {seconds} s: is it attached, and is its driver \
         built in or among the modules of the initramfs?", device.display()
    )]
    NoDevice { device: PathBuf, seconds: u64 },
    #[error("no file system that the kernel knows is on {} (tried: {tried})", device.display())]
    RootType { device: PathBuf, tried: String },
    #[error("the volume {} cannot be mounted on {}: {problem}", device.display(), target.display())]
    Volume {
        device: PathBuf,
        target: PathBuf,
        problem: VolumeProblem,
    },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot make {}: {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot load the kernel module {path}: {source}")]
    Module { path: String, source: io::Error },
    #[error("on the kernel's command line, {0}")]
    Parameter(#[from] ParameterError),
    #[error("cannot make the files of the guest's ids: {0}")]
    Identity(io::Error),
    #[error("cannot start the agent: {0}")]
    Agent(io::Error),
    #[error("cannot connect to port {port} of the host by vsock: {errno}", errno = errno.desc())]
    Connect { port: u32, errno: Errno },
}

/// The whole life of a guest. Comes back only if the machine cannot be powered off.
pub(super) fn run() -> i32 {
    if let Err(error) = live() {
        say(&error.to_string());
    }
    let errno = power::off();
    say(&format!("cannot power off: {}", errno.desc()));
    1
}

/// One line on the console, whatever standard error is.
fn say(what: &str) {
    let line = format!("ember-agent: {what}\n");
    let console = || {
        let mut console = File::options().write(true).open("/dev/console")?;
        console.write_all(line.as_bytes())?;
        // The machine may be gone before the console has said it.
        nix::sys::termios::tcdrain(&console)?;
        io::Result::Ok(())
    };
    // A kernel can have a console for itself that programs cannot use (a serial line whose
    // interrupt it does not know): then it says this in our place, as an error (3), since `quiet`
    // keeps back what is less.
    let kernel = || {
        let mut log = File::options().write(true).open("/dev/kmsg")?;
        log.write_all(format!("<3>{line}").as_bytes())
    };
    if console().or_else(|_| kernel()).is_err() {
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

fn live() -> Result<(), BootError> {
    umask(Mode::from_bits_truncate(0o022));
    mounts::early()?;
    standard_streams();
    let parameters = Parameters::parse(&read(Path::new("/proc/cmdline"))?)?;
    modules::load()?;
    if let Some(root) = &parameters.root {
        mounts::switch_to(root, &parameters)?;
    }
    let cgroups = mounts::late(parameters.root.is_some())?;
    // After all that they can be in, and before anybody can look.
    volumes::mount_all(&parameters.volumes)?;
    mounts::share()?;

    let trees = match cgroups {
        true => Trees::cgroups(Path::new(CGROUPS)),
        false => Ok(Trees::by_session()),
    };
    let identities = Identities::of_guest().map_err(BootError::Identity)?;
    let mut agent = trees
        .and_then(|trees| {
            let hooks = Hooks::listen(Path::new(RESEED), Path::new(RESEED_PROGRAMS))?;
            Agent::new(trees, identities, hooks)
        })
        .map_err(BootError::Agent)?;
    let port = parameters.port;
    let hostname = parameters.hostname;
    agent.do_later(move || settle(hostname.as_deref()));
    let mut first = Some(Instant::now() + FIRST_CONNECTION);
    let mut refusal = None;
    let result = agent.run(|| match connect_to_host(port) {
        Ok(stream) => {
            first = None;
            Ok(Some(stream))
        }
        Err(errno) if first.is_some_and(|end| Instant::now() > end) => {
            refusal = Some(errno);
            Err(errno.into())
        }
        Err(_) => Ok(None),
    });
    match (result, refusal) {
        (Ok(End::PowerOff), _) => Ok(()),
        (Err(_), Some(errno)) => Err(BootError::Connect { port, errno }),
        (Err(error), None) => Err(BootError::Agent(error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BootError> {
    fs::read(path).map_err(|source| BootError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Makes sure that 0, 1 and 2 are taken: without a console the kernel leaves them closed, and the
/// next files opened would be taken for standard streams.
fn standard_streams() {
    while let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        if null.as_raw_fd() > 2 {
            break;
        }
        // Held for as long as the agent runs.
        std::mem::forget(null);
    }
}

/// What a guest can live without, and a host need not wait for.
fn settle(hostname: Option<&str>) {
    for (setting, value) in SETTINGS {
        let _ = fs::write(setting, value);
    }
    // A kernel that is older, or has no cgroups.
    let _ = mounts::favour_changing_cgroups();
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1);
    if let Some(name) = hostname {
        let _ = nix::unistd::sethostname(name);
    }
    // A kernel without networking has no loopback interface to bring up.
    let datagram = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    if let Ok(datagram) = datagram {
        let _ = sys::loopback_up(datagram.as_fd());
    }
}

fn connect_to_host(port: u32) -> Result<OwnedFd, Errno> {
    let stream = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(stream.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    Ok(stream)
}
