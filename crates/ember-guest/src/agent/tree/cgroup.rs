//! Trees of processes as cgroups (Linux `Documentation/admin-guide/cgroup-v2.rst`).
//!
//! ```text
//! DIRECTORY/plain/N      commands without limits
//! DIRECTORY/limited/N    commands with limits: here the memory and pids controllers are on
//! ```
//! Controllers make each cgroup dearer to create, so one of each kind is made ahead, while nobody
//! waits for it.
//!
//! `limited` itself may use what the guest has, less a reserve. Whatever limits commands have, or
//! have not, what they take together leaves the agent and the kernel enough to go on; and files in
//! memory that a command leaves behind count on, since they are charged to it
//! ("Memory Ownership").

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use super::memory::{Memory, field};
use crate::agent::room::{self, Room};
use crate::agent::sys;
use crate::protocol::{ErrorCode, Failure, Limits};

/// How often, and after how long, the last room is looked at when the agent ends.
const ROUNDS: usize = 1000;
const ROUND: Duration = Duration::from_millis(1);

/// Where cgroups are made.
#[derive(Debug)]
pub(crate) struct Cgroups {
    directory: PathBuf,
    /// Controllers are on in `limited`, or cannot be turned on. None before that was tried.
    limiting: Option<Result<(), Failure>>,
    last: u64,
    /// Those made before they were needed.
    plain: Option<Cgroup>,
    limited: Option<Cgroup>,
    /// Rooms cannot be made, because of this.
    no_rooms: Option<Failure>,
    /// The least that the kernel was seen to take for itself, in bytes.
    kernel: Option<u64>,
}

impl Cgroups {
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        let mut cgroups = Self {
            directory: directory.to_owned(),
            limiting: None,
            last: 0,
            plain: None,
            limited: None,
            no_rooms: None,
            kernel: None,
        };
        for part in ["plain", "limited"] {
            fs::create_dir_all(directory.join(part))?;
        }
        // Proves that it is a cgroup2 directory that can be used.
        cgroups.plain = Some(cgroups.make("plain")?);
        Ok(cgroups)
    }

    fn make_limited(&mut self) -> io::Result<Cgroup> {
        let cgroup = self.make("limited")?;
        // All of it ends for want of memory, or none ("memory.oom.group").
        cgroup.write("memory.oom.group", b"1")?;
        // Swap would only put the limit off. A kernel without swap has no such file.
        let _ = cgroup.write("memory.swap.max", b"0");
        Ok(cgroup)
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
            room: None,
        };
        match cgroup.path.join("cgroup.procs").try_exists()? {
            true => Ok(cgroup),
            false => {
                let message = format!("{} is not on a cgroup2 file system", cgroup.path.display());
                Err(io::Error::new(io::ErrorKind::Unsupported, message))
            }
        }
    }

    /// Makes the next cgroups while nobody waits for them.
    pub(super) fn prepare(&mut self) {
        // If it fails now, it fails again when it is needed, where it can be told.
        if self.plain.is_none() {
            self.plain = self.make("plain").ok();
        }
        if self.limited.is_none() && self.no_rooms.is_none() && self.start_limiting().is_ok() {
            self.limited = self.make_room().ok();
            self.keep_reserve();
        }
    }

    /// Whether the kernel has what rooms are made of. None is made: what a boot waits for has to be
    /// short.
    pub(super) fn has_rooms(&self) -> bool {
        // The outermost level names all there are; those within only what is passed on to them.
        let outermost = self
            .directory
            .ancestors()
            .map(|level| level.join("cgroup.controllers"))
            .take_while(|file| file.exists())
            .last();
        let controllers = outermost.and_then(|file| fs::read_to_string(file).ok());
        let has_controllers = controllers.is_some_and(|names| {
            ["memory", "pids"]
                .iter()
                .all(|needed| names.split_whitespace().any(|name| name == *needed))
        });
        has_controllers && self.no_rooms.is_none() && room::can_be_made()
    }

    /// Whether commands can be confined: tried once.
    pub(super) fn can_confine(&mut self) -> bool {
        if self.limited.is_none() && self.no_rooms.is_none() {
            match self.start_limiting().and_then(|()| self.make_room()) {
                Ok(cgroup) => self.limited = Some(cgroup),
                Err(failure) => self.no_rooms = Some(failure),
            }
        }
        self.no_rooms.is_none()
    }

    /// One with a room.
    fn make_room(&mut self) -> Result<Cgroup, Failure> {
        let mut cgroup = self.make_limited().map_err(failed("make a cgroup"))?;
        match Room::make(cgroup.directory()) {
            Ok(room) => {
                cgroup.room = Some(room);
                Ok(cgroup)
            }
            Err(error) => {
                cgroup.kill();
                let message = format!("cannot confine a command: {error}");
                Err(Failure::new(ErrorCode::Unsupported, message))
            }
        }
    }

    /// Lets limited commands have what nobody else needs, less the reserve.
    fn keep_reserve(&mut self) {
        let limited = self.directory.join("limited");
        let statistics = fs::read_to_string(limited.join("memory.stat")).unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let Some(memory) = Memory::read(&meminfo) else {
            return;
        };
        let theirs = ["anon", "shmem"].map(|key| field(&statistics, key).unwrap_or(0));
        let kernel = self
            .kernel
            .map_or(memory.kernel(), |least| least.min(memory.kernel()));
        self.kernel = Some(kernel);
        let limit = memory.limit(kernel, theirs.iter().sum());
        let _ = fs::write(limited.join("memory.max"), limit.to_string());
    }

    pub(super) fn create(&mut self, limits: &Limits) -> Result<Cgroup, Failure> {
        if !limits.need_controllers() {
            return self.create_plain();
        }
        let cgroup = self.create_limited()?;
        cgroup.limit(limits)?;
        Ok(cgroup)
    }

    /// One that can be limited later, if any can be.
    pub(super) fn create_for_any(&mut self) -> Result<Cgroup, Failure> {
        match self.start_limiting() {
            Ok(()) => self.create_limited(),
            Err(_) => self.create_plain(),
        }
    }

    fn create_plain(&mut self) -> Result<Cgroup, Failure> {
        match self.plain.take() {
            Some(spare) => Ok(spare),
            None => self.make("plain").map_err(failed("make a cgroup")),
        }
    }

    fn create_limited(&mut self) -> Result<Cgroup, Failure> {
        self.start_limiting()?;
        self.make_limited().map_err(failed("make a cgroup"))
    }

    /// One for a confined command.
    pub(super) fn create_room(&mut self) -> Result<Cgroup, Failure> {
        if let Some(failure) = &self.no_rooms {
            return Err(failure.clone());
        }
        self.start_limiting()?;
        match self.limited.take() {
            Some(spare) => Ok(spare),
            None => self.make_room(),
        }
    }

    /// Turns the controllers on, from the root down: each level only has what its parent passes
    /// on ("Top-down Constraint").
    pub(super) fn start_limiting(&mut self) -> Result<(), Failure> {
        if let Some(tried) = &self.limiting {
            return tried.clone();
        }
        let result = self.turn_controllers_on();
        self.limiting = Some(result.clone());
        result
    }

    fn turn_controllers_on(&self) -> Result<(), Failure> {
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
        Ok(())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.plain = None;
        if let Some(spare) = self.limited.take() {
            // With a room there is a process in it.
            spare.kill();
            for _ in 0..ROUNDS {
                while sys::reap().is_some() {}
                if spare.is_empty() {
                    break;
                }
                std::thread::sleep(ROUND);
            }
        }
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
    room: Option<Room>,
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

    pub(super) fn room(&self) -> Option<&Room> {
        self.room.as_ref()
    }

    /// Whether nothing is in it but the first process of its room.
    pub(super) fn is_idle(&self) -> bool {
        match self.room {
            Some(_) => self
                .number("pids.current", "")
                .is_none_or(|count| count <= 1),
            None => self.is_empty(),
        }
    }

    /// Sets what the kernel enforces.
    pub(super) fn limit(&self, limits: &Limits) -> Result<(), Failure> {
        for (file, limit) in [
            ("memory.max", limits.memory),
            ("pids.max", limits.processes),
        ] {
            let Some(limit) = limit else { continue };
            self.write(file, limit.to_string().as_bytes())
                .map_err(failed(&format!("set {file}")))?;
        }
        Ok(())
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

    /// A number of one of its files: the only one, or that behind `key`.
    fn number(&self, file: &str, key: &str) -> Option<u64> {
        let text = self.read(file)?;
        match key {
            "" => text.trim().parse().ok(),
            key => field(&text, key),
        }
    }

    /// A file of the kernel's, all of which are shorter than a page.
    fn read(&self, file: &str) -> Option<String> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.directory, file, flags, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).ok()?;
        Some(text)
    }

    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.limited
            && self
                .number("memory.events", "oom_kill")
                .is_some_and(|it| it > 0)
    }

    /// Whether something in it was refused a process.
    pub(super) fn ran_out_of_processes(&self) -> bool {
        self.limited && self.number("pids.events", "max").is_some_and(|it| it > 0)
    }

    /// Processor time in user mode and in the kernel, of everything that was ever in it.
    pub(super) fn processor_time(&self) -> Option<(Duration, Duration)> {
        let text = self.read("cpu.stat")?;
        let time = |key| field(&text, key).map(Duration::from_micros);
        Some((time("user_usec")?, time("system_usec")?))
    }

    /// Bytes of files in memory that were written in it, and of memory that is shared.
    pub(super) fn disk(&self) -> u64 {
        let files = self.limited.then(|| self.number("memory.stat", "shmem"));
        files.flatten().unwrap_or(0)
    }

    pub(super) fn memory(&self) -> Option<u64> {
        self.limited.then(|| self.number("memory.current", ""))?
    }

    pub(super) fn processes(&self) -> Option<u64> {
        self.limited.then(|| self.number("pids.current", ""))?
    }

    pub(super) fn peak_memory(&self) -> Option<u64> {
        self.limited.then(|| self.number("memory.peak", ""))?
    }

    pub(super) fn peak_processes(&self) -> Option<u64> {
        self.limited.then(|| self.number("pids.peak", ""))?
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
        if self.room.is_some() {
            self.kill();
        }
        // Not empty only when the agent itself ends; then nobody can do more.
        self.remove();
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> Failure {
    let what = what.to_owned();
    move |error| {
        let code = match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ENOMEM | Errno::EAGAIN | Errno::ENOSPC => ErrorCode::OutOfResources,
            _ => ErrorCode::Internal,
        };
        Failure::new(code, format!("cannot {what} for the command: {error}"))
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
