//! The device thread of a VM: waits for doorbells and host descriptors and hands each to its device.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::thread;

/// How a device has host descriptors watched. Can be used from any thread.
#[derive(Clone, Debug)]
pub(crate) struct EventRegistry {
    epoll: Arc<Epoll>,
    device: u32,
}

impl EventRegistry {
    /// A registry of its own, watched by nobody, for tests that drive a device by hand.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn unwatched(epoll: Arc<Epoll>, device: u32) -> Self {
        Self { epoll, device }
    }

    /// Watches `fd`: whenever it is ready for one of `interest`, the device's `host_event` is
    /// called with `token`. The descriptor must be removed before it is closed.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u32, interest: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), token, interest)
    }

    /// [`Self::add`] for an eventfd of the kind that KVM takes: ready when it was written.
    pub(crate) fn add_eventfd(&self, fd: &EventFd, token: u32) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), token, EventSet::IN)
    }

    /// Changes what a watched descriptor is waited for. An empty interest still reports hang-ups.
    pub(crate) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: u32,
        interest: EventSet,
    ) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd.as_raw_fd(), token, interest)
    }

    /// Stops watching a descriptor.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.control(
            ControlOperation::Delete,
            fd.as_raw_fd(),
            0,
            EventSet::empty(),
        )
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        token: u32,
        interest: EventSet,
    ) -> io::Result<()> {
        let data = (u64::from(self.device) << 32) | u64::from(token);
        self.epoll
            .ctl(operation, fd, EpollEvent::new(interest, data))
    }
}

/// What the device thread calls when something happened.
pub(crate) trait EventHandler: Send + Sync + fmt::Debug {
    /// A descriptor registered under `token` is ready. See [`EventRegistry::add`].
    fn ready(&self, token: u32, readiness: EventSet);
}

/// The number under which the thread's own wake-up is registered.
const CONTROL: u32 = u32::MAX;
/// How many events one wait takes at most.
const BATCH: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Running,
    Paused,
    Stopped,
}

#[derive(Debug)]
struct Control {
    mode: Mutex<ControlState>,
    changed: Condvar,
    wake: EventFd,
}

#[derive(Debug)]
struct ControlState {
    wanted: Mode,
    /// The thread does nothing and will do nothing until the wanted mode changes.
    parked: bool,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, ControlState> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks while paused; says whether to go on.
    fn checkpoint(&self) -> bool {
        let mut state = self.state();
        while state.wanted == Mode::Paused {
            state.parked = true;
            self.changed.notify_all();
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
        state.wanted == Mode::Running
    }

    /// The thread is gone: whoever waits for it to hold still need not wait.
    fn leave(&self) {
        self.state().parked = true;
        self.changed.notify_all();
    }
}

/// The one thread that does the work of all of a VM's devices.
#[derive(Debug)]
pub(crate) struct EventLoop {
    epoll: Arc<Epoll>,
    control: Arc<Control>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EventLoop {
    /// A loop that is not running yet; descriptors can be registered with it.
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new()?);
        let wake = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let control = EventRegistry {
            epoll: Arc::clone(&epoll),
            device: CONTROL,
        };
        control.add_eventfd(&wake, 0)?;
        Ok(Self {
            epoll,
            control: Arc::new(Control {
                mode: Mutex::new(ControlState {
                    wanted: Mode::Running,
                    parked: true,
                }),
                changed: Condvar::new(),
                wake,
            }),
            thread: Mutex::new(None),
        })
    }

    /// The registry of the handler with index `device` in the list that [`Self::start`] gets.
    pub(crate) fn registry(&self, device: u32) -> EventRegistry {
        EventRegistry {
            epoll: Arc::clone(&self.epoll),
            device,
        }
    }

    /// Starts the thread. `failed` is called if it ends without having been stopped.
    pub(crate) fn start(
        &self,
        handlers: Vec<Arc<dyn EventHandler>>,
        failed: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<()> {
        let epoll = Arc::clone(&self.epoll);
        let control = Arc::clone(&self.control);
        let after = Arc::clone(&self.control);
        self.control.state().parked = false;
        let body = move || {
            crate::vcpu::kick::block_application_signals();
            run(&epoll, &control, &handlers);
        };
        let thread = thread::spawn("ember-devices".to_owned(), body, move |what| {
            after.leave();
            failed(what);
        })
        .inspect_err(|_| self.control.leave())?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Returns when the thread works no more, until [`Self::resume`].
    pub(crate) fn pause(&self) {
        self.want(Mode::Paused);
        let mut state = self.control.state();
        while !state.parked {
            state = self
                .control
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the thread go on after [`Self::pause`].
    pub(crate) fn resume(&self) {
        self.want(Mode::Running);
    }

    /// Ends the thread and waits until it is gone. Must not be called by the thread itself.
    pub(crate) fn stop(&self) {
        self.want(Mode::Stopped);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // A panic of the thread was reported where it happened; here only its end counts.
            let _ = thread.join();
        }
    }

    fn want(&self, mode: Mode) {
        let mut state = self.control.state();
        if state.wanted != Mode::Stopped {
            state.wanted = mode;
        }
        drop(state);
        self.control.changed.notify_all();
        let _ = self.control.wake.write(1);
    }
}

fn run(epoll: &Epoll, control: &Control, handlers: &[Arc<dyn EventHandler>]) {
    let mut events = vec![EpollEvent::default(); BATCH];
    while control.checkpoint() {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Only for descriptors or buffers that are not what they are: a bug, reported as one.
            Err(error) => panic!("cannot wait for events: {error}"),
        };
        for event in events.iter().take(count) {
            let device = (event.data() >> 32) as u32;
            let token = (event.data() & 0xffff_ffff) as u32;
            if device == CONTROL {
                let _ = control.wake.read();
            } else if let Some(handler) = handlers.get(device as usize) {
                handler.ready(token, event.event_set());
            }
        }
    }
    control.leave();
}
