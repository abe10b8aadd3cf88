//! From a running guest to a template.

use std::io;
use std::sync::Arc;

use ember_guest::protocol::FreezeOptions;
use ember_snapshot::memory::{MemoryBuilder, MemoryImage};
use ember_vmm::{Checkpoint, RestoreError, Vm};

use super::{Inner, Memory};
use crate::error::{Error, ErrorKind};
use crate::sandbox::Sandbox;

/// Takes the state of `sandbox`, which goes on as if nothing had happened.
pub(crate) async fn capture(sandbox: &Sandbox, options: FreezeOptions) -> Result<Inner, Error> {
    let parts = sandbox.parts()?;
    if let Err(error) = parts.agent.freeze(options).await {
        return Err(sandbox.explain(error).await);
    }
    let vm = Arc::clone(&parts.vm);
    let base = parts.base.cloned();
    let parent = base.clone();
    let taken =
        tokio::task::spawn_blocking(move || take(&vm, base.as_deref().map(Memory::image))).await;
    // Also when it failed: the guest is its owner's.
    if let Err(error) = parts.agent.thaw().await {
        return Err(sandbox.explain(error).await);
    }
    let (checkpoint, memory) = match taken {
        Ok(taken) => taken?,
        Err(error) => {
            let message = "taking a guest's state ended unexpectedly";
            return Err(Error::because(ErrorKind::Internal, message, error));
        }
    };
    Ok(Inner {
        checkpoint,
        memory: Arc::new(Memory::new(memory, parent.as_ref())),
        fixture: parts.fixture.clone(),
        hello: parts.agent.hello().clone(),
        working_set: None,
    })
}

/// Pauses the VM for as long as it takes to copy what it changed.
fn take(vm: &Vm, base: Option<&MemoryImage>) -> Result<(Checkpoint, MemoryImage), Error> {
    vm.pause().map_err(|error| {
        Error::because(ErrorKind::GuestDied, "the guest cannot be paused", error)
    })?;
    let taken = copy(vm, base);
    let resumed = vm.resume();
    let (state, memory) = taken?;
    resumed
        .map_err(|error| Error::because(ErrorKind::GuestDied, "the guest cannot go on", error))?;
    let no_room = |error| {
        let message = "cannot keep a guest's memory";
        Error::because(ErrorKind::Exhausted, message, error)
    };
    let memory = memory.seal().map_err(no_room)?;
    let file = memory
        .file()
        .try_clone()
        .map_err(|error| Error::because(ErrorKind::Exhausted, "cannot keep a memory", error))?;
    let checkpoint = Checkpoint::new(state, Arc::new(file)).map_err(restore_error)?;
    Ok((checkpoint, memory))
}

fn copy(
    vm: &Vm,
    base: Option<&MemoryImage>,
) -> Result<(ember_snapshot::state::VmState, MemoryBuilder), Error> {
    let state = vm.save().map_err(|error| {
        Error::because(ErrorKind::Internal, "cannot take the guest's state", error)
    })?;
    let memory = || -> io::Result<MemoryBuilder> {
        let mut memory = match base {
            Some(base) => MemoryBuilder::from_image(base),
            None => MemoryBuilder::new(state.memory_bytes),
        }
        .map_err(io::Error::other)?;
        vm.changed_memory(|offset, bytes| memory.write(offset, bytes).map_err(io::Error::other))?;
        Ok(memory)
    };
    let memory = memory().map_err(|error| {
        let message = "cannot copy the guest's memory";
        Error::because(ErrorKind::Exhausted, message, error)
    })?;
    Ok((state, memory))
}

pub(crate) fn restore_error(error: RestoreError) -> Error {
    let kind = match &error {
        RestoreError::Invalid(_) => ErrorKind::InvalidRequest,
        _ => ErrorKind::HostUnsupported,
    };
    Error::because(kind, "this host cannot run the template", error)
}
