//! What a worker process is handed of a template, in files that nobody can change.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use ember_snapshot::WorkingSet;
use ember_snapshot::format::encode_state;
use ember_snapshot::state::VmState;
use ember_worker::wire::sealed_file;

/// Files that are made when a worker first needs them, and shared by all.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    state: Made,
    working_set: Made,
}

#[derive(Debug, Default)]
struct Made(Mutex<Option<Arc<File>>>);

impl Parcel {
    /// The encoded state. It is the same each time.
    pub(super) fn state(&self, state: &VmState) -> io::Result<Arc<File>> {
        self.state
            .or_make(|| encode_state(state).map_err(io::Error::other))
    }

    /// The encoded working set. It is the same each time.
    pub(super) fn working_set(&self, touched: &WorkingSet) -> io::Result<Arc<File>> {
        self.working_set.or_make(|| Ok(touched.encode()))
    }
}

impl Made {
    fn or_make(&self, encode: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Arc<File>> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*made {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(sealed_file([&encode()?[..]])?);
        Ok(Arc::clone(made.insert(file)))
    }
}
