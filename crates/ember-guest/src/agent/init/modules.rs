//! The kernel's modules, as far as a kernel needs any.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module, init_module};

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
    let bytes = fs::read(path)?;
    // The modules come from the host, which the guest has to trust in any case, and checking a
    // signature takes the kernel fifty million instructions: for all modules of a stock kernel
    // together, half of the time it takes to boot.
    let result = match unsigned(&bytes) {
        Some(unsigned) => match init_module(unsigned, c"") {
            // A kernel that insists on signatures (module.sig_enforce, lockdown).
            Err(Errno::EKEYREJECTED | Errno::EPERM) => signed(path)?,
            result => result,
        },
        None => signed(path)?,
    };
    match result {
        // Built in, or loaded already.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn signed(path: &Path) -> io::Result<nix::Result<()>> {
    Ok(finit_module(
        &File::open(path)?,
        c"",
        ModuleInitFlags::empty(),
    ))
}

/// What a signature ends with, and the size of the description before that (Linux
/// `include/linux/module_signature.h`), whose last four bytes are the signature's length.
const MARKER: &[u8] = b"~Module signature appended~\n";
const DESCRIPTION: usize = 12;

/// A module without the signature at its end. None if it has none.
fn unsigned(module: &[u8]) -> Option<&[u8]> {
    let rest = module.strip_suffix(MARKER)?;
    let (rest, description) = rest.split_at_checked(rest.len().checked_sub(DESCRIPTION)?)?;
    let length = description
        .last_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))?;
    rest.get(..rest.len().checked_sub(length as usize)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(text: &[u8], signature: usize, length: u32) -> Vec<u8> {
        let mut bytes = text.to_vec();
        bytes.extend(vec![0xaa; signature]);
        bytes.extend([0, 0, 2, 0, 0, 0, 0, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(MARKER);
        bytes
    }

    #[test]
    fn signatures_are_left_out() {
        assert_eq!(unsigned(&module(b"text", 300, 300)), Some(&b"text"[..]));
        assert_eq!(unsigned(&module(b"", 0, 0)), Some(&b""[..]));
    }

    #[test]
    fn what_is_not_signed_is_left_alone() {
        assert_eq!(unsigned(b"text"), None);
        assert_eq!(unsigned(b""), None);
        assert_eq!(unsigned(MARKER), None);
        assert_eq!(unsigned(&module(b"text", 300, 305)), None);
        assert_eq!(unsigned(&module(b"text", 300, u32::MAX)), None);
    }
}
