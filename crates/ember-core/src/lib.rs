//! Sandboxes: real Linux microVMs behind a value.
#![forbid(unsafe_code)]

mod assets;
mod error;
mod language;
mod progress;

pub use assets::{Assets, Image, Kernel, ReadyImage, ReadyKernel};
pub use error::{Error, ErrorKind};
pub use language::Language;
pub use progress::{Event, Progress};
