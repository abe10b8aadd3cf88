//! The thread that starts workers ahead of time, hears what they say and buries them.
//!
//! It is one thread for all workers of a process, because the kernel kills a worker when the thread
//! ends that started it: `PR_SET_PDEATHSIG` means the thread, not the process (prctl(2)). So it lives
//! until the last worker was reaped. It never waits for a worker, but in the kernel for one that has
//! ended.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::error::WorkerError;
use super::link::{Link, Worker};
use super::process::Program;
use crate::{WORKER, wire};

/// How many workers are kept started that nobody has asked for yet. As many more are started as
/// callers wait for.
const STOCK: usize = 2;
/// How long to wait before trying again when the host has no room for a worker.
const RETRY: Duration = Duration::from_millis(100);
/// How many frames of one worker are taken before it is the next one's turn.
const TURN: usize = 16;
/// How many frames of one that has ended are taken: more than a socket holds.
const LAST_WORDS: usize = 1024;
/// How many events are taken at once.
const EVENTS: usize = 64;

/// The workers of this process. A clone is another handle; when the last one is dropped, all workers
/// end that are nobody's, and so does the thread that started them.
#[derive(Clone, Debug)]
pub struct Workers(Arc<Supervisor>);

/// What the handles have in common.
#[derive(Debug)]
struct Supervisor {
    shared: Arc<Shared>,
    kvm: File,
    /// The process that has the thread: a child that was forked off has this value without it.
    process: u32,
}

/// What the handles share with the thread.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: OwnedFd,
}

#[derive(Default)]
struct State {
    /// Started, and nobody's.
    idle: VecDeque<Arc<Link>>,
    /// How many callers wait for one.
    waiting: usize,
    /// How often none could be started, and why the last time.
    failures: u64,
    failure: String,
    /// Nobody has a handle any more.
    closing: bool,
}

/// The workers of this process, if there are any. They belong to the process as a whole, because
/// so does what they are: its children, started by one thread.
static SHARED: Mutex<Weak<Supervisor>> = Mutex::new(Weak::new());

impl Workers {
    /// The workers of this process. They are started in the background.
    ///
    /// # Errors
    /// If there is no usable `/dev/kvm`, or no thread or descriptor to be had.
    pub fn shared() -> Result<Self, WorkerError> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(supervisor) = shared.upgrade()
            && supervisor.process == process::id()
        {
            return Ok(Self(supervisor));
        }
        let supervisor = Arc::new(Supervisor::new(WORKER)?);
        *shared = Arc::downgrade(&supervisor);
        Ok(Self(supervisor))
    }

    /// A worker for the caller alone: one that is ready, or else the next one.
    pub(super) fn take(&self) -> Result<Worker, WorkerError> {
        self.0.shared.take().map(Worker)
    }

    /// The host's KVM.
    pub(super) fn kvm(&self) -> BorrowedFd<'_> {
        self.0.kvm.as_fd()
    }

    /// Workers of their own, of another program.
    #[cfg(test)]
    pub(super) fn of(program: &[u8]) -> Result<Self, WorkerError> {
        Supervisor::new(program).map(|supervisor| Self(Arc::new(supervisor)))
    }

    /// How many are ready.
    #[cfg(test)]
    pub(super) fn ready(&self) -> usize {
        self.0.shared.lock().idle.len()
    }
}

impl Supervisor {
    fn new(program: &[u8]) -> Result<Self, WorkerError> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        let kvm = kvm.map_err(WorkerError::Kvm)?;
        let cannot_start = |error: io::Error| WorkerError::Start(error.to_string());
        let program = Program::new(program).map_err(cannot_start)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake: wake.map_err(io::Error::from).map_err(cannot_start)?,
        });
        let keeper = Keeper::new(program, Arc::clone(&shared)).map_err(cannot_start)?;
        thread::Builder::new()
            .name("ember-workers".to_owned())
            .spawn(move || {
                // The application's handlers are not meant to run here.
                let _ = SigSet::all().thread_block();
                keeper.run();
            })
            .map_err(cannot_start)?;
        Ok(Self {
            shared,
            kvm,
            process: process::id(),
        })
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Shared")
            .field("idle", &state.idle.len())
            .field("waiting", &state.waiting)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn take(&self) -> Result<Arc<Link>, WorkerError> {
        let mut state = self.lock();
        let failures = state.failures;
        state.waiting += 1;
        loop {
            if let Some(link) = state.idle.pop_front() {
                state.waiting -= 1;
                drop(state);
                // There is room for another one.
                self.wake();
                return Ok(link);
            }
            if state.failures != failures || state.closing {
                state.waiting -= 1;
                return Err(WorkerError::Start(state.failure.clone()));
            }
            self.wake();
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake(&self) {
        // It can only fail if the counter is full, and then the thread has been told.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's half.
struct Keeper {
    program: Program,
    shared: Arc<Shared>,
    epoll: OwnedFd,
    /// All workers that were not reaped, by their numbers.
    links: HashMap<u64, Arc<Link>>,
    last: u64,
    /// When to try again to start one.
    retry: Option<Instant>,
}

/// What an event is about: in the lowest bits of its data, below the worker's number.
mod subject {
    pub(super) const WAKE: u64 = 0;
    pub(super) const SOCKET: u64 = 1;
    pub(super) const PROCESS: u64 = 2;
    pub(super) const BITS: u32 = 2;
    pub(super) const MASK: u64 = (1 << BITS) - 1;
}

impl Keeper {
    fn new(program: Program, shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(subject::WAKE);
        epoll::add(&epoll, &shared.wake, data, epoll::EventFlags::IN)?;
        Ok(Self {
            program,
            shared,
            epoll,
            links: HashMap::new(),
            last: 0,
            retry: None,
        })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let timeout = self.fill();
            if self.links.is_empty() && self.shared.lock().closing {
                return;
            }
            let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    // There is no such error for a descriptor of this kind.
                    tracing::error!(%error, "workers can no longer be heard, and are ended");
                    return;
                }
            }
            for event in &events {
                let data = event.data.u64();
                let number = data >> subject::BITS;
                match data & subject::MASK {
                    subject::SOCKET => self.hear(number),
                    subject::PROCESS => self.bury(number),
                    _ => {
                        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
                    }
                }
            }
        }
    }

    /// Starts a worker if there are too few, or ends those that are ready if nobody wants any. Says
    /// how soon there is more to do.
    fn fill(&mut self) -> Option<Duration> {
        let mut state = self.shared.lock();
        if state.closing {
            let idle = std::mem::take(&mut state.idle);
            drop(state);
            idle.iter().for_each(|link| link.stop());
            return None;
        }
        if state.idle.len() >= STOCK + state.waiting {
            return None;
        }
        drop(state);
        let now = Instant::now();
        if let Some(retry) = self.retry.filter(|retry| *retry > now) {
            return Some(retry - now);
        }
        let started = self.start();
        let mut state = self.shared.lock();
        let next = match started {
            Ok(link) => {
                state.idle.push_back(link);
                self.retry = None;
                Duration::ZERO
            }
            Err(error) => {
                state.failures += 1;
                state.failure = error.to_string();
                self.retry = now.checked_add(RETRY);
                RETRY
            }
        };
        drop(state);
        self.shared.changed.notify_all();
        Some(next)
    }

    fn start(&mut self) -> io::Result<Arc<Link>> {
        let (process, socket) = self.program.start()?;
        let link = Arc::new(Link::new(process, socket));
        self.last += 1;
        let number = self.last << subject::BITS;
        let watch = |fd: BorrowedFd<'_>, subject| {
            let data = epoll::EventData::new_u64(number | subject);
            epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)
        };
        let watched = watch(link.process().fd(), subject::PROCESS)
            .and_then(|()| watch(link.socket(), subject::SOCKET));
        if let Err(error) = watched {
            link.process().kill();
            self.forget(&link);
            link.buried(link.process().reap());
            return Err(error.into());
        }
        self.links.insert(self.last, Arc::clone(&link));
        Ok(link)
    }

    /// Takes what a worker has said.
    fn hear(&self, number: u64) {
        let Some(link) = self.links.get(&number) else {
            return;
        };
        for _ in 0..TURN {
            match wire::receive(link.socket(), false, false) {
                Ok(received) if received.frame.is_empty() => {
                    // Its end is at hand, or should be.
                    let _ = epoll::delete(&self.epoll, link.socket());
                    link.process().kill();
                    return;
                }
                Ok(received) => {
                    if let Err(error) = link.take(&received.frame) {
                        link.broken(&error);
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    let _ = epoll::delete(&self.epoll, link.socket());
                    link.broken(&error);
                    return;
                }
            }
        }
    }

    /// A worker has ended.
    fn bury(&mut self, number: u64) {
        let Some(link) = self.links.remove(&number) else {
            return;
        };
        // Its last words: no more than were on their way. Whom it has left its socket to, if it had
        // been taken over, may go on for ever.
        for _ in 0..LAST_WORDS {
            let Ok(received) = wire::receive(link.socket(), false, false) else {
                break;
            };
            if received.frame.is_empty() || link.take(&received.frame).is_err() {
                break;
            }
        }
        self.forget(&link);
        link.buried(link.process().reap());
        let mut state = self.shared.lock();
        state.idle.retain(|idle| !Arc::ptr_eq(idle, &link));
    }

    fn forget(&self, link: &Link) {
        // It fails if that was done before. Who has the link may keep its descriptors open for long.
        let _ = epoll::delete(&self.epoll, link.socket());
        let _ = epoll::delete(&self.epoll, link.process().fd());
    }
}

impl Drop for Keeper {
    /// Whatever ended the thread, nobody may be left waiting, and nothing left behind.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.failure = "the thread that starts them has ended".to_owned();
        state.idle.clear();
        drop(state);
        self.shared.changed.notify_all();
        for (_, link) in self.links.drain() {
            link.process().kill();
            link.buried(link.process().reap());
        }
    }
}
