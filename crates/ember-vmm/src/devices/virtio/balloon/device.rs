//! The balloon device: a queue each for pages that enter the balloon, that leave it, and that are
//! reported free.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ember_snapshot::state::{BalloonState, DeviceState};
use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_sys_util::epoll::EventSet;

use super::give_back::give_back;
use super::pages::{PageRange, coalesce, whole_pages};
use super::{BalloonConfig, BalloonHandle};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::queue::{Active, EVENT_IDX, QueueError, Turn, Turns};
use crate::devices::virtio::{ActivateError, Activation, RestoreError, VirtioDevice, config_space};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

// Feature bits (specification section 5.5.3).
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The queues for statistics and hints have the numbers before this one, but only queues of
/// features that were offered are counted.
const REPORTING: usize = 2;
/// Linux reports up to 32 ranges at once and needs a queue that holds them.
const QUEUE_SIZES: [u16; 3] = [128; 3];

/// The most bytes of page numbers in one request: 64 MiB of memory. Linux sends 1 KiB at a time.
const MAX_REQUEST: u32 = 64 << 10;
/// So many page numbers are looked at together.
const BATCH: usize = 1024;

/// The offset of `actual` in the configuration space, which the driver writes.
const ACTUAL_OFFSET: u64 = 4;

/// The token of the device's own event.
const TURNS: u32 = 0;
/// The token of the event that the target changed.
const TARGET: u32 = 1;

/// A balloon.
#[derive(Debug)]
pub(crate) struct BalloonDevice {
    config: BalloonConfig,
    shared: Arc<Shared>,
    events: Option<EventRegistry>,
    turns: Turns,
    active: Option<Active>,
}

/// What device and handles have in common.
#[derive(Debug)]
pub(super) struct Shared {
    /// Pages that the balloon should hold.
    pub(super) target: AtomicU32,
    /// Pages that it holds, if the guest says the truth.
    pub(super) actual: AtomicU32,
    /// Bytes given back because the guest reported them.
    pub(super) reported: AtomicU64,
    /// Nothing is given back at the moment.
    pub(super) keep: AtomicBool,
    changed: EventFd,
}

impl Shared {
    /// Lets the device know that the target changed.
    pub(super) fn wake(&self) {
        // Fails only if the counter would overflow, and then the event is raised already.
        let _ = self.changed.write(1);
    }
}

impl BalloonDevice {
    /// An empty balloon, and the way to inflate it.
    pub(crate) fn new(config: BalloonConfig) -> io::Result<(Self, BalloonHandle)> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let shared = Arc::new(Shared {
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            reported: AtomicU64::new(0),
            keep: AtomicBool::new(false),
            changed: EventFd::from_value_and_flags(0, flags)?,
        });
        let handle = BalloonHandle {
            shared: Arc::clone(&shared),
        };
        let device = Self {
            config,
            shared,
            events: None,
            turns: Turns::new()?,
            active: None,
        };
        Ok((device, handle))
    }
}

impl VirtioDevice for BalloonDevice {
    fn name(&self) -> &'static str {
        "balloon"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        let mut features = EVENT_IDX;
        if self.config.deflate_on_oom {
            features |= DEFLATE_ON_OOM;
        }
        if self.config.free_page_reporting {
            features |= PAGE_REPORTING;
        }
        features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        if self.config.free_page_reporting {
            &QUEUE_SIZES
        } else {
            &QUEUE_SIZES[..REPORTING]
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let target = self.shared.target.load(Ordering::SeqCst).to_le_bytes();
        let actual = self.shared.actual.load(Ordering::SeqCst).to_le_bytes();
        config_space::read([target, actual].as_flattened(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_OFFSET, Ok(bytes)) = (offset, data.try_into()) {
            self.shared
                .actual
                .store(u32::from_le_bytes(bytes), Ordering::SeqCst);
        }
    }

    fn attach(&mut self, events: EventRegistry) -> io::Result<()> {
        self.turns.attach(&events, TURNS)?;
        events.add(self.shared.changed.as_fd(), TARGET, EventSet::IN)?;
        self.events = Some(events);
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(Active::new(self.name(), activation, REPORTING)?);
        for index in 0..self.queue_max_sizes().len() {
            self.turns.later(index);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.turns.clear();
        // All pages are the guest's again.
        self.shared.actual.store(0, Ordering::SeqCst);
    }

    fn queue_notified(&mut self, index: usize) {
        let Some(active) = &mut self.active else {
            return;
        };
        let turn = match index {
            INFLATE => {
                let keep = &self.shared.keep;
                active.serve(index, |memory, chain| inflate(memory, chain, keep))
            }
            // The guest takes a page by touching it: there is nothing to do before.
            DEFLATE => active.serve(index, |_, _| Ok(0)),
            REPORTING => {
                let shared = &self.shared;
                active.serve(index, |memory, chain| Ok(report(memory, chain, shared)))
            }
            _ => Turn::Done,
        };
        if turn == Turn::More {
            self.turns.later(index);
        }
    }

    fn host_event(&mut self, token: u32, _readiness: EventSet) {
        match token {
            TURNS => {
                let waiting = self.turns.take();
                for index in 0..QUEUE_SIZES.len() {
                    if waiting & 1 << index != 0 {
                        self.queue_notified(index);
                    }
                }
            }
            TARGET => {
                // Fails only if the event was not raised.
                let _ = self.shared.changed.read();
                if let Some(active) = &self.active {
                    active.interrupt.configuration_changed();
                }
            }
            _ => {}
        }
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(BalloonState {
            target_pages: self.shared.target.load(Ordering::SeqCst),
            actual_pages: self.shared.actual.load(Ordering::SeqCst),
            free_page_reporting: self.config.free_page_reporting,
            deflate_on_oom: self.config.deflate_on_oom,
        })
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Balloon(saved) = saved else {
            return Err(RestoreError::different(
                self.name(),
                "another device was saved",
            ));
        };
        self.config = BalloonConfig {
            free_page_reporting: saved.free_page_reporting,
            deflate_on_oom: saved.deflate_on_oom,
        };
        self.shared
            .target
            .store(saved.target_pages, Ordering::SeqCst);
        self.shared
            .actual
            .store(saved.actual_pages, Ordering::SeqCst);
        Ok(())
    }
}

impl Drop for BalloonDevice {
    fn drop(&mut self) {
        // The handles keep the descriptor open.
        if let Some(events) = &self.events {
            let _ = events.remove(self.shared.changed.as_fd());
        }
    }
}

/// Gives back the pages that `chain` lists by number.
fn inflate(memory: &GuestMemory, chain: &Chain, keep: &AtomicBool) -> Result<u32, QueueError> {
    let length = chain.readable.len();
    if length > MAX_REQUEST {
        return Err(QueueError::Request("too many page numbers at once"));
    }
    let mut numbers = [0u32; BATCH];
    let count = length / 4;
    let mut done = 0;
    while done < count {
        let batch = (count - done).min(BATCH as u32) as usize;
        let numbers = &mut numbers[..batch];
        let mut bytes = [0; BATCH * 4];
        let bytes = &mut bytes[..batch * 4];
        chain
            .readable
            .read(memory, done * 4, bytes)
            .map_err(|_| QueueError::Request("page numbers outside guest memory"))?;
        let (words, _) = bytes.as_chunks();
        for (number, word) in numbers.iter_mut().zip(words) {
            *number = u32::from_le_bytes(*word);
        }
        for range in coalesce(numbers) {
            discard(memory, range, keep);
        }
        done += batch as u32;
    }
    Ok(0)
}

/// Gives back the free memory that `chain` consists of.
fn report(memory: &GuestMemory, chain: &Chain, shared: &Shared) -> u32 {
    for range in chain.writable.iter().filter_map(whole_pages) {
        if discard(memory, range, &shared.keep) {
            shared.reported.fetch_add(range.length, Ordering::SeqCst);
        }
    }
    0
}

/// Gives `range` back if the guest has it. If not, the guest is wrong; if the host refuses, memory
/// is not saved. Neither is a reason to stop.
fn discard(memory: &GuestMemory, range: PageRange, keep: &AtomicBool) -> bool {
    if keep.load(Ordering::SeqCst) {
        return false;
    }
    give_back(memory, range)
        .inspect_err(|error| {
            tracing::debug!(%error, ?range, "guest memory cannot be given back");
        })
        .is_ok()
}
