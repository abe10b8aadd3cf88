//! How clones get the memory that they share.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};
use crate::size::ByteSize;

/// How the clones of a template get its memory. Whatever is chosen, a clone has its own copy of a
/// page once it writes to it, and never changes the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Backing {
    /// The template's memory is mapped: what no clone has written to is there once, for all. Where
    /// the host can, parts that all clones read and none writes to, their kernel's code above all,
    /// are in huge pages.
    #[default]
    Mapped,
    /// The same with all of the template's memory in huge pages. It takes whole units of 2 MiB for
    /// whatever is in them; in return, clones that read much of it wait less for it.
    ///
    /// The host has to have huge pages for files in memory: [`ErrorKind::HostUnsupported`] says what
    /// is missing.
    HugePages,
    /// Each clone gets pages when it touches them, so many at once as `window_pages` says. Nothing is
    /// shared, and a clone has nothing that it has not touched.
    ///
    /// The host has to have userfaultfd for faults of the kernel
    /// (`vm.unprivileged_userfaultfd = 1`, or `CAP_SYS_PTRACE`).
    OnDemand {
        /// How many pages of 4 KiB are brought in around the one that is touched: a power of two, 16
        /// by [`Backing::ON_DEMAND`].
        window_pages: u64,
    },
}

/// The widest window: a huge page.
const MOST_PAGES: u64 = 512;

impl Backing {
    /// [`OnDemand`](Self::OnDemand) with 64 KiB at a time.
    pub const ON_DEMAND: Self = Self::OnDemand { window_pages: 16 };

    /// Refuses what cannot be.
    pub(crate) fn check(self) -> Result<Self, Error> {
        match self {
            Self::OnDemand { window_pages }
                if !window_pages.is_power_of_two() || window_pages > MOST_PAGES =>
            {
                let message = format!(
                    "memory is brought in by a power of two of pages, at most {MOST_PAGES}, and \
                     not by {window_pages}"
                );
                Err(Error::new(ErrorKind::InvalidRequest, message))
            }
            backing => Ok(backing),
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mapped",
            Self::HugePages => "huge-pages",
            Self::OnDemand { .. } => "on-demand",
        })
    }
}

impl FromStr for Backing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "mapped" => Ok(Self::Mapped),
            "huge-pages" => Ok(Self::HugePages),
            "on-demand" => Ok(Self::ON_DEMAND),
            _ => {
                let message =
                    format!("a backing is `mapped`, `huge-pages` or `on-demand`, not `{text}`");
                Err(Error::new(ErrorKind::InvalidRequest, message))
            }
        }
    }
}

/// What clones do with their memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemoryUse {
    pub(crate) backing: Backing,
    /// Whether the host may merge pages of equal content (KSM).
    pub(crate) mergeable: bool,
    /// How much of it each may copy.
    pub(crate) cap: Option<ByteSize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_is_read_as_it_is_written() {
        for backing in [Backing::Mapped, Backing::HugePages, Backing::ON_DEMAND] {
            assert_eq!(backing.to_string().parse::<Backing>().unwrap(), backing);
        }
        let error = "somewhere".parse::<Backing>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains("`somewhere`"), "{error}");
    }

    #[test]
    fn a_window_is_a_power_of_two_of_pages() {
        for window_pages in [1, 2, 512] {
            Backing::OnDemand { window_pages }.check().unwrap();
        }
        for window_pages in [0, 3, 1024, u64::MAX] {
            let error = Backing::OnDemand { window_pages }.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{window_pages}");
        }
    }
}
