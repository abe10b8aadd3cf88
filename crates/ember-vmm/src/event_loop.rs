//! The device thread of a VM: waits for doorbells and host descriptors and hands each to its device.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// How a device has host descriptors watched. Can be used from any thread.
#[derive(Clone, Debug)]
pub(crate) struct EventRegistry {
    epoll: Arc<Epoll>,
    device: u32,
}

impl EventRegistry {
    /// A registry for the device with the number `device`.
    pub(crate) fn new(epoll: Arc<Epoll>, device: u32) -> Self {
        Self { epoll, device }
    }

    /// Watches `fd`: whenever it is ready for one of `interest`, the device's `host_event` is
    /// called with `token`. The descriptor must be removed before it is closed.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u32, interest: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, token, interest)
    }

    /// Changes what a watched descriptor is waited for. An empty interest still reports hang-ups.
    pub(crate) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: u32,
        interest: EventSet,
    ) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd, token, interest)
    }

    /// Stops watching a descriptor.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(ControlOperation::Delete, fd, 0, EventSet::empty())
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: BorrowedFd<'_>,
        token: u32,
        interest: EventSet,
    ) -> io::Result<()> {
        let data = (u64::from(self.device) << 32) | u64::from(token);
        self.epoll.ctl(operation, fd.as_raw_fd(), EpollEvent::new(interest, data))
    }
}
