//! The VM generation id: 16 bytes in guest memory that change when the guest became another one
//! ("Virtual Machine Generation ID", Microsoft 2012; Linux `drivers/virt/vmgenid.c`), and the
//! interrupt that says so.

use std::io;
use std::sync::Arc;

use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::layout::GENERATION_ID;
use crate::memory::GuestMemory;

/// Tells a guest that it is a new one. A clone is another handle.
#[derive(Clone, Debug)]
pub struct GenerationId {
    memory: GuestMemory,
    line: Arc<EventFd>,
}

impl GenerationId {
    /// Puts the first id into guest memory, without an interrupt: nobody runs yet.
    pub(crate) fn new(memory: GuestMemory, first: [u8; 16]) -> io::Result<Self> {
        let device = Self::restore(memory)?;
        device.store(first)?;
        Ok(device)
    }

    /// The device of a guest that has an id already. It is in the guest's memory, and all there is
    /// to save.
    pub(crate) fn restore(memory: GuestMemory) -> io::Result<Self> {
        Ok(Self {
            memory,
            line: Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?),
        })
    }

    /// The eventfd that raises the device's interrupt line.
    pub(crate) fn interrupt_line(&self) -> &EventFd {
        &self.line
    }

    /// Gives the guest a new id and announces it. The guest's kernel reseeds its random number
    /// generator from it; the time between the write and the end of its handler is not covered.
    ///
    /// # Errors
    /// If the guest's memory has no place for it, which a VM that was built has.
    pub fn set(&self, id: [u8; 16]) -> io::Result<()> {
        self.store(id)?;
        self.announce()
    }

    /// Gives the guest a new id. Whoever reads it there sees it from now on; nobody is told before
    /// [`announce`](Self::announce).
    ///
    /// # Errors
    /// As for [`set`](Self::set).
    pub fn store(&self, id: [u8; 16]) -> io::Result<()> {
        self.memory
            .write_slice(&id, GENERATION_ID)
            .map_err(io::Error::other)
    }

    /// Tells the guest that it has a new id.
    ///
    /// # Errors
    /// If the host refuses to raise the interrupt.
    pub fn announce(&self) -> io::Result<()> {
        self.line.write(1)
    }
}
