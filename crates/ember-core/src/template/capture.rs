//! From a running guest to a template.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ember_snapshot::memory::{MemoryBuilder, MemoryImage};
use ember_snapshot::state::VmState;
use ember_vmm::{Checkpoint, Ended, LiveSaveError, MemoryCopy, RestoreError, Vm};

use super::builder::blocking;
use super::{Inner, Memory};
use crate::error::{Error, ErrorKind};
use crate::sandbox::Sandbox;

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
    if let Err(error) = parts.agent.freeze().await {
        return Err(sandbox.explain(error).await);
    }
    let vm = Arc::clone(&parts.vm);
    let taken = blocking(TAKING, move || take(&vm, memory)).await;
    // Also when it failed: the guest is its owner's.
    if let Err(error) = parts.agent.thaw().await {
        return Err(sandbox.explain(error).await);
    }
    let taken = taken?;
    let paused = taken.paused;
    let (checkpoint, memory) = blocking(TAKING, move || taken.finish()).await?;
    Ok(Inner {
        checkpoint,
        memory: Arc::new(Memory::new(memory, parent.as_ref())),
        fixture: parts.fixture.clone(),
        hello: parts.agent.hello().clone(),
        working_set: None,
        paused: Some(paused),
    })
}

/// A state whose memory may still be being copied, while its guest goes on.
struct Taken {
    state: VmState,
    memory: Arc<Mutex<Option<MemoryBuilder>>>,
    copy: Option<MemoryCopy>,
    paused: Duration,
}

impl Taken {
    /// Waits for the rest of the memory.
    fn finish(self) -> Result<(Checkpoint, MemoryImage), Error> {
        if let Some(copy) = self.copy {
            copy.wait().map_err(no_room)?;
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

/// Holds the guest still for as long as it takes to mark its memory, or, where that cannot be done,
/// to copy it.
fn take(vm: &Vm, builder: MemoryBuilder) -> Result<Taken, Error> {
    let memory = Arc::new(Mutex::new(Some(builder)));
    let shared = Arc::clone(&memory);
    let write = move |offset, bytes: &[u8]| match &mut *shared
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(builder) => builder.write(offset, bytes).map_err(io::Error::other),
        None => Err(io::Error::other("the copy was given up")),
    };
    match vm.save_live(write.clone()) {
        Ok((state, copy, paused)) => Ok(Taken {
            state,
            memory,
            copy: Some(copy),
            paused,
        }),
        Err(LiveSaveError::Mark(error)) => {
            tracing::debug!(
                error = &*error as &dyn std::error::Error,
                "copying while paused"
            );
            let start = Instant::now();
            vm.pause().map_err(ended)?;
            let state = vm.save();
            let copied = vm.changed_memory(write);
            vm.resume().map_err(ended)?;
            copied.map_err(no_room)?;
            Ok(Taken {
                state: state.map_err(failed)?,
                memory,
                copy: None,
                paused: start.elapsed(),
            })
        }
        Err(LiveSaveError::Ended(error)) => Err(ended(error)),
        Err(error) => Err(failed(error)),
    }
}

fn ended(error: Ended) -> Error {
    Error::because(
        ErrorKind::GuestDied,
        "the guest's state cannot be taken",
        error,
    )
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::because(ErrorKind::Internal, "cannot take the guest's state", error)
}

pub(crate) fn restore_error(error: RestoreError) -> Error {
    let kind = match &error {
        RestoreError::Invalid(_) => ErrorKind::InvalidRequest,
        _ => ErrorKind::HostUnsupported,
    };
    Error::because(kind, "this host cannot run the template", error)
}
