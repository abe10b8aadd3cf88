//! Sandboxes: real Linux microVMs behind a value.
//!
//! ```no_run
//! use ember_core::{Code, Image, Sandbox};
//!
//! # async fn example() -> Result<(), ember_core::Error> {
//! let sandbox = Sandbox::builder(Image::pack("python")).boot().await?;
//! let out = sandbox.run(Code::python("print(6 * 7)")).await?;
//! assert_eq!(out.stdout, "42\n");
//! sandbox.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! [`Sandbox::files`] moves files in and out, and [`Code::artifact`] names what a program leaves behind.
//!
//! A guest that is booted and warmed once can be cloned from then on:
//!
//! ```no_run
//! use ember_core::{Code, ForkOptions, Image, Pool, Template};
//!
//! # async fn example() -> Result<(), ember_core::Error> {
//! let python = Template::builder(Image::pack("python"))
//!     .warm_up(Code::python("import numpy"))
//!     .build()
//!     .await?;
//!
//! let sandbox = python.fork().await?;
//! sandbox.run(Code::python("open('notes', 'w').write('mine')")).await?;
//!
//! // The running guest, with its files and processes, under another name.
//! let branch = sandbox.fork_with(ForkOptions::new().hostname("branch")).await?;
//! let out = branch.run(Code::python("print(open('notes').read())")).await?;
//! assert_eq!(out.stdout, "mine\n");
//!
//! let pool = Pool::builder(python).ready(16).max(512).build().await?;
//! let ready = pool.acquire().await?;
//! ready.run(Code::python("import numpy")).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod assets;
mod backing;
mod blocking;
mod code;
mod compile;
mod error;
mod files;
mod host;
mod json;
mod language;
mod output;
mod overlay;
mod placement;
mod pool;
mod progress;
mod sandbox;
mod session;
mod size;
mod template;
mod verdict;

pub use assets::{
    Assets, Image, ImageConfig, ImageKind, Kernel, OciImage, Pack, Prune, ReadyImage, ReadyKernel,
    SavedImage, StoredImage, Volume,
};
pub use backing::Backing;
pub use code::Code;
pub use compile::Compilation;
pub use error::{Error, ErrorKind};
pub use files::{Artifacts, Copied, FileWatch, Files, LeftOut};
pub use host::{Condition, Finding, Host, Measured};
pub use json::JsonProtocol;
pub use language::{Account, Compiler, Language};
pub use output::{Captured, Output};
pub use overlay::Overlay;
pub use placement::Placement;
pub use pool::{Budget, Pool, PoolBuilder, PoolFork, PoolStatus, PooledSandbox};
pub use progress::{Event, Progress};
pub use sandbox::{Process, Sandbox, SandboxBuilder, UsageWatch};
pub use session::{
    Cell, CellEnd, CellError, CellEvent, CellOutput, CellVerdict, Data, RunningCell, Session,
    SessionEnd, SessionOptions, TraceFrame,
};
pub use size::ByteSize;
pub use template::{
    ForkOptions, LoadOptions, Shell, StoredTemplate, Template, TemplateBuilder, Templates,
};
pub use verdict::Verdict;

pub use ember_guest::host::{Command, ProcessControl, ProcessOutput, ProcessStdin, Stdin};
pub use ember_guest::protocol::{FileChange, FileEntry, FileEvent, FileKind};
pub use ember_guest::protocol::{LimitHit, Limits, Outcome, PtySize, Status, Usage};
pub use ember_snapshot::format::{Artefact, CpuRequirements, Manifest, Parent};
pub use ember_snapshot::memory::MemoryHash;

/// The examples of the documentation, so that they are compiled.
#[cfg(doctest)]
#[derive(Debug)]
#[doc = include_str!("../../../docs/images.md")]
#[doc = include_str!("../../../docs/overlay.md")]
#[doc = include_str!("../../../docs/volumes.md")]
pub struct Documentation;
