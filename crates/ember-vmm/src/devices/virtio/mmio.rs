//! The virtio transport over MMIO (Virtual I/O Device specification 1.2, section 4.2.2).
//!
//! Register accesses arrive on vCPU threads. The interrupt registers are read and written once for
//! every interrupt, so they do not take the lock that the device thread holds while it works.
//! Doorbells never come here: KVM turns them into eventfd writes (see [`MmioTransport::doorbell`]).

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ember_snapshot::state::{TransportState, VirtioState};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_bindings::virtio_mmio as reg;
use virtio_queue::QueueT;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue;
use super::{Activation, Interrupt, Queue, RestoreError, VirtioDevice};
use crate::event_loop::{EventHandler, EventRegistry};
use crate::memory::GuestMemory;

/// "virt" in little-endian (section 4.2.2, register MagicValue).
const MAGIC: u32 = 0x7472_6976;
/// The only version that is not the legacy interface.
const VERSION: u32 = 2;
/// Any value: no driver looks at it.
const VENDOR: u32 = 0x454d_4252;

/// The token of the doorbell; those below are the device's own.
pub(crate) const DOORBELL_TOKEN: u32 = u32::MAX;

/// Bits of the device status register (section 2.1).
mod status {
    pub(super) const ACKNOWLEDGE: u32 = 1;
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const NEEDS_RESET: u32 = 64;
    pub(super) const FAILED: u32 = 128;
}

/// One virtio device in the guest's MMIO space.
#[derive(Debug)]
pub(crate) struct MmioTransport {
    interrupt_status: Arc<AtomicU32>,
    doorbell: EventFd,
    line: Arc<EventFd>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Interrupt,
    /// The queues while the driver sets them up; they move into the device when it is activated.
    queues: Vec<Queue>,
    status: u32,
    active: bool,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

impl MmioTransport {
    /// Puts `device` behind a transport whose queues live in `memory`.
    pub(crate) fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> io::Result<Self> {
        let interrupt_status = Arc::new(AtomicU32::new(0));
        let line = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let queues = new_queues(device.as_ref())?;
        let doorbell = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let interrupt = Interrupt::new(Arc::clone(&interrupt_status), Arc::clone(&line));
        Ok(Self {
            interrupt_status,
            doorbell,
            line,
            state: Mutex::new(State {
                device,
                memory,
                interrupt,
                queues,
                status: 0,
                active: false,
                device_features_select: 0,
                driver_features_select: 0,
                driver_features: 0,
                queue_select: 0,
            }),
        })
    }

    /// The eventfd of the doorbell: KVM writes it when the driver writes the QueueNotify register.
    /// It is one for all queues. One for each would tell them apart and make every VM take longer
    /// to create; to look at a queue in which nothing is new takes next to no time.
    pub(crate) fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// The eventfd that raises the device's interrupt line.
    pub(crate) fn interrupt_line(&self) -> &EventFd {
        &self.line
    }

    /// Watches the doorbell and lets the device register what else it wants to have watched.
    pub(crate) fn attach(&self, events: &EventRegistry) -> io::Result<()> {
        events.add_eventfd(&self.doorbell, DOORBELL_TOKEN)?;
        self.state().device.attach(events.clone())
    }

    /// Everything about the device, to be saved. The device thread stands still.
    pub(crate) fn save(&self) -> VirtioState {
        let state = self.state();
        let queues = match state.device.active() {
            Some(active) => active.save(),
            None => state
                .queues
                .iter()
                .map(|queue| queue::save_queue(queue, queue.next_used()))
                .collect(),
        };
        VirtioState {
            transport: TransportState {
                status: state.status,
                interrupt_status: self.interrupt_status.load(Ordering::SeqCst),
                active: state.active,
                broken: state.active && state.device.active().is_none(),
                device_features_select: state.device_features_select,
                driver_features_select: state.driver_features_select,
                driver_features: state.driver_features,
                queue_select: state.queue_select,
            },
            queues,
            device: state.device.save(),
        }
    }

    /// Becomes what `saved` says. To be called once, before [`attach`](Self::attach) and before the
    /// VM runs.
    pub(crate) fn restore(&self, saved: &VirtioState) -> Result<(), RestoreError> {
        let mut state = self.state();
        state.device.restore(&saved.device)?;
        let transport = &saved.transport;
        let name = state.device.name();
        if transport.driver_features & !state.offered_features() != 0 {
            return Err(RestoreError::Different {
                device: name,
                why: format!(
                    "the guest uses the features {:#x}, of which this device has only {:#x}",
                    transport.driver_features,
                    state.offered_features()
                ),
            });
        }
        let event_idx = transport.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let sizes = state.device.queue_max_sizes().to_vec();
        if sizes.len() != saved.queues.len() {
            return Err(RestoreError::Queue(sizes.len().min(saved.queues.len())));
        }
        let mut queues = Vec::with_capacity(sizes.len());
        for (index, (size, saved)) in sizes.into_iter().zip(&saved.queues).enumerate() {
            let queue = queue::restore_queue(size, event_idx, saved)
                .filter(|queue| !queue.ready() || queue.is_valid(&state.memory))
                .ok_or(RestoreError::Queue(index))?;
            queues.push(queue);
        }
        state.status = transport.status;
        state.device_features_select = transport.device_features_select;
        state.driver_features_select = transport.driver_features_select;
        state.driver_features = transport.driver_features;
        state.queue_select = transport.queue_select;
        state.active = transport.active;
        self.interrupt_status
            .store(transport.interrupt_status, Ordering::SeqCst);
        if !transport.active {
            state.queues = queues;
        } else if !transport.broken {
            let activation = Activation {
                memory: state.memory.clone(),
                queues,
                interrupt: state.interrupt.clone(),
                features: transport.driver_features,
                announced: saved.queues.iter().map(|queue| queue.announced).collect(),
            };
            state.device.activate(activation)?;
        }
        Ok(())
    }

    /// Raises the interrupt line if the driver has not seen all that it is to see: an interrupt that
    /// was on its way when the device was saved is not part of what was saved.
    pub(crate) fn raise_unseen(&self) {
        if self.interrupt_status.load(Ordering::SeqCst) != 0 {
            // Fails only if the counter would overflow, and then the line is raised already.
            let _ = self.line.write(1);
        }
    }

    fn notified(&self) {
        // Taking the count is what makes the descriptor quiet; a failed read means that another
        // wake-up took it already.
        let _ = self.doorbell.read();
        let mut state = self.state();
        if state.active {
            state.device.notified();
        }
    }

    /// The guest reads `data.len()` bytes at `offset` of the device's window.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= u64::from(reg::VIRTIO_MMIO_CONFIG) {
            let state = self.state();
            state
                .device
                .read_config(offset - u64::from(reg::VIRTIO_MMIO_CONFIG), data);
            return;
        }
        // Registers are 32 bits wide and must be accessed as such (section 4.2.2.2).
        let (Ok(offset), Ok(word)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) else {
            return;
        };
        let value = match offset {
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status.load(Ordering::SeqCst),
            _ => self.state().read_register(offset),
        };
        *word = value.to_le_bytes();
    }

    /// The guest writes `data` at `offset` of the device's window.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        if offset >= u64::from(reg::VIRTIO_MMIO_CONFIG) {
            let mut state = self.state();
            if state.status & status::DRIVER != 0 {
                state
                    .device
                    .write_config(offset - u64::from(reg::VIRTIO_MMIO_CONFIG), data);
            }
            return;
        }
        let (Ok(offset), Ok(word)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            _ => {
                let mut state = self.state();
                state.write_register(offset, value);
                if state.status == 0 {
                    self.interrupt_status.store(0, Ordering::SeqCst);
                }
            }
        }
    }

    /// A panic in a device is a bug that must not spread: the state stays usable for teardown.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventHandler for MmioTransport {
    fn ready(&self, token: u32, readiness: EventSet) {
        match token {
            DOORBELL_TOKEN => self.notified(),
            token => self.state().device.host_event(token, readiness),
        }
    }
}

impl State {
    fn offered_features(&self) -> u64 {
        self.device.features() | (1 << VIRTIO_F_VERSION_1)
    }

    fn selected_queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.queue_select as usize)
    }

    fn read_register(&mut self, offset: u32) -> u32 {
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => {
                feature_word(self.offered_features(), self.device_features_select)
            }
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .device
                .queue_max_sizes()
                .get(self.queue_select as usize)
                .map_or(0, |size| u32::from(*size)),
            reg::VIRTIO_MMIO_QUEUE_READY => {
                let active = self.active;
                // A queue of an active device moved into the device.
                self.selected_queue()
                    .map_or(0, |queue| u32::from(active || queue.ready()))
            }
            reg::VIRTIO_MMIO_STATUS => self.status,
            // The configuration space of no device here changes in more than one register at
            // once, so a driver never sees it torn and the generation can stay the same.
            reg::VIRTIO_MMIO_CONFIG_GENERATION => 0,
            // No shared memory regions: length -1 says so (section 4.2.2.1).
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => {
                if self.status & (status::DRIVER | status::FEATURES_OK) == status::DRIVER {
                    set_feature_word(
                        &mut self.driver_features,
                        self.driver_features_select,
                        value,
                    );
                }
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    /// Queue registers count only between feature negotiation and `DRIVER_OK` (section 3.1.1).
    fn write_queue_register(&mut self, offset: u32, value: u32) {
        if self.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return;
        }
        let Some(queue) = self.selected_queue() else {
            return;
        };
        match offset {
            // Invalid sizes and addresses are refused inside, and the queue is checked as a whole
            // before it is used.
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // A driver may only add bits, in the order of section 3.1.1; a bit out of order is
        // ignored, which leaves the device unusable for that driver and for nobody else.
        let added = value & !self.status;
        if added & status::FAILED != 0 {
            self.status |= status::FAILED;
        }
        if added & status::ACKNOWLEDGE != 0 {
            self.status |= status::ACKNOWLEDGE;
        }
        if added & status::DRIVER != 0 && self.status & status::ACKNOWLEDGE != 0 {
            self.status |= status::DRIVER;
        }
        if added & status::FEATURES_OK != 0
            && self.status & status::DRIVER != 0
            && self.features_acceptable()
        {
            self.status |= status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 && self.status & status::FEATURES_OK != 0 {
            self.activate();
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered_features() == 0
            && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&mut self) {
        self.status |= status::DRIVER_OK;
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = std::mem::take(&mut self.queues);
        for queue in &mut queues {
            queue.set_event_idx(event_idx);
        }
        let broken = queues
            .iter()
            .position(|queue| queue.ready() && !queue.is_valid(&self.memory));
        // The register reads of an active device still need to know how many queues there are.
        self.queues = new_queues(self.device.as_ref()).unwrap_or_default();
        if let Some(index) = broken {
            tracing::warn!(
                device = self.device.name(),
                index,
                "the driver set up a broken queue"
            );
            self.needs_reset();
            return;
        }
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
            announced: Vec::new(),
        };
        match self.device.activate(activation) {
            Ok(()) => self.active = true,
            Err(error) => {
                tracing::warn!(device = self.device.name(), %error, "cannot activate");
                self.needs_reset();
            }
        }
    }

    fn needs_reset(&mut self) {
        self.status |= status::NEEDS_RESET;
        self.interrupt.configuration_changed();
    }

    fn reset(&mut self) {
        self.active = false;
        self.device.reset();
        self.queues = new_queues(self.device.as_ref()).unwrap_or_default();
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
    }
}

fn new_queues(device: &dyn VirtioDevice) -> io::Result<Vec<Queue>> {
    device
        .queue_max_sizes()
        .iter()
        .map(|size| Queue::new(*size).map_err(io::Error::other))
        .collect()
}

fn feature_word(features: u64, select: u32) -> u32 {
    match select {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_feature_word(features: &mut u64, select: u32, value: u32) {
    match select {
        0 => *features = (*features & !0xffff_ffff) | u64::from(value),
        1 => *features = (*features & 0xffff_ffff) | (u64::from(value) << 32),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
