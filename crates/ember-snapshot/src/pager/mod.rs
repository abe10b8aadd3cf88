//! A guest's memory while it is used: filled on demand, copied while the guest goes on, looked at.
//!
//! - [`Pager`] fills memory when the guest first touches it, from any [`PageSource`].
//! - [`ProtectedCopy`] copies what a guest has changed while the guest goes on.
//! - [`changed_pages`] says what a guest has changed, [`WorkingSet`] is made by [`touched_pages`]
//!   and given to [`copy_ahead`] and [`map_ahead`].
//!
//! The first two use userfaultfd (`Documentation/admin-guide/mm/userfaultfd.rst` of the kernel).
//! The faults of a guest are the kernel's own, raised inside `KVM_RUN`, and not every process may
//! handle such: see [`PagerError::Refused`].
//!
//! `unsafe` is in three modules: `mapping`, which knows where a guest's memory is, `sys`, which makes
//! the system calls that no crate has in a safe form, and `collapse`, which maps a file for a moment.

mod bitmap;
mod changes;
pub(crate) mod collapse;
mod mapping;
mod on_demand;
mod protect;
mod sys;

use std::io;

pub use crate::source::PageSource;
#[doc(no_inline)]
pub use crate::working_set::WorkingSet;
pub use changes::{changed_pages, copied_pages, copy_ahead, map_ahead, touched_pages};
pub use collapse::HUGE_PAGE_BYTES;
pub use mapping::{GuestMapping, InvalidMapping, Segment};
pub use on_demand::{AfterFailure, Pager, PagerFailure, PagerOptions};
pub use protect::{CopyStats, PreparedCopy, ProtectedCopy};

/// Why memory could not be put in charge of a pager.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagerError {
    /// This process is not allowed to.
    #[error(
        "this process may not handle page faults that a guest raises in the kernel (userfaultfd): \
         set vm.unprivileged_userfaultfd=1 with sysctl, or give the user access to \
         /dev/userfaultfd, or the process CAP_SYS_PTRACE"
    )]
    Refused,
    /// The kernel is too old, or was built without.
    #[error("this kernel cannot {what}; Linux {since} can, with CONFIG_USERFAULTFD")]
    Unsupported {
        /// What it cannot do.
        what: &'static str,
        /// The version that can.
        since: &'static str,
    },
    /// The operating system refused something else.
    #[error("cannot {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl PagerError {
    fn io<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            source: source.into(),
        }
    }
}
