//! The embedded agent, served on a socket of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ember_guest::host::{Agent, Output, Process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;

/// An agent that runs for as long as this lives.
pub(crate) struct TestAgent {
    process: Child,
    directory: tempfile::TempDir,
    cgroup: Option<PathBuf>,
}

/// Long enough for anything that is not stuck, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

impl TestAgent {
    /// Without cgroups.
    pub(crate) fn start() -> Self {
        Self::start_with(None, &[])
    }

    /// Every way of running commands that this machine offers.
    pub(crate) fn every_kind() -> Vec<Self> {
        let mut agents = vec![Self::start()];
        match cgroup() {
            Some(directory) => agents.push(Self::start_with(Some(directory), &[])),
            None => eprintln!("not tested with cgroups: none can be made here"),
        }
        agents
    }

    pub(crate) fn start_with(cgroup: Option<PathBuf>, before: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("ember-agent");
        fs::write(&program, ember_guest::AGENT).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut words: Vec<PathBuf> = before.iter().map(PathBuf::from).collect();
        words.push(program);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("--serve-unix")
            .arg(directory.path().join("socket"));
        let identity = directory.path().join("identity");
        fs::create_dir(&identity).unwrap();
        command.arg("--identity").arg(identity);
        if let Some(cgroup) = &cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        let process = loop {
            // Another test may be forking while the program was open for writing.
            match command.spawn() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
                other => break other.unwrap(),
            }
        };
        let agent = Self {
            process,
            directory,
            cgroup,
        };
        let end = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(agent.socket()).is_err() {
            assert!(Instant::now() < end, "the agent does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        agent
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// What the agent changed in place of this machine's identity.
    pub(crate) fn identity(&self, what: &str) -> PathBuf {
        self.directory.path().join("identity").join(what)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) async fn connect(&self) -> Agent {
        Agent::connect(self.stream().await).await.unwrap()
    }

    pub(crate) async fn stream(&self) -> UnixStream {
        UnixStream::connect(self.socket()).await.unwrap()
    }

    /// The agent's children, in whatever state.
    pub(crate) fn children(&self) -> Vec<u32> {
        children(self.pid())
    }

    /// A field of `/proc/PID/status` in KiB.
    pub(crate) fn status_kib(&self, field: &str) -> u64 {
        status_kib(self.pid(), field)
    }

    /// Waits for the agent to end by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.process.wait().unwrap()
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.cgroup.is_some() {
            "with cgroups"
        } else {
            "without cgroups"
        }
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM);
        let ended = self.process.wait();
        if let Some(cgroup) = &self.cgroup {
            assert!(
                !cgroup.exists() || std::thread::panicking(),
                "a cgroup was left behind"
            );
        }
        assert!(ended.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

pub(crate) fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap();
    line.trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// A directory for an agent's cgroups, below this process's own, if cgroup2 is mounted and ours to
/// use.
fn cgroup() -> Option<PathBuf> {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after
            .starts_with("cgroup2 ")
            .then(|| before.split(' ').nth(4))?
    })?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let name = format!(
        "ember-agent-test-{}-{}",
        std::process::id(),
        LAST.fetch_add(1, Ordering::Relaxed)
    );
    let directory = Path::new(mount).join(own).join(name);
    fs::create_dir(&directory).ok()?;
    Some(directory)
}

/// Waits for something that comes about soon, while everything else goes on.
pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Processes whose command line has `mark` in it.
pub(crate) fn processes_with(mark: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && String::from_utf8_lossy(&line).contains(mark)
    })
    .collect()
}

/// A number of seconds to sleep that nobody else sleeps for.
pub(crate) fn unique_sleep() -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    format!(
        "7{}.{}",
        std::process::id(),
        LAST.fetch_add(1, Ordering::Relaxed)
    )
}

pub(crate) fn sh(script: impl Into<String>) -> ember_guest::host::Command {
    ember_guest::host::Command::new("/bin/sh")
        .arg("-c")
        .arg(script.into())
}

pub(crate) async fn spawn(agent: &Agent, command: ember_guest::host::Command) -> Process {
    tokio::time::timeout(PATIENCE, agent.spawn(command))
        .await
        .expect("in time")
        .unwrap()
}

pub(crate) async fn output(agent: &Agent, command: ember_guest::host::Command) -> Output {
    let process = spawn(agent, command).await;
    tokio::time::timeout(PATIENCE, process.output(1 << 20))
        .await
        .expect("in time")
        .unwrap()
}

pub(crate) async fn text(agent: &Agent, command: ember_guest::host::Command) -> String {
    let output = output(agent, command).await;
    assert!(
        output.outcome.success(),
        "{:?}: {}",
        output.outcome,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A time in which this machine, as busy as it is, can start some dozens of processes.
pub(crate) async fn a_while(agent: &Agent) -> Duration {
    let start = Instant::now();
    for _ in 0..3 {
        text(agent, sh("sleep 0; sleep 0")).await;
    }
    Duration::from_millis(200) + start.elapsed() * 10
}
