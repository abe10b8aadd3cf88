//! The worker's VM.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use ember_snapshot::format::{decode_state, encode_state};
use ember_snapshot::memory::MemoryBuilder;
use ember_snapshot::pager::PagerOptions;
use ember_snapshot::{PageSet, WorkingSet};
use ember_vmm::devices::serial::ConsoleConfig;
use ember_vmm::devices::virtio::balloon::BalloonConfig;
use ember_vmm::devices::virtio::block::BlockConfig;
use ember_vmm::devices::virtio::vsock::{ConnectError, GivenEnds, VsockConfig};
use ember_vmm::kernel::KernelImage;
use ember_vmm::{
    Backing, BuildError, Checkpoint, Hypervisor, LiveSaveError, MemoryCopy, RestoreConfig,
    RestoreError, Vm, VmConfig, is_exhausted,
};

use super::serve::{Files, Owner};
use crate::protocol::{
    Answer, Boot, CONSOLE_BYTES, Disk, MAX_STATE, Message, Port, Refusal, RefusalKind, Request,
    Restore,
};
use crate::wire;

/// The longest initramfs. Whether the guest has room for it is found out by who builds the VM.
const MAX_INITRAMFS: u64 = 1 << 30;

/// The VM, and copies of its memory that are under way.
#[derive(Debug)]
pub(super) struct Machine {
    owner: Owner,
    vm: Vm,
    copies: HashMap<u32, MemoryCopy>,
}

impl Machine {
    /// A VM that boots.
    pub(super) fn boot(owner: Owner, boot: &Boot, mut files: Files) -> Result<Self, Refusal> {
        let hypervisor = hypervisor(&mut files)?;
        let kernel =
            KernelImage::from_file(files.file()?).map_err(refused(RefusalKind::Invalid))?;
        let initramfs = wire::read_whole_file(&files.file()?, MAX_INITRAMFS)
            .map_err(refused(RefusalKind::Invalid))?;
        let mut config = VmConfig::new(kernel);
        config.hypervisor = Some(hypervisor);
        config.vcpus = boot.vcpus;
        config.memory_bytes = boot.memory_bytes;
        config.initramfs = initramfs.into();
        config.command_line.clone_from(&boot.command_line);
        config.console = console(&owner);
        config.vsock = Some(VsockConfig {
            given: GivenEnds::one(boot.port, UnixStream::from(files.next()?)),
            ..VsockConfig::default()
        });
        config.disks = disks(&boot.disks, &mut files)?;
        config.balloon = boot.balloon.then(BalloonConfig::default);
        config.generation_id = boot.generation_id;
        let vm = Vm::new(config).map_err(|error| build_refusal(&error))?;
        Ok(Self::watched(owner, vm))
    }

    /// A VM that goes on.
    pub(super) fn restore(
        owner: Owner,
        restore: &Restore,
        mut files: Files,
    ) -> Result<Self, Refusal> {
        let hypervisor = hypervisor(&mut files)?;
        let state = wire::read_whole_file(&files.file()?, MAX_STATE)
            .map_err(refused(RefusalKind::Internal))?;
        let state = decode_state(&state).map_err(refused(RefusalKind::Internal))?;
        let memory = Arc::new(files.file()?);
        let given = GivenEnds::one(restore.port, UnixStream::from(files.next()?));
        let backing = match restore.window_pages {
            None => Backing::Mapped,
            Some(window_pages) => Backing::Paged {
                source: Arc::clone(&memory) as _,
                options: PagerOptions {
                    window_pages,
                    ..PagerOptions::default()
                },
            },
        };
        let config = RestoreConfig {
            console: console(&owner),
            disks: disks(&restore.disks, &mut files)?,
            vsock: VsockConfig {
                carried_ports: vec![restore.port],
                given,
                ..VsockConfig::default()
            },
            backing,
            mergeable: restore.mergeable,
            ..RestoreConfig::default()
        };
        let checkpoint = Checkpoint::with(hypervisor, state, memory).map_err(|error| {
            refused(match &error {
                RestoreError::Invalid(_) => RefusalKind::Invalid,
                _ => RefusalKind::Host,
            })(error)
        })?;
        let vm = Vm::restore(&checkpoint, config).map_err(|error| build_refusal(&error))?;
        Ok(Self::watched(owner, vm))
    }

    /// Has the owner told when the VM ends.
    fn watched(owner: Owner, vm: Vm) -> Self {
        let console = vm.console();
        let told = owner.clone();
        vm.on_exit(Box::new(move |reason| {
            let mut console = console.tail();
            console.drain(..console.len().saturating_sub(CONSOLE_BYTES));
            told.tell(&Message::Ended {
                reason: reason.clone(),
                console: console.into(),
            });
        }));
        Self {
            owner,
            vm,
            copies: HashMap::new(),
        }
    }

    /// Does what the call `id` asks for. `None`: its answer comes later.
    pub(super) fn handle(
        &mut self,
        id: u32,
        request: &Request,
        mut files: Files,
    ) -> Result<Option<Answer>, Refusal> {
        let ended = refused::<ember_vmm::Ended>(RefusalKind::Ended);
        match request {
            Request::Start { generation_id } => {
                if let (Some(new), Some(device)) = (generation_id, self.vm.generation_id()) {
                    device.store(*new).map_err(refused(RefusalKind::Internal))?;
                }
                self.vm.start().map_err(ended)?;
            }
            Request::Announce => {
                if let Some(device) = self.vm.generation_id() {
                    device.announce().map_err(refused(RefusalKind::Internal))?;
                }
            }
            Request::Pause => self.vm.pause().map_err(ended)?,
            Request::Resume => self.vm.resume().map_err(ended)?,
            Request::Prefetch => {
                let bytes = wire::read_whole_file(&files.file()?, MAX_STATE)
                    .map_err(refused(RefusalKind::Internal))?;
                let touched = WorkingSet::decode(&bytes).map_err(refused(RefusalKind::Internal))?;
                self.vm.prefetch(&touched);
            }
            Request::SetBalloon { bytes } => {
                if let Some(balloon) = self.vm.balloon() {
                    balloon.set_target(*bytes);
                }
            }
            Request::Balloon => {
                let bytes = self.vm.balloon().map_or(0, |balloon| balloon.actual());
                return Ok(Some(Answer::Bytes(bytes)));
            }
            Request::Save => return self.save(id, files).map(Some),
            Request::FinishCopy { save } => return self.finish_copy(id, *save),
            Request::DropCopy { save } => drop(self.copies.remove(save)),
            Request::CopiedPages => {
                let pages = self.vm.copied_pages();
                let pages = pages.map_err(refused(RefusalKind::Host))?;
                return pages_answer(&pages, &mut files).map(Some);
            }
            Request::PagedIn => {
                return match self.vm.paged_in() {
                    Some(pages) => pages_answer(&pages, &mut files).map(Some),
                    None => Ok(Some(Answer::Pages { bytes: 0 })),
                };
            }
            Request::Connect { port } => return self.connect(id, *port, files),
            Request::Boot(_) | Request::Restore(_) => {
                let text = "this worker has its VM already";
                return Err(Refusal::new(RefusalKind::Internal, text));
            }
        }
        Ok(Some(Answer::Done))
    }

    /// Opens a stream to a port of the guest's. It is the guest that answers, so that nobody waits
    /// for it here.
    fn connect(&self, id: u32, port: Port, mut files: Files) -> Result<Option<Answer>, Refusal> {
        let end = UnixStream::from(files.next()?);
        let vsock = self.vm.vsock().ok_or_else(|| {
            let text = "the guest has no socket device any more";
            Refusal::new(RefusalKind::Ended, text)
        })?;
        let owner = self.owner.clone();
        let done = move |outcome: Result<(), ConnectError>| {
            let outcome = outcome.map_err(|error| {
                let kind = match &error {
                    ConnectError::Refused { .. } => RefusalKind::Absent,
                    ConnectError::TooManyStreams { .. } => RefusalKind::NoRoom,
                    ConnectError::Host { .. } => RefusalKind::Host,
                    _ => RefusalKind::Ended,
                };
                refused(kind)(error)
            });
            owner.answer(id, outcome.map(|()| Answer::Done));
        };
        vsock
            .connect_given(port, end, Box::new(done))
            .map_err(refused(RefusalKind::Ended))?;
        Ok(None)
    }

    fn save(&mut self, id: u32, mut files: Files) -> Result<Answer, Refusal> {
        let builder =
            MemoryBuilder::from_shared(files.file()?).map_err(refused(RefusalKind::Internal))?;
        let state_file = files.file()?;
        let builder = Arc::new(Mutex::new(builder));
        let sink = move |offset, bytes: &[u8]| {
            let mut builder = builder.lock().unwrap_or_else(PoisonError::into_inner);
            builder.write(offset, bytes).map_err(io::Error::other)
        };
        let saved = self.vm.save_running(sink).map_err(|error| {
            let kind = match &error {
                LiveSaveError::Ended(_) => RefusalKind::Ended,
                LiveSaveError::Copy(_) => RefusalKind::NoRoom,
                _ => RefusalKind::Internal,
            };
            refused(kind)(error)
        })?;
        let state = encode_state(&saved.state).map_err(refused(RefusalKind::Internal))?;
        state_file
            .write_all_at(&state, 0)
            .map_err(refused(RefusalKind::NoRoom))?;
        let copying = saved.copy.is_some();
        self.copies.extend(saved.copy.map(|copy| (id, copy)));
        Ok(Answer::Saved {
            state_bytes: state.len() as u64,
            copying,
            paused: u64::try_from(saved.paused.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// Waits for a copy on a thread of its own: it takes as long as the memory is large, and the
    /// guest may be asked for other things meanwhile.
    fn finish_copy(&mut self, id: u32, save: u32) -> Result<Option<Answer>, Refusal> {
        let copy = self.copies.remove(&save).ok_or_else(|| {
            Refusal::new(RefusalKind::Internal, "there is no copy of that number")
        })?;
        let owner = self.owner.clone();
        let waiter = move || {
            let outcome = copy.wait().map_err(refused(RefusalKind::NoRoom));
            owner.answer(id, outcome.map(|()| Answer::Done));
        };
        thread::Builder::new()
            .name("ember-copy".to_owned())
            .spawn(waiter)
            .map_err(refused(RefusalKind::Host))?;
        Ok(None)
    }
}

fn hypervisor(files: &mut Files) -> Result<Hypervisor, Refusal> {
    Hypervisor::from_file(files.file()?).map_err(refused(RefusalKind::Host))
}

fn disks(described: &[Disk], files: &mut Files) -> Result<Vec<BlockConfig>, Refusal> {
    let disk = |disk: &Disk| {
        Ok(BlockConfig {
            file: files.file()?,
            read_only: disk.read_only,
            serial: disk.serial.clone(),
        })
    };
    described.iter().map(disk).collect()
}

/// The console's output goes to the owner, which keeps the end of it: also of a worker that is
/// killed it can say what its guest had to say.
fn console(owner: &Owner) -> ConsoleConfig {
    let owner = owner.clone();
    ConsoleConfig {
        keep_bytes: CONSOLE_BYTES,
        sink: Some(Box::new(move |bytes| {
            for piece in bytes.chunks(CONSOLE_BYTES) {
                owner.tell(&Message::Console(piece.to_vec().into()));
            }
        })),
    }
}

/// Writes `pages` to the file that came for it.
fn pages_answer(pages: &PageSet, files: &mut Files) -> Result<Answer, Refusal> {
    let bytes = pages.encode();
    let file: File = files.file()?;
    file.write_all_at(&bytes, 0)
        .map_err(refused(RefusalKind::NoRoom))?;
    Ok(Answer::Pages {
        bytes: bytes.len() as u64,
    })
}

fn build_refusal(error: &BuildError) -> Refusal {
    let kind = match error {
        BuildError::Configuration(_) | BuildError::Kernel(_) => RefusalKind::Invalid,
        _ if error.is_exhausted() => RefusalKind::NoRoom,
        _ => RefusalKind::Host,
    };
    Refusal::new(kind, chain(error))
}

/// A refusal for this reason, unless this process or the host has not enough left of something.
fn refused<E: Error + 'static>(kind: RefusalKind) -> impl FnOnce(E) -> Refusal {
    move |error| {
        let is_hosts = !matches!(kind, RefusalKind::Ended | RefusalKind::Absent);
        let kind = match is_hosts && is_exhausted(&error) {
            true => RefusalKind::NoRoom,
            false => kind,
        };
        Refusal::new(kind, chain(&error))
    }
}

/// The message of an error with those of its sources.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
