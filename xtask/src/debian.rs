//! Debian's packages: installing tools that are missing, and fetching packages only to unpack them.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::dirs;
use crate::say;

/// Something a command needs from the system.
#[derive(Debug)]
pub(crate) struct Tool {
    /// The Debian package that has it.
    pub(crate) package: &'static str,
    /// What it is needed for, in a few words.
    pub(crate) why: &'static str,
    /// Whether it is there.
    pub(crate) present: fn() -> bool,
    /// Whether Debian 12's own version is too old.
    pub(crate) backports: bool,
}

/// QEMU from 10.0 on: under 7.2 with several vCPUs the lab's kernel crashes (a stale `int3` of
/// static-key patching, which creating and destroying VMs does all the time).
const QEMU_MAJOR: u32 = 10;

/// What the lab runs on.
pub(crate) const LAB_TOOLS: [Tool; 2] = [
    Tool {
        package: "qemu-system-x86",
        why: "QEMU 10 or later runs the lab, where KVM is real",
        present: || qemu_major().is_some_and(|major| major >= QEMU_MAJOR),
        backports: true,
    },
    Tool {
        package: "busybox-static",
        why: "the lab's first process and its tools",
        present: || Path::new(BUSYBOX).exists(),
        backports: false,
    },
];

/// What tests of images need besides.
pub(crate) const TEST_TOOLS: [Tool; 4] = [
    Tool {
        package: "docker-registry",
        why: "images are pulled from a real registry",
        present: || has_program("docker-registry"),
        backports: false,
    },
    Tool {
        package: "mmdebstrap",
        why: "a Debian that is not Ember's own is made an image",
        present: || has_program("mmdebstrap"),
        backports: false,
    },
    Tool {
        package: "umoci",
        why: "images in files are made by a tool that is not Ember's",
        present: || has_program("umoci"),
        backports: false,
    },
    Tool {
        package: "skopeo",
        why: "images in files are brought from one form into the other",
        present: || has_program("skopeo"),
        backports: false,
    },
];

/// Where busybox-static puts its one file.
pub(crate) const BUSYBOX: &str = "/bin/busybox";

fn qemu_major() -> Option<u32> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .ok()?;
    major_version(&String::from_utf8_lossy(&output.stdout))
}

fn major_version(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("version ")?;
    rest.split('.').next()?.parse().ok()
}

/// Whether a program of this name is in the search path (or where administrators' tools are).
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).is_file())
}

/// Installs those of `tools` that are missing, and says which and why.
pub(crate) fn ensure(tools: &[Tool]) -> Result<()> {
    let missing = || -> Vec<&Tool> { tools.iter().filter(|tool| !(tool.present)()).collect() };
    if missing().is_empty() {
        return Ok(());
    }
    // Apt's own lock is not waited for by all of its commands.
    let _lock = dirs::lock(&dirs::cache()?.join("apt"))?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        say!("installing {}: {}", tool.package, tool.why);
    }
    if !has_program("apt-get") {
        let names: Vec<_> = missing.iter().map(|tool| tool.package).collect();
        bail!("this is no Debian system; install what its packages {names:?} hold, then run again");
    }
    let release = release_codename();
    let release = release.as_deref().filter(|name| *name == "bookworm");
    let known = release.is_none() || has_backports(release.unwrap_or_default())?;
    as_root(&installation(&missing, release, known))?;
    if let Some(tool) = missing.iter().find(|tool| !(tool.present)()) {
        bail!(
            "{} is installed and still not usable ({}); look at `apt-cache policy {0}`",
            tool.package,
            tool.why
        );
    }
    Ok(())
}

/// The commands that install `missing`, as root. `release` is Debian 12's name if this is one: some
/// packages come from its backports there, whose source is added unless it is `known`.
fn installation(missing: &[&Tool], release: Option<&str>, known: bool) -> Vec<Vec<String>> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let release = release.filter(|_| missing.iter().any(|tool| tool.backports));
    let mut commands = Vec::new();
    // Another program's installation may be under way.
    let mut install = words(
        "apt-get install -y -q -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 --no-install-recommends",
    );
    if let Some(release) = release {
        if !known {
            let line = format!("deb http://deb.debian.org/debian {release}-backports main");
            let script = format!("echo '{line}' > /etc/apt/sources.list.d/ember-backports.list");
            commands.push(vec!["sh".to_owned(), "-c".to_owned(), script]);
        }
        // The packages' dependencies come from backports as well where they must.
        install.extend(["-t".to_owned(), format!("{release}-backports")]);
    }
    commands.push(words("apt-get update -q"));
    install.extend(missing.iter().map(|tool| match release {
        Some(release) if tool.backports => format!("{}/{release}-backports", tool.package),
        _ => tool.package.to_owned(),
    }));
    commands.push(install);
    commands
}

fn release_codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned())
}

/// Whether apt knows this release's backports.
fn has_backports(release: &str) -> Result<bool> {
    let policy = output("apt-cache", ["policy"])?;
    Ok(policy.contains(&format!("{release}-backports")))
}

/// Lines of a command that failed which are shown.
const SHOWN_LINES: usize = 20;

/// Runs commands as root, by sudo when this is an ordinary user. What they print is shown when one
/// fails, with what is then left to do by hand.
fn as_root(commands: &[Vec<String>]) -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let by_hand = |from: usize| {
        let mut text = "run this as root, then try again:".to_owned();
        for command in &commands[from..] {
            let quoted: Vec<_> = command.iter().map(|word| quote(word)).collect();
            text.push_str("\n  ");
            text.push_str(&quoted.join(" "));
        }
        text
    };
    if !root && !has_program("sudo") {
        bail!("this needs root, and there is no sudo; {}", by_hand(0));
    }
    if !root {
        say!("by sudo, which may ask for your password");
    }
    for (index, command) in commands.iter().enumerate() {
        let quoted: Vec<_> = command.iter().map(|word| quote(word)).collect();
        say!("$ {}", quoted.join(" "));
        // sudo asks at the terminal, not at the streams that are taken here.
        let output = Command::new(if root { "env" } else { "sudo" })
            .args(if root { &[][..] } else { &["env"] })
            // sudo passes none of the environment on.
            .arg("DEBIAN_FRONTEND=noninteractive")
            .args(command)
            .stdin(Stdio::null())
            .output()
            .with_context(|| by_hand(index))?;
        if !output.status.success() {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
                say!("| {line}");
            }
            let (name, status) = (&command[0], output.status);
            bail!("{name} failed ({status}); {}", by_hand(index));
        }
    }
    Ok(())
}

/// A word as a shell reads it back.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What a package that was fetched is.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The package's name, such as `linux-image-6.12.95+deb12-amd64`.
    pub(crate) package: String,
    /// Its version.
    pub(crate) version: String,
    /// The file.
    pub(crate) file: PathBuf,
}

/// Downloads the package that the first existing one of `names` is or, for a meta package, stands
/// for. Nothing is installed.
pub(crate) fn fetch(names: &[&str], prefix: &str, into: &Path) -> Result<Fetched> {
    dirs::create(into)?;
    let _lock = dirs::lock(&dirs::cache()?.join("apt"))?;
    if let Some(fetched) = try_fetch(names, prefix, into)? {
        return Ok(fetched);
    }
    // The package lists may be missing, or name versions that the mirror no longer has.
    as_root(&[["apt-get", "update", "-q"].map(str::to_owned).to_vec()])?;
    try_fetch(names, prefix, into)?.with_context(|| {
        format!("no package of {names:?} can be downloaded; see `apt-cache policy`")
    })
}

fn try_fetch(names: &[&str], prefix: &str, into: &Path) -> Result<Option<Fetched>> {
    for name in names {
        let Some(version) = candidate(name)? else {
            continue;
        };
        let (package, version) = match concrete(name, prefix)? {
            Some(package) => {
                let version = candidate(&package)?.unwrap_or(version);
                (package, version)
            }
            None => ((*name).to_owned(), version),
        };
        say!("downloading {package} {version}");
        let status = Command::new("apt-get")
            .args(["download", "-q", &format!("{package}={version}")])
            .current_dir(into)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // As root, apt warns that its own user may not write here.
            .stderr(Stdio::null())
            .status()
            .context("running apt-get download")?;
        if let (true, Some(file)) = (status.success(), find_package(into, &package)?) {
            return Ok(Some(Fetched {
                package,
                version,
                file,
            }));
        }
    }
    Ok(None)
}

fn find_package(directory: &Path, package: &str) -> Result<Option<PathBuf>> {
    let start = format!("{package}_");
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&start) && name.ends_with(".deb") {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn candidate(package: &str) -> Result<Option<String>> {
    Ok(parse_candidate(&output("apt-cache", ["policy", package])?))
}

fn parse_candidate(policy: &str) -> Option<String> {
    let line = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (line != "(none)").then(|| line.to_owned())
}

/// The package a meta package depends on.
fn concrete(meta: &str, prefix: &str) -> Result<Option<String>> {
    Ok(parse_depends(
        &output("apt-cache", ["depends", meta])?,
        prefix,
    ))
}

fn parse_depends(text: &str, prefix: &str) -> Option<String> {
    let mut names = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    names
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

/// Runs a program and gives back what it printed.
pub(crate) fn output<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        // The output is parsed: no translations.
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed ({}): {}", output.status, message.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Unpacks a package's files below `into`, without installing anything.
pub(crate) fn unpack(package: &Path, into: &Path) -> Result<()> {
    output(
        "dpkg-deb",
        [OsStr::new("-x"), package.as_os_str(), into.as_os_str()],
    )
    .map(drop)
}

#[cfg(test)]
#[path = "debian_tests.rs"]
mod tests;
