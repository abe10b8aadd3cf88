//! Why there is no VM.

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
