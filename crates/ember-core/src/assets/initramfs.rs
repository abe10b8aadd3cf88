//! The initramfs that every guest starts from: the agent as `/init`, and the kernel's modules.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ember_vmm::kernel::Initramfs;

use super::cpio::{Archive, TooLarge};

/// Where the agent looks for the modules to load: one path a line, in order.
const MODULES: &str = "/ember/modules";

/// Why an initramfs could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitramfsError {
    #[error("cannot read the kernel module {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

/// Builds an initramfs with `agent` and `modules`, which are loaded in their order.
pub(crate) fn build(
    agent: &'static [u8],
    modules: &[PathBuf],
) -> Result<Initramfs, InitramfsError> {
    let mut archive = Archive::default();
    archive.directory("/dev", 0o755)?;
    // Before it runs init, the kernel opens this for init's standard streams.
    archive.character_device("/dev/console", 0o600, (5, 1))?;
    archive.directory("/ember", 0o755)?;
    archive.file("/init", 0o755, agent)?;
    if modules.is_empty() {
        return Ok(archive.finish()?);
    }
    let mut list = String::new();
    archive.directory("/ember/ko", 0o755)?;
    for path in modules {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let inside = Path::new("/ember/ko").join(name).display().to_string();
        let bytes = fs::read(path).map_err(|source| InitramfsError::Read {
            path: path.clone(),
            source,
        })?;
        archive.file(&inside, 0o644, bytes)?;
        list.push_str(&inside);
        list.push('\n');
    }
    archive.file(MODULES, 0o644, list.into_bytes())?;
    Ok(archive.finish()?)
}
