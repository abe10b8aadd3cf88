//! The tuned guest kernel, from Debian's source package and our configuration fragment.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::debian::{self, Tool};
use crate::{dirs, say};

/// What is built: everything not named in it is off.
const FRAGMENT: &str = include_str!("../../crates/ember-guest/kernel/x86_64.config");
/// Changes with how it is built.
const RECIPE: u32 = 1;
const SOURCES: [&str; 1] = ["linux-source-6.12"];
/// Files make compiles or links, roughly: for the progress only.
const EXPECTED_STEPS: usize = 1780;

const TOOLS: [Tool; 7] = [
    Tool {
        package: "build-essential",
        why: "the kernel's compiler",
        present: has_compiler,
        backports: false,
    },
    Tool {
        package: "bc",
        why: "the kernel's build",
        present: || debian::has_program("bc"),
        backports: false,
    },
    Tool {
        package: "flex",
        why: "the kernel's configuration",
        present: || debian::has_program("flex"),
        backports: false,
    },
    Tool {
        package: "bison",
        why: "the kernel's configuration",
        present: || debian::has_program("bison"),
        backports: false,
    },
    Tool {
        package: "libelf-dev",
        why: "objtool, which the kernel's build makes and uses",
        present: || Path::new("/usr/include/gelf.h").exists(),
        backports: false,
    },
    Tool {
        package: "xz-utils",
        why: "unpacking the kernel's source",
        present: || debian::has_program("xz"),
        backports: false,
    },
    Tool {
        package: "perl",
        why: "the kernel's build",
        present: || debian::has_program("perl"),
        backports: false,
    },
];

fn has_compiler() -> bool {
    ["gcc", "make", "ld", "strip"]
        .into_iter()
        .all(debian::has_program)
}

/// Builds the kernel if the cache does not have it, or with `update` if Debian has newer source.
/// Gives the path that stays the same across versions.
pub(crate) fn run(update: bool) -> Result<PathBuf> {
    let kernels = dirs::cache()?.join("kernels");
    let stable = kernels.join("tuned/vmlinux");
    let _lock = dirs::lock(&kernels.join("tuned"))?;
    let hash = dirs::fnv(&[FRAGMENT, &RECIPE.to_string()]);
    if !update && let Some(name) = built(&kernels, &hash)? {
        point(&kernels, &name)?;
        return Ok(stable);
    }
    debian::ensure(&TOOLS)?;
    let work = dirs::Scratch::below(&kernels.join("work"))?;
    let fetched = debian::fetch(&SOURCES, "linux-source-", work.path())?;
    let name = format!("tuned-{}-{hash}", fetched.version.replace([':', '/'], "_"));
    if !kernels.join(&name).join("vmlinux").is_file() {
        build(&fetched.file, work.path(), &kernels.join(&name))?;
        fs::write(
            kernels.join(&name).join("origin"),
            format!("{} {}\n", fetched.package, fetched.version),
        )?;
    }
    point(&kernels, &name)?;
    Ok(stable)
}

/// The newest kernel built of this configuration, by name.
fn built(kernels: &Path, hash: &str) -> Result<Option<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(kernels).with_context(|| format!("reading {}", kernels.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.starts_with("tuned-") && name.ends_with(hash);
        if ours && entry.path().join("vmlinux").is_file() {
            names.push((entry.metadata()?.modified()?, name));
        }
    }
    Ok(names.into_iter().max().map(|(_, name)| name))
}

/// Makes `tuned` mean this one.
fn point(kernels: &Path, name: &str) -> Result<()> {
    let link = kernels.join("tuned");
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(name)) {
        return Ok(());
    }
    let new = kernels.join(format!("tuned.{}", std::process::id()));
    // Left by a process of the same number.
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(name, &new)?;
    fs::rename(&new, &link).with_context(|| format!("replacing {}", link.display()))
}

fn build(package: &Path, work: &Path, into: &Path) -> Result<()> {
    let started = Instant::now();
    let unpacked = work.join("package");
    debian::unpack(package, &unpacked)?;
    // Its 150 MB are not needed twice.
    fs::remove_file(package)?;
    say!("unpacking the kernel's source");
    let source = unpack_source(&unpacked, work)?;
    let objects = work.join("objects");
    configure(&source, &objects)?;
    say!("building the kernel: about 6 minutes on 2 CPUs, once");
    compile(&source, &objects, into)?;

    let made = work.join("made");
    dirs::create(&made)?;
    let stripped = Command::new("strip")
        .arg("-o")
        .args([made.join("vmlinux"), objects.join("vmlinux")])
        .status()
        .context("running strip")?;
    if !stripped.success() {
        bail!("strip failed on the new kernel ({stripped})");
    }
    fs::copy(objects.join(".config"), made.join("config"))?;
    let _ = fs::remove_dir_all(into);
    fs::rename(&made, into).with_context(|| format!("moving the kernel to {}", into.display()))?;
    say!("the kernel took {} s", started.elapsed().as_secs());
    Ok(())
}

fn unpack_source(unpacked: &Path, work: &Path) -> Result<PathBuf> {
    let archives = unpacked.join("usr/src");
    let mut entries = fs::read_dir(&archives)?.flatten().map(|entry| entry.path());
    let archive = entries
        .find(|path| path.to_string_lossy().ends_with(".tar.xz"))
        .with_context(|| format!("no source archive in {}", archives.display()))?;
    let source = work.join("source");
    dirs::create(&source)?;
    let status = Command::new("tar")
        .args(["--strip-components=1", "-xf"])
        .arg(&archive)
        .arg("-C")
        .arg(&source)
        // A third of the tree, none of it needed here: documentation, and register headers of
        // graphics cards.
        .args([
            "--exclude=*/Documentation/*",
            "--exclude=*/drivers/gpu/drm/amd/include/*",
        ])
        .stdin(Stdio::null())
        .status()
        .context("running tar")?;
    if !status.success() {
        bail!("unpacking {} failed ({status})", archive.display());
    }
    // Kconfig names this file, which has gone with the documentation.
    dirs::create(&source.join("Documentation"))?;
    fs::write(source.join("Documentation/Kconfig"), "")?;
    Ok(source)
}

fn make(source: &Path, objects: &Path) -> Command {
    // setpriv (util-linux): minutes of compiling are not to outlive who wanted them.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "--", "make", "-C"])
        .arg(source)
        .arg(format!("O={}", objects.display()))
        // The same source gives the same kernel.
        .envs([
            ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
            ("KBUILD_BUILD_USER", "ember"),
            ("KBUILD_BUILD_HOST", "ember"),
            ("LC_ALL", "C"),
        ])
        // What cargo was called by may be make.
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .stdin(Stdio::null());
    command
}

fn configure(source: &Path, objects: &Path) -> Result<()> {
    dirs::create(objects)?;
    let fragment = objects.join("fragment");
    fs::write(&fragment, FRAGMENT)?;
    let output = make(source, objects)
        .arg("allnoconfig")
        .env("KCONFIG_ALLCONFIG", &fragment)
        .output()
        .context("running make")?;
    if !output.status.success() {
        bail!(
            "make allnoconfig failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let config = fs::read_to_string(objects.join(".config"))?;
    let lost = lost_lines(FRAGMENT, &config);
    if !lost.is_empty() {
        bail!(
            "these lines of crates/ember-guest/kernel/x86_64.config do not hold in this kernel \
             (renamed, or a dependency is off): {}",
            lost.join(" ")
        );
    }
    Ok(())
}

/// The lines of the fragment that the final configuration contradicts.
fn lost_lines<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let mut settings = std::collections::BTreeMap::new();
    for line in config.lines() {
        if let Some((name, value)) = line.split_once('=').filter(|_| line.starts_with("CONFIG_")) {
            settings.insert(name, value);
        }
    }
    let wanted = fragment.lines().filter(|line| line.starts_with("CONFIG_"));
    wanted
        .filter(|line| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            // An option that is off, or that depends on one that is, is not in the file.
            settings.get(name).copied().unwrap_or("n") != value
        })
        .collect()
}

fn compile(source: &Path, objects: &Path, into: &Path) -> Result<()> {
    let log = into.with_file_name("build.log");
    let mut file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut child = make(source, objects)
        .arg(format!("-j{jobs}"))
        .arg("vmlinux")
        .stdout(Stdio::piped())
        .stderr(file.try_clone()?)
        .spawn()
        .context("running make")?;
    let mut steps = 0;
    let mut told = Instant::now();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line?;
            writeln!(file, "{line}")?;
            steps += 1;
            if told.elapsed() > Duration::from_secs(20) {
                told = Instant::now();
                say!(
                    "building the kernel: {} %",
                    (steps * 100 / EXPECTED_STEPS).min(99)
                );
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!(
            "building the kernel failed ({status}); {} ends with\n{tail}",
            log.display()
        );
    }
    fs::remove_file(&log)?;
    Ok(())
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
