//! Why something could not be done with a worker.

use std::io;

use ember_vmm::ExitReason;

use crate::protocol::{Refusal, RefusalKind};

/// Why something could not be done with a worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// There is no usable `/dev/kvm`.
    #[error(
        "cannot open /dev/kvm; load the kvm-intel or kvm-amd module, and give this user read and \
         write access to the device (usually by membership in the group kvm)"
    )]
    Kvm(#[source] io::Error),
    /// No worker can be started.
    #[error("cannot start a worker process: {0}")]
    Start(String),
    /// Something could not be prepared for a worker.
    #[error("cannot {action}")]
    Host {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The worker could not do it.
    #[error("{}", .0.text)]
    Refused(Refusal),
    /// The VM has ended, or the worker's process has.
    #[error("the VM has ended: {0}")]
    Ended(ExitReason),
}

impl WorkerError {
    pub(super) fn host(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { action, source }
    }

    /// What sort of reason it is.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Refused(refusal) => refusal.kind,
            Self::Ended(_) => RefusalKind::Ended,
            Self::Host { source, .. }
                if ember_vmm::is_exhausted(source)
                    || source.kind() == io::ErrorKind::StorageFull =>
            {
                RefusalKind::NoRoom
            }
            _ => RefusalKind::Host,
        }
    }
}
