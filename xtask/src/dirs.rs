//! Where things are.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::say;

/// The workspace's root.
pub(crate) fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Cargo's target directory, found from where this executable is (`TARGET/debug/xtask`).
pub(crate) fn target() -> Result<PathBuf> {
    let executable = env::current_exe().context("finding this executable")?;
    let directory = executable.parent().and_then(Path::parent);
    Ok(directory.map_or_else(|| workspace().join("target"), Path::to_path_buf))
}

/// Ember's cache, shared by every checkout: `$EMBER_CACHE`, `$XDG_CACHE_HOME/ember` or
/// `~/.cache/ember`, as `ember-core` has it.
pub(crate) fn cache() -> Result<PathBuf> {
    let directory = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    directory("EMBER_CACHE")
        .or_else(|| Some(directory("XDG_CACHE_HOME")?.join("ember")))
        .or_else(|| Some(directory("HOME")?.join(".cache/ember")))
        .context("no place for the cache: set EMBER_CACHE to an absolute path")
}

/// Creates a directory and its parents.
pub(crate) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))
}

/// Waits for the lock beside `path`, so that of several commands at once one prepares it. Released
/// when dropped.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>> {
    if let Some(parent) = path.parent() {
        create(parent)?;
    }
    let name = path.with_extension("lock");
    let locking = || format!("locking {}", name.display());
    let file = File::create(&name).with_context(locking)?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, _)) => file,
    };
    say!(
        "another process is preparing {}: waiting for it",
        path.display()
    );
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(locking)
}

/// Tells things of different making apart in the cache (FNV-1a, as hexadecimal digits).
pub(crate) fn fnv(parts: &[&str]) -> String {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A directory for one process's files, gone with this value.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new one below `parent`; those of processes that were killed are removed.
    pub(crate) fn below(parent: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        create(parent)?;
        for entry in fs::read_dir(parent)?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let owner = name.split('-').next().unwrap_or_default();
            let is_ours = owner.parse::<u32>().is_ok();
            if is_ours && !Path::new("/proc").join(owner).exists() {
                // Space only; a directory that cannot be removed does not hold us up.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{}-{count}", std::process::id()));
        // Of a process that had the same number.
        let _ = fs::remove_dir_all(&path);
        create(&path)?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What remains is space only, and the next one removes it.
        let _ = fs::remove_dir_all(&self.path);
    }
}
