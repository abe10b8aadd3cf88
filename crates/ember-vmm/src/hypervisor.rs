//! The host's KVM, opened by this process or handed to it.
#![allow(unsafe_code, reason = "a descriptor that is KVM's becomes a `Kvm`")]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;

use kvm_ioctls::Kvm;

use crate::vm::BuildError;

/// The only version of KVM's interface there is to expect (kernel `Documentation/virt/kvm/api.rst`,
/// 4.1: applications refuse to run on any other).
const API_VERSION: i32 = 12;

/// The host's KVM. A clone is another handle.
///
/// All that is made with it needs no `/dev/kvm` any more, so that a process that has no file system
/// can be given one.
#[derive(Clone)]
pub struct Hypervisor(Arc<Kvm>);

impl Hypervisor {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`BuildError::Kvm`].
    pub fn open() -> Result<Self, BuildError> {
        let kvm = Kvm::new().map_err(BuildError::Kvm)?;
        Ok(Self(Arc::new(kvm)))
    }

    /// Uses `file`, which is `/dev/kvm`, open for reading and writing.
    ///
    /// # Errors
    /// If it is something else.
    pub fn from_file(file: File) -> io::Result<Self> {
        // SAFETY: the descriptor is open, and given up by `file`. Whether it is KVM's is asked next;
        // what this request number means to others' drivers is nothing, by the registry of them
        // (kernel `Documentation/userspace-api/ioctl/ioctl-number.rst`).
        let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
        match kvm.get_api_version() {
            API_VERSION => Ok(Self(Arc::new(kvm))),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "this file is not /dev/kvm",
            )),
        }
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.0
    }
}

impl From<Kvm> for Hypervisor {
    fn from(kvm: Kvm) -> Self {
        Self(Arc::new(kvm))
    }
}

impl fmt::Debug for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hypervisor").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_not_taken_for_kvm() {
        let file = File::open("/dev/null").unwrap();
        let error = Hypervisor::from_file(file).unwrap_err();
        assert_eq!(error.to_string(), "this file is not /dev/kvm");
    }
}
