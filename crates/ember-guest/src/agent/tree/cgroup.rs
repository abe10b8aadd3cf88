//! Trees of processes as cgroups (Linux `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! ```text
//! DIRECTORY/plain/N      commands without limits
//! DIRECTORY/limited/N    commands with limits: here the memory and pids controllers are on
//! ```
//! Controllers make each cgroup dearer to create and each page fault in it dearer to serve, so
//! commands that do not ask for limits do not pay for them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::protocol::{ErrorCode, Failure, Limits};

/// Where cgroups are made.
#[derive(Debug)]
pub(crate) struct Cgroups {
    directory: PathBuf,
    /// Controllers are on in `limited`.
    limiting: bool,
    last: u64,
    /// A plain one, made before it was needed.
    spare: Option<Cgroup>,
}

impl Cgroups {
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let mut cgroups = Self {
            directory: directory.to_owned(),
            limiting: false,
            last: 0,
            spare: None,
        };
        for part in ["plain", "limited"] {
            fs::create_dir_all(directory.join(part))?;
        }
        // Proves that it is a cgroup2 directory that can be used.
        cgroups.spare = Some(cgroups.make("plain")?);
        Ok(cgroups)
    }

    fn make(&mut self, part: &str) -> io::Result<Cgroup> {
        self.last += 1;
        let path = self.directory.join(part).join(self.last.to_string());
        fs::create_dir(&path)?;
        let directory = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(&path)?;
        let cgroup = Cgroup {
            path,
            directory: directory.into(),
            limited: part == "limited",
        };
        match cgroup.path.join("cgroup.procs").try_exists()? {
            true => Ok(cgroup),
            false => {
                let message = format!("{} is not on a cgroup2 file system", cgroup.path.display());
                Err(io::Error::new(io::ErrorKind::Unsupported, message))
            }
        }
    }

    /// Makes the next plain cgroup while nobody waits for it.
    pub(super) fn prepare(&mut self) {
        if self.spare.is_none() {
            // If it fails now, it fails again when it is needed, where it can be told.
            self.spare = self.make("plain").ok();
        }
    }

    pub(super) fn create(&mut self, limits: &Limits) -> Result<Cgroup, Failure> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| {
                let code = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    Errno::ENOMEM | Errno::EAGAIN | Errno::ENOSPC => ErrorCode::OutOfResources,
                    _ => ErrorCode::Internal,
                };
                Failure::new(code, format!("cannot {what} for the command: {error}"))
            }
        };
        let limits = [
            ("memory.max", limits.memory),
            ("pids.max", limits.processes),
        ];
        if limits.iter().all(|(_, limit)| limit.is_none()) {
            return match self.spare.take() {
                Some(spare) => Ok(spare),
                None => self.make("plain").map_err(failed("make a cgroup")),
            };
        }
        self.start_limiting()?;
        let cgroup = self.make("limited").map_err(failed("make a cgroup"))?;
        for (file, limit) in limits {
            let Some(limit) = limit else { continue };
            if let Err(error) = cgroup.write(file, limit.to_string().as_bytes()) {
                cgroup.remove();
                return Err(failed(&format!("set {file}"))(error));
            }
        }
        if limits[0].1.is_some() {
            // Swap would only put the limit off. A kernel without swap has no such file.
            let _ = cgroup.write("memory.swap.max", b"0");
        }
        Ok(cgroup)
    }

    /// Turns the controllers on, from the root down: each level only has what its parent passes
    /// on ("Top-down Constraint").
    fn start_limiting(&mut self) -> Result<(), Failure> {
        if self.limiting {
            return Ok(());
        }
        let limited = self.directory.join("limited");
        let mut levels: Vec<&Path> = limited
            .ancestors()
            .take_while(|level| level.join("cgroup.subtree_control").exists())
            .collect();
        levels.reverse();
        for level in levels {
            fs::write(level.join("cgroup.subtree_control"), "+memory +pids").map_err(|error| {
                let message = format!(
                    "cannot limit the memory or processes of a command: cannot turn the memory \
                     and pids controllers on in {}: {error}",
                    level.display()
                );
                Failure::new(ErrorCode::Unsupported, message)
            })?;
        }
        self.limiting = true;
        Ok(())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.spare = None;
        for part in ["plain", "limited", ""] {
            // What is still in use stays.
            let _ = fs::remove_dir(self.directory.join(part));
        }
    }
}

/// The cgroup of one command.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    limited: bool,
}

impl Cgroup {
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        File::options()
            .write(true)
            .open(self.path.join(file))?
            .write_all(bytes)
    }

    pub(super) fn adopt(&self, pid: i32) -> io::Result<()> {
        self.write("cgroup.procs", pid.to_string().as_bytes())
    }

    pub(super) fn kill(&self) {
        if self.write("cgroup.kill", b"1").is_ok() {
            return;
        }
        // Linux before 5.14 has no such file. A frozen cgroup cannot fork while its members are
        // signalled; killed members of a frozen cgroup end all the same.
        let _ = self.write("cgroup.freeze", b"1");
        let members = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in members.lines().filter_map(|line| line.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 0")
    }

    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.limited && {
            let path = self.path.join("memory.events");
            let events = fs::read_to_string(path).unwrap_or_default();
            events
                .lines()
                .filter_map(|line| line.strip_prefix("oom_kill "))
                .any(|count| count != "0")
        }
    }

    /// Removes it if nothing is in it any more.
    pub(super) fn remove(&self) -> bool {
        match fs::remove_dir(&self.path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            // The kernel says this of a cgroup with processes and of one with cgroups that the
            // command made in it.
            Err(_) => self.is_empty() && remove_below(&self.path),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Not empty only when the agent itself ends; then nobody can do more.
        self.remove();
    }
}

/// Removes a cgroup and those in it, the innermost first. Their depth is the kernel's to bound
/// (`cgroup.max.depth`), so a list is kept in place of a recursion.
fn remove_below(path: &Path) -> bool {
    let mut all = vec![path.to_owned()];
    let mut next = 0;
    while let Some(directory) = all.get(next) {
        let children: Vec<PathBuf> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        all.extend(children);
        next += 1;
    }
    all.iter()
        .rev()
        .all(|directory| fs::remove_dir(directory).is_ok())
}
