//! Templates: guests that were booted and warmed once, and are cloned from then on.

mod builder;
mod cache;
mod capture;
mod file;
mod give_back;
mod guest;
mod key;
mod load;
mod memory;
mod options;
mod origin;
mod parcel;
mod shell;
mod stock;
mod stored;
mod working_set;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ember_guest::protocol::Hello;
use ember_snapshot::WorkingSet;
use ember_vmm::Checkpoint;

use crate::blocking::blocking;
pub use builder::TemplateBuilder;
pub(crate) use capture::capture;
pub use load::LoadOptions;
pub(crate) use memory::Memory;
pub use options::ForkOptions;
pub(crate) use origin::{Origin, Source};
use parcel::Parcel;
pub use shell::Shell;
use stock::Stock;
pub use stored::{StoredTemplate, Templates};

use crate::assets::Image;
use crate::error::{Error, ErrorKind};
use crate::placement::Place;
use crate::sandbox::{Fixture, Sandbox};

impl Sandbox {
    /// Makes a clone of the running guest, with all its processes: another sandbox, which goes on
    /// from here with an identity of its own. This one goes on as well.
    ///
    /// What runs in the clone that was started by this sandbox's [`run`](Self::run) or
    /// [`exec`](Self::exec) goes on there, and nothing is heard of it.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if the guest does not answer, and as for [`Template::fork`].
    pub async fn fork(&self) -> Result<Self, Error> {
        self.fork_with(ForkOptions::default()).await
    }

    /// Makes a clone of the running guest that is as `options` say.
    ///
    /// # Errors
    /// As for [`fork`](Self::fork), and [`ErrorKind::InvalidRequest`] for options that cannot be.
    pub async fn fork_with(&self, options: ForkOptions) -> Result<Self, Error> {
        let inner = capture(self).await?;
        let placement = options.placement;
        let make = move || Shell::only(inner, placement);
        let shell = blocking("making a clone", make).await?;
        shell.start(options).await
    }

    /// Makes a template of the running guest, from which any number of clones can be made. This
    /// sandbox goes on.
    ///
    /// # Errors
    /// [`ErrorKind::GuestDied`] if the guest does not answer, [`ErrorKind::Exhausted`] if this host
    /// has no room for its memory.
    pub async fn snapshot(&self) -> Result<Template, Error> {
        let inner = capture(self).await?;
        Ok(Template::new(inner, 0))
    }
}

/// A guest at rest, from which any number of sandboxes are made, each a copy-on-write clone: a
/// running Linux with all the processes that the template had, and an identity of its own.
///
/// A clone of this value is another handle on the same template. It is never changed by what its
/// sandboxes do, and can be dropped while they live.
#[derive(Clone)]
pub struct Template {
    inner: Arc<Inner>,
    stock: Arc<Stock>,
}

/// What all clones are made from.
pub(crate) struct Inner {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) memory: Arc<Memory>,
    pub(crate) fixture: Fixture,
    /// What the guest's agent said when it came up. Its connection lives on in every clone.
    pub(crate) hello: Hello,
    /// What a clone touches before it answers, as far as that is known.
    pub(crate) working_set: Option<WorkingSet>,
    /// What of it, and around it, is brought in ahead.
    pub(crate) ahead: Option<WorkingSet>,
    /// What of it is handed to workers.
    pub(crate) parcel: Parcel,
    /// For how long the guest stood still that it was taken from, if it went on.
    pub(crate) paused: Option<Duration>,
}

impl Template {
    /// Describes a template whose guests have the root file system `image`.
    pub fn builder(image: Image) -> TemplateBuilder {
        TemplateBuilder::new(image)
    }

    pub(crate) fn new(inner: Inner, shells: usize) -> Self {
        let template = Self {
            inner: Arc::new(inner),
            stock: Arc::new(Stock::new()),
        };
        template.keep_shells(shells);
        template
    }

    /// Makes a sandbox: a clone with an identity of its own, that answers.
    ///
    /// # Errors
    /// [`ErrorKind::HostUnsupported`] when this host has no room for another VM,
    /// [`ErrorKind::ForkFailed`] when the clone does not answer, or could not be made unique. Then
    /// there is no clone.
    pub async fn fork(&self) -> Result<Sandbox, Error> {
        self.fork_with(ForkOptions::default()).await
    }

    /// Makes a sandbox that is as `options` say.
    ///
    /// # Errors
    /// As for [`fork`](Self::fork), and [`ErrorKind::InvalidRequest`] for options that cannot be.
    pub async fn fork_with(&self, options: ForkOptions) -> Result<Sandbox, Error> {
        let shell = match self.inner.fixture.place.other(options.placement) {
            None => self.shell().await?,
            Some(placement) => {
                let inner = Arc::clone(&self.inner);
                let make = move || {
                    let place = Place::of(Some(placement))?;
                    let pages = shell::pages(&inner);
                    Shell::placed(inner, place, pages)
                };
                blocking("making a clone", make).await?
            }
        };
        shell.start(options).await
    }

    /// Makes `count` sandboxes, several at a time. All or none: when one cannot be made, those that
    /// were are closed.
    ///
    /// # Errors
    /// As for [`fork`](Self::fork).
    pub async fn fork_many(&self, count: usize) -> Result<Vec<Sandbox>, Error> {
        let parallel = std::thread::available_parallelism().map_or(1, usize::from);
        let mut tasks = tokio::task::JoinSet::new();
        let mut sandboxes = Vec::with_capacity(count);
        let mut started = 0;
        loop {
            while started < count && tasks.len() < parallel {
                let template = self.clone();
                tasks.spawn(async move { template.fork().await });
                started += 1;
            }
            match tasks.join_next().await {
                None => return Ok(sandboxes),
                Some(Ok(sandbox)) => sandboxes.push(sandbox?),
                Some(Err(error)) => {
                    let message = "cloning a template ended unexpectedly";
                    return Err(Error::because(ErrorKind::Internal, message, error));
                }
            }
        }
    }

    /// A clone that has not run yet: everything about it that does not depend on who it is to be.
    /// One that was [kept ready](TemplateBuilder::shells), or else a new one.
    ///
    /// # Errors
    /// [`ErrorKind::HostUnsupported`] when this host has no room for another VM.
    pub async fn shell(&self) -> Result<Shell, Error> {
        if let Some(shell) = self.stock.take() {
            return Ok(shell);
        }
        let inner = Arc::clone(&self.inner);
        // About a millisecond of waiting for the kernel.
        blocking("making a clone", move || Shell::new(inner)).await
    }

    /// How much memory its clones share, in bytes. A clone adds what it changes.
    pub fn shared_bytes(&self) -> u64 {
        self.inner.memory.image().allocated_bytes().unwrap_or(0)
    }

    /// For how long the guest stood still of which this is a [snapshot](Sandbox::snapshot).
    pub fn pause(&self) -> Option<Duration> {
        self.inner.paused
    }

    /// Has this many shells kept ready from now on. See [`TemplateBuilder::shells`].
    pub fn keep_shells(&self, count: usize) {
        self.stock.keep(count, &self.inner);
    }

    /// How many shells are ready now.
    pub fn ready_shells(&self) -> usize {
        self.stock.ready()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("checkpoint", &self.inner.checkpoint)
            .field("image", &self.inner.fixture.image.file)
            .finish_non_exhaustive()
    }
}
