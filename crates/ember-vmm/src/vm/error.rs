//! Why there is no VM.

use nix::libc;

/// A VM cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// What was asked for is outside what a VM can be.
    #[error("{0}")]
    Configuration(String),
    /// There is no usable `/dev/kvm`.
    #[error(
        "cannot open /dev/kvm; load the kvm-intel or kvm-amd module, and give this user read and \
         write access to the device (usually by membership in the group kvm)"
    )]
    Kvm(#[source] kvm_ioctls::Error),
    /// KVM refused a step.
    #[error("{step}")]
    Host {
        /// What was attempted.
        step: String,
        /// What the host said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel image cannot be started in this VM.
    #[error("cannot load the guest's kernel")]
    Kernel(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BuildError {
    /// Whether the host could do it, and has not enough left.
    pub fn is_exhausted(&self) -> bool {
        is_exhausted(self)
    }
}

/// Whether `error`, or what caused it, is that the host has not enough left of something:
/// descriptors, memory or threads.
pub fn is_exhausted(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let number = match error.downcast_ref::<std::io::Error>() {
            Some(error) => error.raw_os_error(),
            None => error
                .downcast_ref::<kvm_ioctls::Error>()
                .map(|error| error.errno()),
        };
        if let Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) = number {
            return true;
        }
        next = error.source();
    }
    false
}

pub(super) fn host<E>(step: impl Into<String>) -> impl FnOnce(E) -> BuildError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let step = step.into();
    move |source| BuildError::Host {
        step,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_a_host_has_too_little_of_is_told_from_what_it_cannot_do() {
        let of = |error: io::Error| host::<io::Error>("make a VM")(error);
        assert!(of(io::Error::from_raw_os_error(libc::EMFILE)).is_exhausted());
        assert!(!of(io::Error::from_raw_os_error(libc::ENOSYS)).is_exhausted());
        assert!(host("make a VM")(kvm_ioctls::Error::new(libc::ENOMEM)).is_exhausted());
        assert!(!BuildError::Configuration("too many".into()).is_exhausted());
    }
}
