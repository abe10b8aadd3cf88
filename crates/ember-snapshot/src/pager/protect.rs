//! A copy of what a guest has changed, of one moment, made while the guest goes on.
//!
//! The guest stands still only for the moment itself, and that moment is made short by doing all
//! that takes time before or after it:
//!
//! 1. While the guest runs, all of its memory is protected from writes, a little at a time. From
//!    then on a write makes the guest wait until a thread has noted the page and lifted its
//!    protection. What the guest had changed before that is looked up.
//! 2. The guest stands still. The pages that were noted are protected again: few, if the guest has
//!    not been running for long.
//! 3. The guest goes on, and the thread is started and copies every changed page. A page that the guest wants to
//!    write to comes first; once copied, a page is not protected any more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::PagerError;
use super::bitmap::Bitmap;
use super::changes::ChangeFinder;
use super::mapping::GuestMapping;
use super::sys::{Event, Purpose, Userfault};
use crate::pages::{PageRun, PageSet};

/// How far apart two runs of pages may be to be protected in one call.
///
/// To protect the pages between costs each of them a hundred instructions, and a fault that is
/// resolved at once if the guest writes to it; a call costs thousands, and a flush of the vCPUs'
/// translations.
const GAP_PAGES: u64 = 32;

/// How many pages are protected, or released, in one call while the guest runs, which cannot map
/// any of its memory meanwhile.
const STEP_PAGES: u64 = 256;

/// How many pages are copied before the guest's faults are looked after again.
const BATCH_PAGES: u64 = 32;

/// What is attempted most of all.
const PROTECT: &str = "protect a guest's memory from writes";

/// Where the copy goes: offset within the guest's memory, and content.
type Sink = Box<dyn FnMut(u64, &[u8]) -> io::Result<()> + Send>;

/// What a copy took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// How many pages were copied.
    pub pages: u64,
    /// How many of them the guest waited for, because it wanted to write to them.
    pub waited_for: u64,
}

/// A copy that can begin at any time.
///
/// While this exists, the first write to each page is slow. It should not exist for long.
#[derive(Debug)]
pub struct PreparedCopy {
    thread: Thread,
    finder: ChangeFinder,
}

/// What the thread and its owner share.
#[derive(Debug)]
struct Shared {
    uffd: Userfault,
    /// Tells the thread that the phase is another.
    bell: OwnedFd,
    state: Mutex<State>,
    /// Some of what remains to be copied was.
    advanced: Condvar,
}

struct State {
    phase: Phase,
    /// Pages that were written to since they were protected, before the copy began.
    written: Bitmap,
    /// Pages that remain to be copied.
    remaining: Bitmap,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

enum Phase {
    /// Pages that are written to are noted.
    Tracking,
    /// What remains is to be copied.
    Begun(Sink),
    /// It is being copied.
    Copying,
    /// The copy was given up.
    Stopped,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // It can only fail if the counter is full, and then the thread has been told.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Lets the guest write to the pages of `run`.
    fn release(&self, run: PageRun) -> io::Result<()> {
        match self.uffd.protect(run, false) {
            // In some place something else is mapped meanwhile, which is not protected; the call
            // stops there.
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
                if run.pages() == 1 {
                    self.uffd.wake(run);
                    return Ok(());
                }
                run.pieces(run.pages().div_ceil(2))
                    .try_for_each(|half| self.release(half))
            }
            result => result,
        }
    }
}

/// The thread, which ends when this is dropped.
#[derive(Debug)]
struct Thread {
    shared: Arc<Shared>,
    handle: Option<JoinHandle<io::Result<CopyStats>>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.shared.state().phase = Phase::Stopped;
            self.shared.ring();
            // Its panics were caught.
            let _ = handle.join();
        }
    }
}

impl PreparedCopy {
    /// Gets ready to copy what the guest has changed of `mapping`, while the guest runs.
    ///
    /// From here until the copy is [done](ProtectedCopy::wait), nothing may discard any of the
    /// memory or map something else in its place, unless it has waited for
    /// [those pages](ProtectedCopy::settle).
    pub fn new(mapping: GuestMapping) -> Result<Self, PagerError> {
        Self::with(mapping, true)
    }

    /// As [`new`](Self::new), without what only kernels since 6.4 can do.
    #[doc(hidden)]
    pub fn without_unpopulated(mapping: GuestMapping) -> Result<Self, PagerError> {
        Self::with(mapping, false)
    }

    fn with(mapping: GuestMapping, everywhere: bool) -> Result<Self, PagerError> {
        let all = mapping.pages();
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(PagerError::io("create an eventfd"))?;
        let finder = ChangeFinder::new(&mapping)?;
        let shared = Arc::new(Shared {
            uffd: Userfault::register(mapping, Purpose::WriteProtect { everywhere })?,
            bell,
            state: Mutex::new(State {
                phase: Phase::Tracking,
                written: Bitmap::below(all.end()),
                remaining: Bitmap::below(all.end()),
            }),
            advanced: Condvar::new(),
        });
        let worker = shared.clone();
        let handle = std::thread::Builder::new()
            .name("ember-copy".to_owned())
            .spawn(move || work(&worker))
            .map_err(PagerError::io("start a thread"))?;
        let thread = Thread {
            shared,
            handle: Some(handle),
        };
        // Now that somebody looks after those who wait.
        let shared = &thread.shared;
        for step in all.runs().iter().flat_map(|run| run.pieces(STEP_PAGES)) {
            shared
                .uffd
                .protect(step, true)
                .map_err(PagerError::io(PROTECT))?;
        }
        // In this order: what is written to from now on is noted.
        let changed = finder.find(shared.uffd.mapping())?;
        let mut state = shared.state();
        changed
            .runs()
            .iter()
            .for_each(|run| state.remaining.insert(*run));
        drop(state);
        Ok(Self { thread, finder })
    }

    /// Begins the copy of this moment, in which nobody may be writing to the memory. When this
    /// returns, the guest can go on: what `sink` gets is what the pages contain now.
    ///
    /// `sink` gets every [changed page](ProtectedCopy::pages) once, in any order and several at a
    /// time, from a thread. That [starts](ProtectedCopy::start) when it is told to, so that it takes
    /// no processor away from who lets the guest go on, or when the guest waits for a page.
    pub fn begin(
        self,
        sink: impl FnMut(u64, &[u8]) -> io::Result<()> + Send + 'static,
    ) -> Result<ProtectedCopy, PagerError> {
        let shared = &self.thread.shared;
        let mut state = shared.state();
        if !matches!(state.phase, Phase::Tracking) {
            return Err(PagerError::Io {
                action: "note what a guest writes to",
                source: io::Error::other("the thread has ended"),
            });
        }
        // What has been brought into being since by a write is not always noted.
        if !shared.uffd.protects_everywhere() {
            for run in self.finder.find(shared.uffd.mapping())?.runs() {
                state.written.insert(*run);
            }
        }
        for run in with_gaps_closed(&state.written.pages()) {
            // If it fails, to drop the descriptor lifts all protection.
            shared
                .uffd
                .protect(run, true)
                .map_err(PagerError::io(PROTECT))?;
        }
        let written = std::mem::take(&mut state.written);
        state.remaining.insert_all(&written);
        let all = state.remaining.clone();
        state.phase = Phase::Begun(Box::new(sink));
        drop(state);
        Ok(ProtectedCopy {
            thread: self.thread,
            all,
        })
    }
}

/// A copy of a guest's memory under way. Dropping it gives the copy up; the guest goes on.
#[derive(Debug)]
pub struct ProtectedCopy {
    thread: Thread,
    all: Bitmap,
}

impl ProtectedCopy {
    /// The pages that are copied: all that the guest has changed.
    pub fn pages(&self) -> PageSet {
        self.all.pages()
    }

    /// Starts the copying: best when the guest goes on.
    pub fn start(&self) {
        self.thread.shared.ring();
    }

    /// Waits until everything is copied.
    ///
    /// # Errors
    /// What `sink` said. The guest is none the worse for it.
    pub fn wait(mut self) -> io::Result<CopyStats> {
        self.start();
        let ended = || io::Error::other("the thread that copies a guest's memory is gone");
        let handle = self.thread.handle.take().ok_or_else(ended)?;
        handle.join().unwrap_or_else(|_| Err(ended()))
    }

    /// Whether there is nothing left to copy.
    pub fn is_done(&self) -> bool {
        self.thread.shared.state().remaining.is_empty()
    }

    /// Waits until no page of `run` remains to be copied: from then on it may be discarded.
    pub fn settle(&self, run: PageRun) {
        self.start();
        let shared = &self.thread.shared;
        let mut state = shared.state();
        while state.remaining.intersects(run) {
            let waited = shared.advanced.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The runs to protect so that all of `pages` are: close ones are made one.
fn with_gaps_closed(pages: &PageSet) -> Vec<PageRun> {
    let mut closed: Vec<PageRun> = Vec::new();
    for run in pages.runs() {
        let joined = closed
            .last()
            .filter(|last| run.start() - last.end() <= GAP_PAGES)
            .and_then(|last| PageRun::new(last.start(), run.end() - last.start()));
        match (closed.last_mut(), joined) {
            (Some(last), Some(joined)) => *last = joined,
            _ => closed.push(*run),
        }
    }
    closed
}

/// The thread.
fn work(shared: &Shared) -> io::Result<CopyStats> {
    let mut copier = Copier {
        shared,
        faults: VecDeque::new(),
        buffer: Vec::new(),
        stats: CopyStats::default(),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| copier.run()));
    // However it ended, nobody is left waiting: neither the guest, nor who wants to discard.
    let all = shared.uffd.mapping().pages();
    let mut steps = all.runs().iter().flat_map(|run| run.pieces(STEP_PAGES));
    let released = steps.try_for_each(|step| shared.release(step));
    *shared.state() = State {
        phase: Phase::Stopped,
        written: Bitmap::default(),
        remaining: Bitmap::default(),
    };
    shared.advanced.notify_all();
    let panicked = io::Error::other("what a guest's memory is copied to panicked");
    outcome
        .unwrap_or(Err(panicked))
        .and_then(|()| released.map(|()| copier.stats))
}

struct Copier<'a> {
    shared: &'a Shared,
    /// Pages that the guest waits for.
    faults: VecDeque<u64>,
    buffer: Vec<u8>,
    stats: CopyStats,
}

impl Copier<'_> {
    fn run(&mut self) -> io::Result<()> {
        let Some(mut sink) = self.track()? else {
            return Ok(());
        };
        let pages = self.shared.state().remaining.pages();
        for batch in pages.runs().iter().flat_map(|run| run.pieces(BATCH_PAGES)) {
            if matches!(self.shared.state().phase, Phase::Stopped) {
                return Err(io::Error::other("the copy was given up"));
            }
            // The guest first.
            self.take_faults()?;
            while let Some(page) = self.faults.pop_front() {
                self.resolve(page, &mut sink)?;
                self.take_faults()?;
            }
            let rest = self.shared.state().remaining.within(batch);
            for run in rest.runs() {
                self.copy(*run, &mut sink)?;
            }
        }
        Ok(())
    }

    /// Notes which pages are written to, until the copy begins. `None` if it never does.
    fn track(&mut self) -> io::Result<Option<Sink>> {
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(self.shared.uffd.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.shared.bell.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.take_faults()?;
            // A page is noted and released in one step, so that none is released, but not noted,
            // when the moment comes.
            let mut state = self.shared.state();
            match std::mem::replace(&mut state.phase, Phase::Copying) {
                Phase::Tracking => state.phase = Phase::Tracking,
                Phase::Begun(sink) => return Ok(Some(sink)),
                Phase::Copying | Phase::Stopped => {
                    state.phase = Phase::Stopped;
                    return Ok(None);
                }
            }
            while let Some(page) = self.faults.pop_front() {
                if let Some(run) = PageRun::new(page, 1) {
                    state.written.insert(run);
                    self.shared.release(run)?;
                }
            }
        }
    }

    fn take_faults(&mut self) -> io::Result<()> {
        let faults = &mut self.faults;
        self.shared.uffd.events(|event| {
            if let Event::Fault(page) = event {
                faults.push_back(page);
            }
        })?;
        Ok(())
    }

    /// Lets the guest write to `page`.
    fn resolve(&mut self, page: u64, sink: &mut Sink) -> io::Result<()> {
        let Some(run) = PageRun::new(page, 1) else {
            return Ok(());
        };
        if self.shared.state().remaining.contains(page) {
            self.stats.waited_for += 1;
            return self.copy(run, sink);
        }
        // It was copied since, or it is none that was changed before.
        self.shared.release(run)
    }

    /// Copies the pages of `run`, which remain, and lets the guest write to them.
    fn copy(&mut self, run: PageRun, sink: &mut Sink) -> io::Result<()> {
        self.shared.uffd.mapping().read(run, &mut self.buffer);
        sink(run.offset(), &self.buffer)?;
        self.shared.release(run)?;
        self.stats.pages += run.pages();
        self.shared.state().remaining.remove(run);
        self.shared.advanced.notify_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_close_to_each_other_are_protected_as_one() {
        let set = |runs: &[(u64, u64)]| -> PageSet {
            let run = |&(start, pages): &(u64, u64)| PageRun::new(start, pages).unwrap();
            runs.iter().map(run).collect()
        };
        let far = 100 + GAP_PAGES + 1;
        let closed = with_gaps_closed(&set(&[(0, 1), (5, 1), (20, 80), (far, 1)]));
        assert_eq!(set(&[(0, 100), (far, 1)]).runs(), closed);
        assert_eq!(with_gaps_closed(&PageSet::new()), []);
    }
}
