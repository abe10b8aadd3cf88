//! Memory that is filled when it is first touched.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::PagerError;
use super::mapping::GuestMapping;
use super::sys::{Event, Filled, Purpose, Userfault};
use crate::pages::{PageRun, PageSet};
use crate::source::PageSource;

/// What a pager does with the pages that it can fill no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterFailure {
    /// They read as zeroes. The guest has to be stopped before: when the callback returns, nothing
    /// of it may run any more.
    #[default]
    Zeroes,
    /// Whoever touches them gets SIGBUS, or EFAULT from a system call: for a process that has one
    /// guest and ends with it. Before Linux 6.6 it is as with `Zeroes`.
    Poison,
}

/// How a pager works.
#[derive(Clone, Copy, Debug)]
pub struct PagerOptions {
    /// How many pages are filled at once, if they are not there yet: those around the one that was
    /// touched. Each of them is memory of this guest.
    pub window_pages: u64,
    /// What becomes of the pages that cannot be filled.
    pub after_failure: AfterFailure,
}

impl Default for PagerOptions {
    fn default() -> Self {
        Self {
            window_pages: 16,
            after_failure: AfterFailure::default(),
        }
    }
}

/// Why a pager gave up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagerFailure {
    /// The source did not give a page.
    #[error("the memory of the guest could not be read at offset {offset:#x}")]
    Source {
        /// Where the pages begin that were to be read.
        offset: u64,
        /// Why not.
        #[source]
        reason: io::Error,
    },
    /// The operating system refused to fill a page.
    #[error("a page of the guest could not be filled")]
    Fill(#[source] io::Error),
    /// There is a mistake in the source, or in the pager.
    #[error("the thread that fills the guest's memory panicked: {0}")]
    Panicked(String),
}

/// Fills a guest's memory on demand, with a thread of its own.
///
/// Dropping it leaves the memory as it is, and pages that were not filled become zero: it has to
/// live as long as the guest runs.
#[derive(Debug)]
pub struct Pager {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the pager share.
#[derive(Debug)]
struct Shared {
    stop: OwnedFd,
    filled: Mutex<PageSet>,
}

impl Pager {
    /// Puts `mapping`, which is anonymous memory that nobody has touched, in charge of a new
    /// thread. What is touched from now on has the content that `source` has at its offset.
    ///
    /// `on_failure` is called once, from that thread, if a page cannot be filled; whoever waits for
    /// one goes on only when it has returned. It has to see to it that the guest does not run any
    /// more: its vCPUs may be waiting in `KVM_RUN`, which a signal gets them out of.
    ///
    /// Memory that is discarded (`MADV_DONTNEED`) reads as zeroes afterwards.
    pub fn start(
        mapping: GuestMapping,
        source: impl PageSource + 'static,
        options: PagerOptions,
        on_failure: impl FnOnce(PagerFailure) + Send + 'static,
    ) -> Result<Self, PagerError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(PagerError::io("create an eventfd"))?;
        let shared = Arc::new(Shared {
            stop,
            filled: Mutex::new(PageSet::new()),
        });
        let worker = Worker {
            uffd: Userfault::register(mapping, Purpose::Missing)?,
            source: Box::new(source),
            options,
            shared: shared.clone(),
            removed: PageSet::new(),
            waiting: VecDeque::new(),
            buffer: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("ember-pager".to_owned())
            .spawn(move || worker.run(on_failure))
            .map_err(PagerError::io("start a thread"))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The pages that were filled so far: what the guest touched, and the windows around it.
    pub fn filled(&self) -> PageSet {
        let filled = self.shared.filled.lock();
        filled.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // It can only fail if the counter is full, and then the thread has been told.
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and reported.
            let _ = thread.join();
        }
    }
}

/// The thread's half.
struct Worker {
    uffd: Userfault,
    source: Box<dyn PageSource>,
    options: PagerOptions,
    shared: Arc<Shared>,
    /// Pages that were given back. They stay zero.
    removed: PageSet,
    /// Pages that somebody waits for.
    waiting: VecDeque<u64>,
    buffer: Vec<u8>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("uffd", &self.uffd)
            .finish_non_exhaustive()
    }
}

impl Worker {
    fn run(mut self, on_failure: impl FnOnce(PagerFailure)) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let failure = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure,
            Err(panic) => PagerFailure::Panicked(panic_message(panic.as_ref())),
        };
        // Who waits must never be left waiting, so the owner's panics are not let through either:
        // what follows, and at the end the drop of the descriptor, lets everybody go.
        let _ = catch_unwind(AssertUnwindSafe(|| on_failure(failure)));
        if self.options.after_failure == AfterFailure::Poison {
            self.poison();
        }
    }

    /// Fills pages until the pager is dropped.
    fn serve(&mut self) -> Result<(), PagerFailure> {
        loop {
            let stop = &self.shared.stop;
            let mut fds = [
                PollFd::from_borrowed_fd(self.uffd.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(PagerFailure::Fill(error.into())),
            }
            let [events, stop] = fds.map(|fd| fd.revents());
            if stop.contains(PollFlags::IN) {
                return Ok(());
            }
            if events.intersects(PollFlags::ERR | PollFlags::HUP) {
                return Err(PagerFailure::Fill(io::ErrorKind::BrokenPipe.into()));
            }
            self.take_events()?;
            while let Some(page) = self.waiting.pop_front() {
                self.fill_around(page)?;
            }
        }
    }

    /// Takes all events that there are. Says whether there was any.
    fn take_events(&mut self) -> Result<bool, PagerFailure> {
        let Self {
            uffd,
            waiting,
            removed,
            ..
        } = self;
        let mut any = false;
        while uffd
            .events(|event| match event {
                Event::Fault(page) => waiting.push_back(page),
                Event::Removed(run) => removed.insert(run),
            })
            .map_err(PagerFailure::Fill)?
        {
            any = true;
        }
        Ok(any)
    }

    /// Fills `page`, and what is missing around it.
    fn fill_around(&mut self, page: u64) -> Result<(), PagerFailure> {
        if self.removed.contains(page) {
            let Some(run) = PageRun::new(page, 1) else {
                return Ok(());
            };
            return self.repeat(page, run, Userfault::zero);
        }
        let Some(window) = self.window(page) else {
            return Ok(());
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(usize::try_from(window.bytes()).unwrap_or(0), 0);
        self.source
            .read_at(window.offset(), &mut buffer)
            .map_err(|reason| PagerFailure::Source {
                offset: window.offset(),
                reason,
            })?;
        self.repeat(page, window, |uffd, rest| {
            let start = usize::try_from(rest.offset() - window.offset()).unwrap_or(usize::MAX);
            uffd.fill(rest.start(), buffer.get(start..).unwrap_or_default())
        })?;
        self.buffer = buffer;
        Ok(())
    }

    /// The pages to fill when `page` is touched: it, and those on both sides that are not there,
    /// up to the borders of its window and of its part of the mapping.
    fn window(&self, page: u64) -> Option<PageRun> {
        let size = self.options.window_pages.max(1);
        let window = PageRun::new(page - page % size, size)?;
        let parts = self.uffd.mapping().within(window).map(|part| part.run);
        let part = parts
            .into_iter()
            .find(|part| (part.start()..part.end()).contains(&page))?;
        let filled = self.shared.filled.lock();
        let filled = filled.unwrap_or_else(PoisonError::into_inner);
        let missing = |page: &u64| !filled.contains(*page) && !self.removed.contains(*page);
        // A page that somebody waits for is not there, whatever is remembered of it.
        let below = (part.start()..page).rev().take_while(missing).count() as u64;
        let above = (page + 1..part.end()).take_while(missing).count() as u64;
        PageRun::new(page - below, below + 1 + above)
    }

    /// Calls `fill` with what is left of `run` until all of it is there. If memory is given back
    /// meanwhile, `page` is put off instead.
    fn repeat(
        &mut self,
        page: u64,
        run: PageRun,
        fill: impl Fn(&Userfault, PageRun) -> io::Result<Filled>,
    ) -> Result<(), PagerFailure> {
        let mut next = run.start();
        while let Some(rest) = PageRun::new(next, run.end().saturating_sub(next)) {
            // Held until it is noted, so that who was woken finds it noted.
            let filled = self.shared.filled.lock();
            let mut filled = filled.unwrap_or_else(PoisonError::into_inner);
            let done = match fill(&self.uffd, rest).map_err(PagerFailure::Fill)? {
                Filled::Pages(pages) => pages.max(1),
                Filled::Exists => {
                    // Somebody else's fault brought it; who waits for it has to be told.
                    if let Some(first) = PageRun::new(next, 1) {
                        self.uffd.wake(first);
                    }
                    1
                }
                // The process takes the memory away, or ends.
                Filled::Gone => return Ok(()),
                Filled::Changing => {
                    drop(filled);
                    // That goes on once its event was read. From then on those pages have to be
                    // zero, so what to fill is a new question.
                    if !self.take_events()? {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                    self.waiting.push_front(page);
                    return Ok(());
                }
            };
            if let Some(now) = PageRun::new(next, done) {
                filled.insert(now);
            }
            next += done;
        }
        Ok(())
    }

    /// Makes every page that is not there an error for whoever touches it.
    fn poison(&mut self) {
        for run in self.uffd.mapping().pages().runs().to_vec() {
            let mut next = run.start();
            while let Some(rest) = PageRun::new(next, run.end().saturating_sub(next)) {
                match self.uffd.poison(rest) {
                    Some(Ok(Filled::Pages(pages))) => next += pages.max(1),
                    Some(Ok(Filled::Exists)) => next += 1,
                    Some(Ok(Filled::Changing)) if self.take_events().is_ok() => {}
                    // What is left becomes zero.
                    Some(Ok(Filled::Changing | Filled::Gone) | Err(_)) | None => return,
                }
            }
        }
    }
}

/// What was said when somebody panicked.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let owned = || panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(owned)
        .unwrap_or("for an unknown reason")
        .to_owned()
}
