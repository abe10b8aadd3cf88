//! Socket pairs that were made elsewhere.

#![forbid(unsafe_code)]

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Halves of socket pairs for streams to ports of the host's, each for one: the first that the guest
/// opens to that port or, in a restored VM, that it had open. The other halves are with whoever
/// speaks with the guest, maybe in another process; nobody has to listen on the port.
///
/// A clone refers to the same ends.
#[derive(Clone, Debug, Default)]
pub struct GivenEnds(Arc<Mutex<Vec<(u32, UnixStream)>>>);

impl GivenEnds {
    /// One end, for `port` of the host's.
    pub fn one(port: u32, end: UnixStream) -> Self {
        Self(Arc::new(Mutex::new(vec![(port, end)])))
    }

    /// Whether there is one for `port`.
    pub(super) fn has(&self, port: u32) -> bool {
        self.lock().iter().any(|(given, _)| *given == port)
    }

    /// The one for `port`. It is given once.
    pub(super) fn take(&self, port: u32) -> Option<UnixStream> {
        let mut ends = self.lock();
        let index = ends.iter().position(|(given, _)| *given == port)?;
        Some(ends.swap_remove(index).1)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u32, UnixStream)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
