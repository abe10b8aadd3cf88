//! The kernel's modules, as far as a kernel needs any.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::{BootError, read};

/// Absolute paths of module files, one a line, in the order to load them in.
const LIST: &str = "/ember/modules";

/// Loads what the initramfs brings, and gives the memory of the files back.
pub(super) fn load() -> Result<(), BootError> {
    let list = Path::new(LIST);
    if !list.exists() {
        return Ok(());
    }
    for line in read(list)?
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let path = Path::new(OsStr::from_bytes(line));
        insert(path).map_err(|source| BootError::Module {
            path: path.display().to_string(),
            source,
        })?;
        // The initramfs is memory that nothing else gives back.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn insert(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // Built in, or loaded already.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
