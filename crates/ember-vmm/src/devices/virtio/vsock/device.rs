//! The device itself: brings the guest's queues, the streams and the embedder's commands together.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::EventSet;

use super::mailbox::{Command, Mailbox};
use super::queues::{Broken, RxQueue, TxQueue};
use super::streams::{Progress, Streams};
use super::{ConnectError, MIN_GUEST_CID, VsockConfig, VsockHandle};
use crate::devices::virtio::{ActivateError, Activation, Interrupt, VirtioDevice};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

/// The most entries of each queue.
const QUEUE_SIZE: u16 = 256;

/// The queues by number: what the guest receives and what it sends. The third is for events.
const RX: usize = 0;
const TX: usize = 1;

/// How many packets are taken from the guest, and how many turns are given to streams, before the
/// device thread gets to serve others.
const ROUND: usize = QUEUE_SIZE as usize;

/// Tokens of the descriptors that are not a stream's.
const COMMANDS_TOKEN: u32 = 0;
const AGAIN_TOKEN: u32 = 1;
const TIMER_TOKEN: u32 = 2;
const FIRST_STREAM_TOKEN: u32 = 3;

/// The socket device.
pub(crate) struct VsockDevice {
    config: VsockConfig,
    mailbox: Arc<Mailbox>,
    /// Written when a round was cut short, so that the next comes when others had their turn.
    again: EventFd,
    events: Option<EventRegistry>,
    /// `None` until the device is attached.
    streams: Option<Streams>,
    /// What the driver set up, while it is there.
    driver: Option<Driver>,
}

impl fmt::Debug for VsockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockDevice")
            .field("config", &self.config)
            .field("streams", &self.streams)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}

impl VsockDevice {
    /// Makes the device and the handle to it.
    pub(crate) fn new(config: VsockConfig) -> io::Result<(Self, VsockHandle)> {
        if config.guest_cid < MIN_GUEST_CID || config.guest_cid == u32::MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{} cannot be a guest's vsock context id: use one from {MIN_GUEST_CID} to {}",
                    config.guest_cid,
                    u32::MAX - 1
                ),
            ));
        }
        let mailbox = Arc::new(Mailbox::new()?);
        let handle = VsockHandle::new(Arc::clone(&mailbox));
        let device = Self {
            config,
            mailbox,
            again: EventFd::from_value_and_flags(
                0,
                EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
            )?,
            events: None,
            streams: None,
            driver: None,
        };
        Ok((device, handle))
    }

    /// How many streams there are.
    #[cfg(test)]
    pub(super) fn stream_count(&self) -> usize {
        self.streams.as_ref().map_or(0, Streams::len)
    }

    /// How many things wait for the guest to have buffers.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.streams.as_ref().map_or(0, Streams::waiting)
    }

    /// Does what there is to do between the guest and the streams. `sent`: the guest may have sent
    /// something.
    fn work(&mut self, sent: bool) {
        let (Some(streams), Some(driver)) = (&mut self.streams, &mut self.driver) else {
            return;
        };
        match driver.serve(streams, sent) {
            Ok(Round::Finished) => {}
            Ok(Round::CutShort) => self.run_again(),
            Err(error) => {
                tracing::warn!(%error, "the guest broke a vsock queue: not served until it is reset");
                self.driver = None;
                streams.reset();
                self.run_again();
            }
        }
    }

    fn run_again(&self) {
        // Fails only when the counter is about to overflow, and then it is readable already.
        let _ = self.again.write(1);
    }

    fn carry_out_commands(&mut self) {
        let is_running = self.driver.is_some();
        let commands = self.mailbox.take();
        let Some(streams) = &mut self.streams else {
            return;
        };
        for command in commands {
            match command {
                Command::Connect { port, done } if is_running => streams.connect(port, done),
                Command::Connect { port, done } => done(Err(ConnectError::NotReady { port })),
                Command::Listen { port, accept } => streams.listen(port, accept),
                Command::Unlisten { port } => streams.unlisten(port),
            }
        }
    }
}

impl VirtioDevice for VsockDevice {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        // Without VIRTIO_VSOCK_F_STREAM and its kin, stream sockets are what there is.
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_vsock_config`: the guest's context id.
        let config = u64::from(self.config.guest_cid).to_le_bytes();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..))
            .unwrap_or(&[]);
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn attach(&mut self, events: EventRegistry) -> io::Result<()> {
        let streams = Streams::new(self.config.clone(), events.clone(), FIRST_STREAM_TOKEN)?;
        events.add(self.mailbox.wake.as_fd(), COMMANDS_TOKEN, EventSet::IN)?;
        events.add(self.again.as_fd(), AGAIN_TOKEN, EventSet::IN)?;
        events.add(streams.timer(), TIMER_TOKEN, EventSet::IN)?;
        self.streams = Some(streams);
        self.events = Some(events);
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.driver = Some(Driver::new(activation)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.driver = None;
        if let Some(streams) = &mut self.streams {
            streams.reset();
            // Whoever waits for a connection is told on the device thread, not on this one.
            if streams.has_orphans() {
                self.run_again();
            }
        }
    }

    fn queue_notified(&mut self, index: usize) {
        match index {
            TX => self.work(true),
            RX => self.work(false),
            // The driver's buffers for events stay where they are until there is one.
            _ => {}
        }
    }

    fn host_event(&mut self, token: u32, readiness: EventSet) {
        match token {
            COMMANDS_TOKEN => {
                self.carry_out_commands();
                self.work(false);
            }
            AGAIN_TOKEN => {
                let _ = self.again.read();
                if let Some(streams) = &mut self.streams {
                    streams.tell_orphans();
                }
                self.work(false);
            }
            TIMER_TOKEN => {
                if let Some(streams) = &mut self.streams {
                    streams.expire(Instant::now());
                }
                self.work(false);
            }
            stream => {
                if let Some(streams) = &mut self.streams {
                    streams.socket_event(stream, readiness);
                }
                self.work(false);
                if let Some(streams) = &mut self.streams {
                    streams.after_socket_event(stream);
                }
            }
        }
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        for command in self.mailbox.close() {
            if let Command::Connect { done, .. } = command {
                done(Err(ConnectError::Closed));
            }
        }
        if let Some(streams) = &mut self.streams {
            streams.close();
        }
        // Handles keep the mailbox, so that its descriptor would go on being watched.
        if let Some(events) = &self.events {
            let _ = events.remove(self.mailbox.wake.as_fd());
            let _ = events.remove(self.again.as_fd());
            if let Some(streams) = &self.streams {
                let _ = events.remove(streams.timer());
            }
        }
    }
}

/// Whether a round came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Finished,
    CutShort,
}

/// What the driver set up.
#[derive(Debug)]
struct Driver {
    memory: GuestMemory,
    rx: RxQueue,
    tx: TxQueue,
    interrupt: Interrupt,
    /// The guest has sent packets that were not taken yet.
    tx_pending: bool,
}

impl Driver {
    fn new(activation: Activation) -> Result<Self, ActivateError> {
        let Activation {
            memory,
            mut queues,
            interrupt,
            features,
        } = activation;
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut take = |index: usize| -> Result<Queue, ActivateError> {
            let mut queue = queues
                .get_mut(index)
                .filter(|queue| queue.ready())
                .map(std::mem::take)
                .ok_or(ActivateError::QueueNotReady(index))?;
            queue.set_event_idx(event_idx);
            Ok(queue)
        };
        let rx = take(RX)?;
        let tx = take(TX)?;
        let rx = RxQueue::new(rx, &memory).map_err(io::Error::other)?;
        Ok(Self {
            memory,
            rx,
            tx: TxQueue::new(tx),
            interrupt,
            tx_pending: false,
        })
    }

    fn serve(&mut self, streams: &mut Streams, sent: bool) -> Result<Round, Broken> {
        let mut round = Round::Finished;
        if sent || self.tx_pending {
            round = self.take_packets(streams)?;
        }
        if self.send_packets(streams)? == Round::CutShort {
            round = Round::CutShort;
        }
        // Taking packets was stopped by answers that could not be sent, but now they were.
        if self.tx_pending && !streams.is_full() {
            round = Round::CutShort;
        }
        // One interrupt for everything. Both queues are asked, as both keep count.
        let for_tx = self.tx.needs_interrupt(&self.memory)?;
        let for_rx = self.rx.needs_interrupt(&self.memory)?;
        if for_tx || for_rx {
            self.interrupt.used();
        }
        Ok(round)
    }

    /// From the guest to the streams.
    fn take_packets(&mut self, streams: &mut Streams) -> Result<Round, Broken> {
        self.tx_pending = true;
        for _ in 0..ROUND {
            if streams.is_full() {
                return Ok(Round::Finished);
            }
            let Some(sent) = self.tx.next(&self.memory)? else {
                if self.tx.wait(&self.memory)? {
                    continue;
                }
                self.tx_pending = false;
                return Ok(Round::Finished);
            };
            if let Some(header) = &sent.header {
                streams.packet(&self.memory, header, self.tx.segments());
            }
            self.tx.give_back(&self.memory, sent.head)?;
        }
        Ok(Round::CutShort)
    }

    /// From the streams to the guest.
    fn send_packets(&mut self, streams: &mut Streams) -> Result<Round, Broken> {
        for _ in 0..ROUND {
            if !streams.has_work() {
                return Ok(Round::Finished);
            }
            if streams.send_next(&self.memory, &mut self.rx)? == Progress::Starved
                && !self.rx.wait(&self.memory)?
            {
                return Ok(Round::Finished);
            }
        }
        Ok(Round::CutShort)
    }
}
