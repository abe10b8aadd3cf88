//! Debian packages, by the machine's own apt but without its root: nothing is installed, the
//! package database is not touched, and no privilege is needed.
//!
//! apt resolves against an empty database, so that the closure of a list of packages is all of
//! it, whatever the host has. The host's own lists are tried first; when they lack a package or
//! name a file that the archive has replaced since, lists of our own are fetched into the cache.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::cache::{Cache, CacheError, Lock};
use crate::progress::Progress;

/// apt with a state of its own. It holds the cache's lock on that state.
#[derive(Debug)]
pub(crate) struct Apt<'a> {
    directory: PathBuf,
    progress: &'a Progress,
    lists: Lists,
    _lock: Lock,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    Host,
    Own,
}

/// A package file on disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) file: PathBuf,
}

/// Why packages could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AptError {
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(
        "cannot run {tool}: packs and the stock kernel are made from Debian packages, with \
         Debian's apt; elsewhere, give an image and a kernel as files"
    )]
    Tool {
        tool: &'static str,
        source: io::Error,
    },
    #[error("{what}, but {tool} failed with {status}:\n{said}")]
    Failed {
        what: String,
        tool: &'static str,
        status: std::process::ExitStatus,
        said: String,
    },
    #[error(
        "none of the packages {0} is in the machine's package sources; add Debian's to \
         /etc/apt/sources.list.d"
    )]
    NoSuchPackage(String),
    #[error("apt's answer was not understood: {0:?}")]
    Answer(String),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl<'a> Apt<'a> {
    /// Waits until no other process uses the cache's apt state, and takes it.
    pub(crate) fn open(cache: &Cache, progress: &'a Progress) -> Result<Self, AptError> {
        let lock = cache.lock("apt")?;
        let directory = cache.directory("apt")?;
        for name in ["archives/partial", "lists/partial", "state"] {
            cache.directory(&format!("apt/{name}"))?;
        }
        let status = directory.join("status");
        fs::write(&status, b"").map_err(|source| AptError::Io {
            action: "write",
            path: status,
            source,
        })?;
        let apt = Self {
            directory,
            progress,
            lists: Lists::Host,
            _lock: lock,
        };
        // What a build that failed has left: apt does not list what it need not download.
        apt.clean()?;
        Ok(apt)
    }

    /// Downloads `packages` and everything that they depend on; sorted by name.
    pub(crate) fn closure(&mut self, packages: &[String]) -> Result<Vec<Package>, AptError> {
        self.with_fresh_lists_if_needed(|apt| {
            let preferences = apt.preferences()?;
            let mut arguments = vec!["install", "--print-uris", "-o", &preferences];
            arguments.extend(packages.iter().map(String::as_str));
            let what = format!("tried to resolve the packages {}", packages.join(" "));
            let mut closure = apt
                .get(&what, &arguments)?
                .lines()
                .filter(|line| line.starts_with('\''))
                .map(|line| apt.parse_uri(line))
                .collect::<Result<Vec<_>, _>>()?;
            closure.sort();
            arguments[1] = "--download-only";
            let step = format!("download {} packages", closure.len());
            apt.progress
                .step(&step, || apt.get(&format!("tried to {step}"), &arguments))?;
            Ok(closure)
        })
    }

    /// Downloads the package that the newest of the meta-packages `candidates` (best first)
    /// depends on and whose name begins with `prefix`, and nothing else.
    pub(crate) fn dependency(
        &mut self,
        candidates: &[&str],
        prefix: &str,
    ) -> Result<Package, AptError> {
        self.with_fresh_lists_if_needed(|apt| {
            let name = candidates
                .iter()
                .find_map(|candidate| apt.dependency_name(candidate, prefix).transpose())
                .ok_or_else(|| AptError::NoSuchPackage(candidates.join(", ")))??;
            let what = format!("tried to download the package {name}");
            let listed = apt.get(&what, &["download", "--print-uris", &name])?;
            let line = listed
                .lines()
                .find(|line| line.starts_with('\''))
                .ok_or_else(|| AptError::Answer(listed.clone()))?;
            let package = apt.parse_uri(line)?;
            apt.progress.step(&format!("download {name}"), || {
                apt.get(&what, &["download", &name])
            })?;
            Ok(package)
        })
    }

    /// Removes what was downloaded. Whatever was wanted of it has been built.
    pub(crate) fn clean(&self) -> Result<(), AptError> {
        let archives = self.archives();
        let failed = |source| AptError::Io {
            action: "clean",
            path: archives.clone(),
            source,
        };
        for entry in fs::read_dir(&archives).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.path().extension().is_some_and(|name| name == "deb") {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn with_fresh_lists_if_needed<T>(
        &mut self,
        mut work: impl FnMut(&Self) -> Result<T, AptError>,
    ) -> Result<T, AptError> {
        match work(self) {
            Err(AptError::Failed { .. } | AptError::NoSuchPackage(_))
                if self.lists == Lists::Host =>
            {
                self.lists = Lists::Own;
                let this = &*self;
                // A source that cannot be reached makes this fail; another may have what is
                // needed, and if none has, the second attempt says what is missing.
                let _ = this
                    .progress
                    .step("update the package lists", || this.get("", &["update"]));
                work(self)
            }
            outcome => outcome,
        }
    }

    /// The option that has packages taken from Debian, where a machine's sources have others of
    /// the same name and higher versions: what a recipe says of files is of Debian's packages.
    fn preferences(&self) -> Result<String, AptError> {
        let path = self.directory.join("preferences");
        let pin = "Package: *\nPin: release o=Debian\nPin-Priority: 990\n";
        fs::write(&path, pin).map_err(|source| AptError::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
        Ok(format!("Dir::Etc::preferences={}", path.display()))
    }

    fn archives(&self) -> PathBuf {
        self.directory.join("archives")
    }

    fn options(&self) -> Vec<OsString> {
        let set = |name: &str, value: &Path| {
            let mut option = OsString::from(format!("{name}="));
            option.push(value);
            [OsString::from("-o"), option]
        };
        let plain = |value: &str| [OsString::from("-o"), OsString::from(value)];
        let lists = match self.lists {
            Lists::Host => PathBuf::from("/var/lib/apt/lists"),
            Lists::Own => self.directory.join("lists"),
        };
        [
            set("Dir::State", &self.directory.join("state")),
            set("Dir::State::status", &self.directory.join("status")),
            set("Dir::State::lists", &lists),
            set("Dir::Cache", &self.directory),
            plain("APT::Architecture=amd64"),
            plain("APT::Architectures::=amd64"),
            plain("APT::Install-Recommends=0"),
            // The cache is this user's, and `_apt` need not be able to read it.
            plain("APT::Sandbox::User=root"),
            // The host's package database is neither read nor written; its lock is not needed.
            plain("Debug::NoLocking=1"),
            plain("Dpkg::Use-Pty=0"),
        ]
        .concat()
    }

    fn get(&self, what: &str, arguments: &[&str]) -> Result<String, AptError> {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-y"])
            .args(self.options())
            .args(arguments)
            // `download` writes here; so that all downloads are in one place.
            .current_dir(self.archives());
        run("apt-get", &mut command, what)
    }

    /// The name of the dependency of `package` that begins with `prefix`.
    fn dependency_name(&self, package: &str, prefix: &str) -> Result<Option<String>, AptError> {
        let mut command = Command::new("apt-cache");
        command
            .args(self.options())
            .args(["show", "--no-all-versions", package]);
        let what = format!("tried to look up the package {package}");
        match run("apt-cache", &mut command, &what) {
            Ok(text) => Ok(parse_dependency(&text, prefix)),
            // It says so when there is no such package.
            Err(AptError::Failed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a line of `--print-uris`: `'URI' NAME_VERSION_ARCHITECTURE.deb SIZE HASH`.
    fn parse_uri(&self, line: &str) -> Result<Package, AptError> {
        let (name, version, file) =
            parse_uri(line).ok_or_else(|| AptError::Answer(line.to_owned()))?;
        Ok(Package {
            name,
            version,
            file: self.archives().join(file),
        })
    }
}

/// Name, version and file name.
fn parse_uri(line: &str) -> Option<(String, String, String)> {
    let file = line.split(' ').nth(1)?;
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (name, version) = (parts.next()?, parts.next()?);
    parts.next()?;
    // A file name becomes part of a path.
    let plain = !file.contains('/') && !file.starts_with('.');
    (plain && !name.is_empty()).then(|| {
        // apt writes the colon of an epoch in this way.
        let version = version.replace("%3a", ":");
        (name.to_owned(), version, file.to_owned())
    })
}

fn parse_dependency(stanza: &str, prefix: &str) -> Option<String> {
    stanza
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?
        .split(',')
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

/// Unpacks the package file `package` into the directory `root`.
///
/// Links to directories that are there already are followed, as `/bin` → `usr/bin` must be
/// (dpkg's own extraction would replace them by directories).
pub(crate) fn unpack(package: &Path, root: &Path) -> Result<(), AptError> {
    let what = format!("tried to unpack {}", package.display());
    let tool = |tool| move |source| AptError::Tool { tool, source };
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(tool("dpkg-deb"))?;
    let mut command = Command::new("tar");
    command
        .args(["--extract", "--keep-directory-symlink", "--no-same-owner"])
        .args(["--preserve-permissions", "--warning=no-timestamp"])
        .arg("--directory")
        .arg(root);
    if let Some(tarball) = reader.stdout.take() {
        command.stdin(tarball);
    }
    let unpacked = command.output().map_err(tool("tar"));
    // The pipe's reader is gone by now, so this ends whatever happened.
    let read = reader.wait_with_output().map_err(tool("dpkg-deb"))?;
    check("dpkg-deb", &read, &what)?;
    check("tar", &unpacked?, &what)?;
    Ok(())
}

/// Runs `command` to its end and returns what it wrote.
fn run(tool: &'static str, command: &mut Command, what: &str) -> Result<String, AptError> {
    let output = command
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| AptError::Tool { tool, source })?;
    check(tool, &output, what)
}

fn check(tool: &'static str, output: &Output, what: &str) -> Result<String, AptError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    Err(AptError::Failed {
        what: what.to_owned(),
        tool,
        status: output.status,
        said: lines[lines.len().saturating_sub(8)..].join("\n"),
    })
}

#[cfg(test)]
mod tests;
