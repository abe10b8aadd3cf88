//! A VM in a worker.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ember_snapshot::PageSet;
use ember_snapshot::format::decode_state;
use ember_snapshot::memory::MemoryBuilder;
use ember_snapshot::state::VmState;
use ember_vmm::kernel::Initramfs;

use super::error::WorkerError;
use super::link::{Link, Worker};
pub use super::link::{OnExit, Sink};
use super::supervisor::Workers;
use crate::protocol::{
    Answer, Boot, Disk, MAX_STATE, Port, Refusal, RefusalKind, Request, Restore,
};
use crate::wire;

/// How long a worker may take for what it is asked. Far longer than anything takes on a host that
/// still does its work.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest may take to accept a stream: longer than its device gives it.
const CONNECT: Duration = Duration::from_secs(20);
/// How much memory it has to copy in a second, at the very least.
const SLOWEST_COPY: u64 = 16 << 20;

/// A VM that boots in a worker. See [`ember_vmm::VmConfig`] for what is not said here.
pub struct BootConfig {
    /// How many processors it has.
    pub vcpus: u8,
    /// How much memory it has, in bytes.
    pub memory_bytes: u64,
    /// Its kernel: a bzImage or an ELF file. Its position is moved.
    pub kernel: File,
    /// Its initial RAM file system.
    pub initramfs: Initramfs,
    /// Its kernel's command line.
    pub command_line: String,
    /// Its disks.
    pub disks: Vec<DiskConfig>,
    /// Whether it has a balloon.
    pub balloon: bool,
    /// Its first generation id, if it has such a device.
    pub generation_id: Option<[u8; 16]>,
    /// The device's end of the stream that the guest opens to [`port`](Self::port).
    pub channel: UnixStream,
    /// The host's port that its agent calls.
    pub port: Port,
    /// Who gets what it writes on its console as it comes, on a thread for that. What is not taken
    /// in time is lost.
    pub console: Option<Sink>,
}

/// A disk.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// What is on it.
    pub file: Arc<File>,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Its serial number.
    pub serial: String,
}

/// A VM that goes on in a worker. See [`ember_vmm::RestoreConfig`] for what is not said here.
#[derive(Debug)]
pub struct RestoreConfig<'a> {
    /// Its encoded state, in a file that nobody can change. See [`wire::sealed_file`].
    pub state: &'a File,
    /// Its memory, in a file that nobody can change.
    pub memory: &'a File,
    /// How much of it there is, in bytes.
    pub memory_bytes: u64,
    /// Whether it has a balloon.
    pub has_balloon: bool,
    /// Its disks.
    pub disks: Vec<DiskConfig>,
    /// How it gets its memory.
    pub pages: Pages,
    /// See [`ember_vmm::RestoreConfig::mergeable`].
    pub mergeable: bool,
    /// The device's end of the stream that its agent had open to [`port`](Self::port).
    pub channel: UnixStream,
    /// The host's port that its agent had called.
    pub port: Port,
}

/// How a restored VM gets its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// The file is mapped.
    Mapped,
    /// So many pages at a time are read from it when one of them is touched.
    OnDemand {
        /// How many.
        window: u64,
    },
}

/// A VM in a process of its own. Every method can be called from any thread; what asks the worker
/// for something waits for it, and fails when the worker's process ends.
///
/// Dropping it ends the process, and does not wait for that.
#[derive(Debug)]
pub struct RemoteVm {
    worker: Worker,
    memory_bytes: u64,
    has_balloon: bool,
    /// Until its process was reaped, there is who does it.
    _workers: Workers,
}

/// A state that was taken of a VM that goes on.
#[derive(Debug)]
pub struct RemoteSaved {
    /// Everything but the memory.
    pub state: VmState,
    /// The memory that is still being copied, if any is.
    pub copy: Option<RemoteCopy>,
    /// For how long the VM stood still.
    pub paused: Duration,
}

/// A copy of a VM's memory that is being made. Dropping it gives it up.
#[derive(Debug)]
pub struct RemoteCopy {
    link: Arc<Link>,
    save: u32,
    patience: Duration,
    finished: bool,
}

impl RemoteVm {
    /// Makes a VM that boots, in a worker that nobody has used before.
    ///
    /// # Errors
    /// If there is no worker, or it cannot make the VM.
    pub fn boot(workers: &Workers, config: BootConfig) -> Result<Self, WorkerError> {
        let BootConfig {
            vcpus,
            memory_bytes,
            kernel,
            initramfs,
            command_line,
            disks,
            balloon,
            generation_id,
            channel,
            port,
            console,
        } = config;
        let initramfs = wire::sealed_file(initramfs.pieces())
            .map_err(WorkerError::host("hand the initramfs to a worker"))?;
        let request = Request::Boot(Boot {
            vcpus,
            memory_bytes,
            command_line,
            disks: described(&disks),
            balloon,
            generation_id,
            port,
        });
        let mut files = vec![
            workers.kvm(),
            kernel.as_fd(),
            initramfs.as_fd(),
            channel.as_fd(),
        ];
        files.extend(disks.iter().map(|disk| disk.file.as_fd()));
        let vm = Self {
            worker: workers.take()?,
            memory_bytes,
            has_balloon: balloon,
            _workers: workers.clone(),
        };
        if let Some(sink) = console {
            vm.set_sink(sink)?;
        }
        vm.call(request, &files)?;
        Ok(vm)
    }

    /// Makes a VM that goes on, in a worker that nobody has used before.
    ///
    /// # Errors
    /// If there is no worker, or it cannot make the VM.
    pub fn restore(workers: &Workers, config: RestoreConfig<'_>) -> Result<Self, WorkerError> {
        let RestoreConfig {
            state,
            memory,
            memory_bytes,
            has_balloon,
            disks,
            pages,
            mergeable,
            channel,
            port,
        } = config;
        let request = Request::Restore(Restore {
            disks: described(&disks),
            port,
            window_pages: match pages {
                Pages::Mapped => None,
                Pages::OnDemand { window } => Some(window),
            },
            mergeable,
        });
        let mut files = vec![
            workers.kvm(),
            state.as_fd(),
            memory.as_fd(),
            channel.as_fd(),
        ];
        files.extend(disks.iter().map(|disk| disk.file.as_fd()));
        let vm = Self {
            worker: workers.take()?,
            memory_bytes,
            has_balloon,
            _workers: workers.clone(),
        };
        vm.call(request, &files)?;
        Ok(vm)
    }

    fn set_sink(&self, sink: Sink) -> Result<(), WorkerError> {
        let set = self.link().set_sink(sink);
        set.map_err(WorkerError::host("start a thread for a console"))
    }

    fn link(&self) -> &Arc<Link> {
        &self.worker.0
    }

    fn call(&self, request: Request, files: &[BorrowedFd<'_>]) -> Result<Answer, WorkerError> {
        self.link().call(request, files, PATIENCE)
    }

    /// The number of the worker's process.
    pub fn process(&self) -> u32 {
        self.link().process().id()
    }

    /// Lets it run for the first time, with this generation id if it is to have a new one: it is in
    /// its place then, and [announced](Self::announce) later. Does not wait: if it cannot, it ends.
    pub fn start(&self, generation_id: Option<[u8; 16]>) {
        self.link().post(Request::Start { generation_id }, &[]);
    }

    /// Tells the guest that it has another generation id than before. Does not wait.
    pub fn announce(&self) {
        self.link().post(Request::Announce, &[]);
    }

    /// Holds it still.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pause(&self) -> Result<(), WorkerError> {
        self.call(Request::Pause, &[]).map(drop)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resume(&self) -> Result<(), WorkerError> {
        self.call(Request::Resume, &[]).map(drop)
    }

    /// Ends it, now.
    pub fn stop(&self) {
        self.link().stop();
    }

    /// Ends it, and waits until its process is gone.
    pub fn end(&self) {
        self.stop();
        self.link().wait_gone();
    }

    /// Has `callback` called when it ends, at once if it has: on the thread that hears all workers,
    /// so it must be quick.
    pub fn on_exit(&self, callback: OnExit) {
        self.link().on_exit(callback);
    }

    /// Knows what it wrote on its console, also when it is gone.
    pub fn console(&self) -> impl Fn() -> Vec<u8> + Clone + Send + Sync + use<> {
        let link = Arc::clone(self.link());
        move || link.console_tail()
    }

    /// The size of its memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Whether it can be asked for memory.
    pub fn has_balloon(&self) -> bool {
        self.has_balloon
    }

    /// Asks the guest for so many bytes of its memory.
    pub fn set_balloon(&self, bytes: u64) {
        self.link().post(Request::SetBalloon { bytes }, &[]);
    }

    /// How many bytes the guest has given.
    ///
    /// # Errors
    /// If it has ended.
    pub fn balloon(&self) -> Result<u64, WorkerError> {
        match self.call(Request::Balloon, &[])? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(misunderstood(&other)),
        }
    }

    /// Prepares it for touching what the encoded working set in `touched` says. Does not wait: what
    /// is asked for later is done later.
    pub fn prefetch(&self, touched: &File) {
        self.link().post(Request::Prefetch, &[touched.as_fd()]);
    }

    /// Opens a stream to a `port` of the guest's, and returns the host's end when the guest has
    /// accepted. The pair is made here, so that nobody else can change how this end behaves.
    ///
    /// # Errors
    /// [`RefusalKind::Absent`] if nothing in the guest listens there; if it has ended, or does not
    /// answer, as one does not that is paused.
    pub fn connect(&self, port: Port) -> Result<UnixStream, WorkerError> {
        let action = "make a stream to a guest";
        let (ours, theirs) = UnixStream::pair().map_err(WorkerError::host(action))?;
        let request = Request::Connect { port };
        match self
            .link()
            .call_guest(request, &[theirs.as_fd()], CONNECT)?
        {
            Answer::Done => Ok(ours),
            other => Err(misunderstood(&other)),
        }
    }

    /// Takes its state while it goes on. Its memory is written to `memory`, which is complete when
    /// the copy is.
    ///
    /// # Errors
    /// If it has ended, or its state cannot be taken.
    pub fn save(&self, memory: &MemoryBuilder) -> Result<RemoteSaved, WorkerError> {
        let action = "take a guest's state";
        let memory = memory
            .share()
            .map_err(|error| WorkerError::host(action)(std::io::Error::other(error)))?;
        let file = wire::empty_file().map_err(WorkerError::host(action))?;
        let files = [memory.as_fd(), file.as_fd()];
        let (save, answer) = self
            .link()
            .numbered_call(Request::Save, &files, self.copying());
        let answer = answer?;
        let Answer::Saved {
            state_bytes,
            copying,
            paused,
        } = answer
        else {
            return Err(misunderstood(&answer));
        };
        let copy = copying.then(|| RemoteCopy {
            link: Arc::clone(self.link()),
            save,
            patience: self.copying(),
            finished: false,
        });
        let bytes = wire::read_file(&file, state_bytes, MAX_STATE)
            .map_err(WorkerError::host("read a guest's state"))?;
        let state = decode_state(&bytes).map_err(|error| {
            WorkerError::host("read a guest's state")(std::io::Error::other(error))
        })?;
        Ok(RemoteSaved {
            state,
            copy,
            paused: Duration::from_nanos(paused),
        })
    }

    /// How long it may take to copy all of its memory.
    fn copying(&self) -> Duration {
        PATIENCE + Duration::from_secs(self.memory_bytes / SLOWEST_COPY)
    }

    /// How much memory its process has of its own: what the guest has copied or touched, and little
    /// else. It is the kernel's count, and asks nothing of the worker.
    ///
    /// # Errors
    /// If it has ended, or there is no `/proc`.
    pub fn own_memory(&self) -> std::io::Result<u64> {
        self.link().process().own_memory()
    }

    /// Which pages of its memory are no longer what they were when it was made.
    ///
    /// # Errors
    /// If it has ended, or cannot see its own page tables.
    pub fn copied_pages(&self) -> Result<PageSet, WorkerError> {
        let pages = self.pages(Request::CopiedPages)?;
        Ok(pages.unwrap_or_default())
    }

    /// What the guest has touched since it was restored, if its pages come [on
    /// demand](Pages::OnDemand).
    ///
    /// # Errors
    /// If it has ended.
    pub fn paged_in(&self) -> Result<Option<PageSet>, WorkerError> {
        self.pages(Request::PagedIn)
    }

    fn pages(&self, request: Request) -> Result<Option<PageSet>, WorkerError> {
        let action = "read a guest's pages";
        let file = wire::empty_file().map_err(WorkerError::host(action))?;
        match self.call(request, &[file.as_fd()])? {
            Answer::Pages { bytes: 0 } => Ok(None),
            Answer::Pages { bytes } => {
                let bytes =
                    wire::read_file(&file, bytes, MAX_STATE).map_err(WorkerError::host(action))?;
                let pages = PageSet::decode(&bytes);
                let pages = pages
                    .map_err(|error| WorkerError::host(action)(std::io::Error::other(error)))?;
                Ok(Some(pages))
            }
            other => Err(misunderstood(&other)),
        }
    }
}

impl RemoteCopy {
    /// Waits until all is copied.
    ///
    /// # Errors
    /// If it cannot be, or the VM has ended.
    pub fn wait(mut self) -> Result<(), WorkerError> {
        self.finished = true;
        let request = Request::FinishCopy { save: self.save };
        self.link.call(request, &[], self.patience).map(drop)
    }
}

impl Drop for RemoteCopy {
    fn drop(&mut self) {
        if !self.finished {
            self.link.post(Request::DropCopy { save: self.save }, &[]);
        }
    }
}

impl fmt::Debug for BootConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootConfig")
            .field("vcpus", &self.vcpus)
            .field("memory_bytes", &self.memory_bytes)
            .field("command_line", &self.command_line)
            .field("disks", &self.disks.len())
            .finish_non_exhaustive()
    }
}

fn described(disks: &[DiskConfig]) -> Vec<Disk> {
    let describe = |disk: &DiskConfig| Disk {
        read_only: disk.read_only,
        serial: disk.serial.clone(),
    };
    disks.iter().map(describe).collect()
}

/// An answer to another question. The worker has been exposed to its guest.
fn misunderstood(answer: &Answer) -> WorkerError {
    let text = format!("a worker answered with {answer:?} to another question");
    WorkerError::Refused(Refusal::new(RefusalKind::Internal, text))
}
