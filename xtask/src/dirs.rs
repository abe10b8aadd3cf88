//! Where things are.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

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
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(locking)
}
