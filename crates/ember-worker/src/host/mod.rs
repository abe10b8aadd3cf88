//! The owner's half: workers that are started ahead of time, and VMs in them.
//!
//! | module | what |
//! | --- | --- |
//! | `process` | a worker's process: how it is started, and how its end is learned |
//! | `link` | one worker as its owner knows it: calls under way, its end, its console |
//! | `supervisor` | the thread that starts workers, hears them and buries them |
//! | `vm` | what users see: a VM in a worker |

mod error;
mod link;
mod process;
mod supervisor;
mod vm;

pub use error::WorkerError;
pub use supervisor::Workers;
pub use vm::{
    BootConfig, DiskConfig, OnExit, Pages, RemoteCopy, RemoteSaved, RemoteVm, RestoreConfig, Sink,
};

#[cfg(test)]
mod tests;
