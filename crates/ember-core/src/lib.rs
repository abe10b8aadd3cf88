//! Sandboxes: real Linux microVMs behind a value.
#![forbid(unsafe_code)]

mod assets;
mod error;
mod host;
mod language;
mod progress;
mod size;

pub use assets::{Assets, Image, Kernel, ReadyImage, ReadyKernel};
pub use error::{Error, ErrorKind};
pub use host::{Condition, Finding, Host, Measured};
pub use language::{Account, Language};
pub use progress::{Event, Progress};
pub use size::ByteSize;
