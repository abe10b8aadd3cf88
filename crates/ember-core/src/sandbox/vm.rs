//! A VM, wherever it runs.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ember_snapshot::{PageSet, WorkingSet};
use ember_vmm::devices::virtio::vsock::ConnectError;
use ember_vmm::{Ended, ExitReason, Vm};
use ember_worker::host::{RemoteVm, WorkerError};
use ember_worker::protocol::RefusalKind;
use tokio::sync::oneshot;

use crate::blocking::blocking;
use crate::error::{Error, ErrorKind};

/// A VM in this process, or in one of its own. What it is asked for waits for its threads or for its
/// process, unless it says otherwise.
#[derive(Debug)]
pub(crate) enum GuestVm {
    Local(Box<Vm>),
    Remote(RemoteVm),
}

/// The console's last output, which can be had also when the VM is gone.
#[derive(Clone)]
pub(crate) struct ConsoleTail(Arc<dyn Fn() -> Vec<u8> + Send + Sync>);

impl GuestVm {
    /// Lets it run for the first time, with another generation id than before if there is a new one:
    /// it is in its place then, and [announced](Self::announce) later. Does not wait.
    pub(crate) fn start(&self, generation_id: Option<[u8; 16]>) -> Result<(), Error> {
        let failed = "cannot start the VM";
        match self {
            Self::Local(vm) => {
                if let (Some(id), Some(device)) = (generation_id, vm.generation_id()) {
                    device.store(id).map_err(generation_id_failed)?;
                }
                vm.start()
                    .map_err(|error| Error::because(ErrorKind::Internal, failed, error))
            }
            Self::Remote(vm) => {
                vm.start(generation_id);
                Ok(())
            }
        }
    }

    /// Tells the guest that it has another generation id than before. Does not wait.
    pub(crate) fn announce(&self) -> Result<(), Error> {
        match self {
            Self::Local(vm) => match vm.generation_id() {
                Some(device) => device.announce().map_err(generation_id_failed),
                None => Ok(()),
            },
            Self::Remote(vm) => {
                vm.announce();
                Ok(())
            }
        }
    }

    pub(crate) fn pause(&self) -> Result<(), Error> {
        let failed = "the guest cannot be paused";
        match self {
            Self::Local(vm) => vm.pause().map_err(ended(failed)),
            Self::Remote(vm) => vm.pause().map_err(|error| worker_error(failed, error)),
        }
    }

    pub(crate) fn resume(&self) -> Result<(), Error> {
        let failed = "the guest cannot go on";
        match self {
            Self::Local(vm) => vm.resume().map_err(ended(failed)),
            Self::Remote(vm) => vm.resume().map_err(|error| worker_error(failed, error)),
        }
    }

    /// Ends the guest, and frees nothing yet. Does not wait.
    pub(crate) fn stop(&self) {
        match self {
            Self::Local(vm) => vm.stop(),
            Self::Remote(vm) => vm.stop(),
        }
    }

    /// Ends the guest and waits until what it held is free, unless somebody else has the VM as well.
    pub(crate) fn end(vm: Arc<Self>) {
        match &*vm {
            // Also if somebody else has it.
            Self::Local(vm) => vm.stop(),
            Self::Remote(vm) => vm.end(),
        }
        drop(vm);
    }

    /// Has `callback` called when it ends, at once if it has.
    pub(crate) fn on_exit(&self, callback: Box<dyn FnOnce(&ExitReason) + Send>) {
        match self {
            Self::Local(vm) => vm.on_exit(callback),
            Self::Remote(vm) => vm.on_exit(callback),
        }
    }

    pub(crate) fn console_tail(&self) -> ConsoleTail {
        match self {
            Self::Local(vm) => {
                let console = vm.console();
                ConsoleTail(Arc::new(move || console.tail()))
            }
            Self::Remote(vm) => ConsoleTail(Arc::new(vm.console())),
        }
    }

    /// The size of its memory in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        match self {
            Self::Local(vm) => vm.memory_bytes(),
            Self::Remote(vm) => vm.memory_bytes(),
        }
    }

    /// Whether it can be asked for memory.
    pub(crate) fn has_balloon(&self) -> bool {
        match self {
            Self::Local(vm) => vm.balloon().is_some(),
            Self::Remote(vm) => vm.has_balloon(),
        }
    }

    /// Asks the guest for so many bytes of its memory. Does not wait.
    pub(crate) fn set_balloon(&self, bytes: u64) {
        match self {
            Self::Local(vm) => {
                if let Some(balloon) = vm.balloon() {
                    balloon.set_target(bytes);
                }
            }
            Self::Remote(vm) => vm.set_balloon(bytes),
        }
    }

    /// How many bytes the guest has given.
    pub(crate) fn balloon(&self) -> Result<u64, Error> {
        match self {
            Self::Local(vm) => Ok(vm.balloon().map_or(0, |balloon| balloon.actual())),
            Self::Remote(vm) => vm
                .balloon()
                .map_err(|error| worker_error("cannot ask for a guest's memory", error)),
        }
    }

    /// A stream to a port of the guest, when something there has accepted it.
    pub(crate) async fn connect(vm: Arc<Self>, port: u32) -> Result<UnixStream, Error> {
        if let Self::Local(vm) = &*vm {
            return connect_here(vm, port).await;
        }
        let connect = move || match &*vm {
            Self::Remote(vm) => vm
                .connect(port)
                .map_err(|error| worker_error(CONNECTING, error)),
            Self::Local(_) => Err(Error::new(ErrorKind::Internal, CONNECTING)),
        };
        blocking("connecting to a guest", connect).await
    }

    /// Brings in what will be touched; `file` has the same encoded, for who cannot see `touched`.
    pub(crate) fn prefetch(
        &self,
        touched: &WorkingSet,
        file: impl FnOnce() -> io::Result<Arc<std::fs::File>>,
    ) {
        match self {
            Self::Local(vm) => vm.prefetch(touched),
            Self::Remote(vm) => match file() {
                Ok(file) => vm.prefetch(&file),
                // It changes nothing but how long things take.
                Err(error) => tracing::debug!(%error, "a working set cannot be handed over"),
            },
        }
    }

    /// How many bytes of its memory are its own and nobody else's.
    pub(crate) fn copied_bytes(&self) -> Result<u64, Error> {
        let message = "cannot see what a guest has changed";
        let changed = match self {
            Self::Local(vm) => vm
                .copied_pages()
                .map_err(|error| Error::because(ErrorKind::Internal, message, error))?,
            Self::Remote(vm) => vm
                .copied_pages()
                .map_err(|error| worker_error(message, error))?,
        };
        Ok(changed.pages().saturating_mul(ember_snapshot::PAGE_SIZE))
    }

    /// The same as the kernel counts it, and whatever its worker says: also what the worker itself
    /// has is in it, less than a MiB.
    pub(crate) fn own_memory(&self) -> Result<u64, Error> {
        match self {
            Self::Local(_) => self.copied_bytes(),
            Self::Remote(vm) => vm.own_memory().map_err(|error| {
                let message = "cannot see what a worker has of its own";
                Error::because(ErrorKind::Internal, message, error)
            }),
        }
    }

    /// What it has touched since it was made: all, if each page is brought in when it is touched,
    /// else what it has changed.
    pub(crate) fn touched_pages(&self) -> Result<PageSet, Error> {
        let message = "cannot see what a clone has touched";
        let internal = |error: io::Error| Error::because(ErrorKind::Internal, message, error);
        let lost = |error| worker_error(message, error);
        match self {
            Self::Local(vm) => match vm.paged_in() {
                Some(pages) => Ok(pages),
                None => vm.copied_pages().map_err(internal),
            },
            Self::Remote(vm) => match vm.paged_in().map_err(lost)? {
                Some(pages) => Ok(pages),
                None => vm.copied_pages().map_err(lost),
            },
        }
    }
}

const CONNECTING: &str = "cannot connect to the guest";

/// A stream to a port of a guest in this process, whose device thread says when there is one.
async fn connect_here(vm: &Vm, port: u32) -> Result<UnixStream, Error> {
    let gone = || {
        Error::new(
            ErrorKind::GuestDied,
            "the guest has no socket device any more",
        )
    };
    let vsock = vm.vsock().ok_or_else(gone)?;
    let (sender, receiver) = oneshot::channel();
    let done = Box::new(move |result| drop(sender.send(result)));
    vsock.connect(port, done).map_err(|_| gone())?;
    receiver.await.map_err(|_| gone())?.map_err(|error| {
        let kind = match &error {
            ConnectError::Refused { .. } => ErrorKind::NotFound,
            ConnectError::TooManyStreams { .. } => ErrorKind::Exhausted,
            ConnectError::Host { .. } => ErrorKind::HostUnsupported,
            _ => ErrorKind::GuestDied,
        };
        Error::because(kind, CONNECTING, error)
    })
}

impl ConsoleTail {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        (self.0)()
    }
}

impl fmt::Debug for ConsoleTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleTail").finish_non_exhaustive()
    }
}

fn generation_id_failed(error: io::Error) -> Error {
    let message = "cannot set the generation id";
    Error::because(ErrorKind::Internal, message, error)
}

fn ended(failed: &'static str) -> impl FnOnce(Ended) -> Error {
    move |error| Error::because(ErrorKind::GuestDied, failed, error)
}

/// What the failure of a worker means to the caller.
pub(crate) fn worker_error(failed: &str, error: WorkerError) -> Error {
    let kind = match error.kind() {
        RefusalKind::Invalid => ErrorKind::InvalidRequest,
        RefusalKind::Host => ErrorKind::HostUnsupported,
        RefusalKind::NoRoom => ErrorKind::Exhausted,
        RefusalKind::Ended => ErrorKind::GuestDied,
        RefusalKind::Internal => ErrorKind::Internal,
        RefusalKind::Absent => ErrorKind::NotFound,
    };
    let advice = match kind {
        ErrorKind::HostUnsupported => "; `ember doctor` examines this host",
        _ => "",
    };
    Error::because(kind, format!("{failed}{advice}"), error)
}
