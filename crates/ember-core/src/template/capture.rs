//! From a running guest to a template.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ember_guest::host::{self, Agent};
use ember_snapshot::memory::{MemoryBuilder, MemoryImage};
use ember_snapshot::state::VmState;
use ember_vmm::{Checkpoint, LiveSaveError, MemoryCopy, RestoreError};
use ember_worker::host::RemoteCopy;
use tokio::sync::oneshot;

use super::{Inner, Memory, Parcel};
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind};
use crate::sandbox::overlay::OverlayFile;
use crate::sandbox::vm::{GuestVm, worker_error};
use crate::sandbox::{Fixture, Sandbox, Stillness};

/// What is done on threads that may wait.
const TAKING: &str = "taking a guest's state";

/// Takes the state of `sandbox`, which goes on as if nothing had happened.
pub(crate) async fn capture(sandbox: &Sandbox) -> Result<Inner, Error> {
    let parts = sandbox.parts()?;
    // Before anything else, so that the guest is frozen only for as long as it must be.
    let base = parts.base.cloned();
    let bytes = parts.vm.memory_bytes();
    let parent = base.clone();
    let from = move || builder(base.as_deref().map(Memory::image), bytes);
    let memory = blocking(TAKING, from).await?;
    let guest = Arc::clone(parts.guest);
    // Whoever ends the guest meanwhile need not wait for this.
    let (vm, overlay) = (Arc::downgrade(&parts.vm), parts.fixture.overlay.clone());
    drop(parts.vm);
    let take = move || {
        let stillness = guest.stillness();
        let Some(vm) = vm.upgrade() else {
            let message = "the guest was ended while its state was taken";
            return Err(Error::new(ErrorKind::Closed, message));
        };
        match overlay {
            None => take(&vm, memory).map(|taken| (taken, None)),
            Some(overlay) => take_with(&vm, &stillness, memory, &overlay)
                .map(|(taken, copy)| (taken, Some(copy))),
        }
    };
    let (agent, captures) = (parts.agent.clone(), Arc::clone(&parts.guest.captures));
    let (sender, taken) = oneshot::channel();
    // A task of its own: who does not wait for it any more must not leave a guest that keeps silent.
    tokio::spawn(async move {
        let _turn = captures.lock_owned().await;
        let result = frozen(&agent, take, || sender.is_closed()).await;
        if let Err(unwanted) = sender.send(result) {
            // It may be large.
            drop(tokio::task::spawn_blocking(move || drop(unwanted)));
        }
    });
    let taken = taken.await.map_err(|error| {
        let message = format!("{TAKING} ended unexpectedly");
        Error::because(ErrorKind::Internal, message, error)
    })?;
    let (taken, overlay) = match taken {
        Ok(taken) => taken?,
        Err(error) => return Err(sandbox.explain(error).await),
    };
    let paused = taken.paused;
    let (checkpoint, memory) = blocking(TAKING, move || taken.finish()).await?;
    Ok(Inner {
        checkpoint,
        memory: Arc::new(Memory::new(memory, parent.as_ref())),
        fixture: Fixture {
            overlay,
            ..parts.fixture.clone()
        },
        hello: parts.agent.hello().clone(),
        working_set: None,
        ahead: None,
        parcel: Parcel::default(),
        paused: Some(paused),
    })
}

/// Takes a state while the guest's agent keeps silent, unless nobody wants it any more.
async fn frozen<T: Send + 'static>(
    agent: &Agent,
    take: impl FnOnce() -> Result<T, Error> + Send + 'static,
    is_unwanted: impl Fn() -> bool,
) -> Result<Result<T, Error>, host::Error> {
    let unwanted = || {
        let message = "nobody waits for the guest's state any more";
        Err(Error::new(ErrorKind::Internal, message))
    };
    if is_unwanted() {
        return Ok(unwanted());
    }
    agent.freeze().await?;
    let taken = match is_unwanted() {
        true => unwanted(),
        false => blocking(TAKING, take).await,
    };
    // Also when it failed: the guest is its owner's.
    agent.thaw().await?;
    Ok(taken)
}

/// A state whose memory may still be being copied, while its guest goes on.
struct Taken {
    state: VmState,
    memory: Arc<Mutex<Option<MemoryBuilder>>>,
    copy: Option<Copying>,
    paused: Duration,
}

/// A copy of a guest's memory that is being made.
enum Copying {
    Here(MemoryCopy),
    InWorker(RemoteCopy),
}

impl Taken {
    /// Waits for the rest of the memory.
    fn finish(self) -> Result<(Checkpoint, MemoryImage), Error> {
        match self.copy {
            None => {}
            Some(Copying::Here(copy)) => copy.wait().map_err(no_room)?,
            Some(Copying::InWorker(copy)) => copy
                .wait()
                .map_err(|error| worker_error("cannot keep a guest's memory", error))?,
        }
        let memory = self
            .memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a guest's memory was lost"))?;
        let memory = memory.seal().map_err(io::Error::other).map_err(no_room)?;
        let file = memory.file().try_clone().map_err(no_room)?;
        let checkpoint = Checkpoint::new(self.state, Arc::new(file)).map_err(restore_error)?;
        Ok((checkpoint, memory))
    }
}

fn no_room(error: io::Error) -> Error {
    let message = "cannot keep a guest's memory";
    Error::because(ErrorKind::Exhausted, message, error)
}

fn builder(base: Option<&MemoryImage>, bytes: u64) -> Result<MemoryBuilder, Error> {
    match base {
        Some(base) => MemoryBuilder::from_image(base),
        None => MemoryBuilder::new(bytes),
    }
    .map_err(|error| no_room(io::Error::other(error)))
}

/// What went wrong.
const FAILED: &str = "cannot take the guest's state";

/// [`take`], and a copy of what the guest writes to, which is what it was at that moment: the guest
/// stands still while it is made.
fn take_with(
    vm: &GuestVm,
    stillness: &Stillness,
    builder: MemoryBuilder,
    overlay: &OverlayFile,
) -> Result<(Taken, OverlayFile), Error> {
    let start = Instant::now();
    vm.pause()?;
    let taken = take(vm, builder).and_then(|taken| Ok((taken, overlay.copy()?)));
    // Also when it failed. Its owner may have stopped it since it answered.
    if !stillness.is_wanted {
        vm.resume()?;
    }
    let (mut taken, copy) = taken?;
    taken.paused = start.elapsed();
    Ok((taken, copy))
}

/// Holds the guest still for as long as it takes to mark its memory, or, where that cannot be done,
/// to copy it.
fn take(vm: &GuestVm, builder: MemoryBuilder) -> Result<Taken, Error> {
    match vm {
        GuestVm::Local(vm) => {
            let memory = Arc::new(Mutex::new(Some(builder)));
            let shared = Arc::clone(&memory);
            let write = move |offset, bytes: &[u8]| match &mut *shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
            {
                Some(builder) => builder.write(offset, bytes).map_err(io::Error::other),
                None => Err(io::Error::other("the copy was given up")),
            };
            let saved = vm.save_running(write).map_err(failed)?;
            Ok(Taken {
                state: saved.state,
                memory,
                copy: saved.copy.map(Copying::Here),
                paused: saved.paused,
            })
        }
        GuestVm::Remote(vm) => {
            let saved = vm
                .save(&builder)
                .map_err(|error| worker_error(FAILED, error))?;
            Ok(Taken {
                state: saved.state,
                memory: Arc::new(Mutex::new(Some(builder))),
                copy: saved.copy.map(Copying::InWorker),
                paused: saved.paused,
            })
        }
    }
}

fn failed(error: LiveSaveError) -> Error {
    let kind = match &error {
        LiveSaveError::Ended(_) => ErrorKind::GuestDied,
        LiveSaveError::Copy(_) => ErrorKind::Exhausted,
        _ => ErrorKind::Internal,
    };
    Error::because(kind, FAILED, error)
}

pub(crate) fn restore_error(error: RestoreError) -> Error {
    let kind = match &error {
        RestoreError::Invalid(_) => ErrorKind::InvalidRequest,
        _ => ErrorKind::HostUnsupported,
    };
    Error::because(kind, "this host cannot run the template", error)
}
