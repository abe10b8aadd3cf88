//! The device itself: brings the guest's queues, the streams and the embedder's commands together.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use ember_snapshot::state::{DeviceState, VsockState};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::EventSet;

use super::mailbox::{Command, Mailbox};
use super::packet::{HEADER_SIZE, Header};
use super::receive::{HEADER_BYTES, Receiver};
use super::returns::Returns;
use super::streams::{Progress, Streams};
use super::{ConnectError, MIN_GUEST_CID, VsockConfig, VsockHandle};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::queue::{Active, DeviceQueue, EVENT_IDX, QueueError, Turn, Turns};
use crate::devices::virtio::{ActivateError, Activation, RestoreError, VirtioDevice, config_space};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

/// The queues by number: what the guest receives and what it sends. The third is for events.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZES: [u16; 3] = [256; 3];

/// How many packets are taken from the guest, and how many turns are given to streams, before the
/// device thread gets to serve others.
const ROUND: usize = 256;

/// Tokens of the descriptors that are not a stream's.
const TURNS: u32 = 0;
const COMMANDS: u32 = 1;
const DEADLINES: u32 = 2;
const RETURNS: u32 = 3;
const FIRST_STREAM: u32 = 4;

/// The socket device.
#[derive(Debug)]
pub(crate) struct VsockDevice {
    config: VsockConfig,
    mailbox: Arc<Mailbox>,
    events: Option<EventRegistry>,
    turns: Turns,
    /// `None` until the device is attached.
    streams: Option<Streams>,
    /// What the streams are to go on with when the device is attached.
    saved: Option<VsockState>,
    active: Option<Active>,
    /// The guest has sent packets that were not taken yet.
    unread: bool,
    returns: Returns,
    /// No packets; kept for its memory.
    chains: Vec<Chain>,
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
            events: None,
            turns: Turns::new()?,
            streams: None,
            saved: None,
            active: None,
            unread: false,
            returns: Returns::new()?,
            chains: Vec::new(),
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

    /// Does what there is to do between the guest and the streams.
    fn work(&mut self) {
        let Self {
            streams: Some(streams),
            active: Some(active),
            turns,
            unread,
            returns,
            chains,
            ..
        } = self
        else {
            return;
        };
        let turn = active.with_queues(|queues, memory| {
            let [receive, transmit, ..] = queues else {
                return Ok(Turn::Done);
            };
            let mut turn = Turn::Done;
            if *unread {
                turn = take_packets(transmit, memory, streams, unread, returns)?;
            }
            transmit.hold_back(returns.can_wait());
            if streams.has_work() {
                let receiver = Receiver {
                    queue: receive,
                    memory,
                    chains,
                };
                if send_packets(receiver, streams)? == Turn::More {
                    turn = Turn::More;
                }
            }
            // Packets were left because too many answers waited, which were sent meanwhile.
            if *unread && !streams.is_full() {
                turn = Turn::More;
            }
            Ok(turn)
        });
        returns.after_round(active.is_announced(TRANSMIT));
        match turn {
            Some(Turn::Done) => {}
            Some(Turn::More) => turns.later(TRANSMIT),
            None => {
                // The driver broke the rules.
                self.active = None;
                self.forget_guest();
            }
        }
    }

    /// The guest's streams are no more.
    fn forget_guest(&mut self) {
        self.unread = false;
        self.chains.clear();
        if let Some(streams) = &mut self.streams {
            streams.reset();
            // Whoever waits for a connection is told on the device thread, wherever this is.
            if streams.has_orphans() {
                self.turns.later(RECEIVE);
            }
        }
    }

    fn carry_out_commands(&mut self) {
        let is_running = self.active.is_some();
        let commands = self.mailbox.take();
        let Some(streams) = &mut self.streams else {
            return;
        };
        for command in commands {
            match command {
                Command::Connect { port, caller } if is_running => streams.connect(port, caller),
                Command::Connect { port, caller } => caller.refuse(ConnectError::NotReady { port }),
                Command::Listen { port, accept } => streams.listen(port, accept),
                Command::Unlisten { port } => streams.unlisten(port),
            }
        }
    }
}

/// From the guest to the streams. `unread` becomes false when nothing is left.
fn take_packets(
    queue: &mut DeviceQueue,
    memory: &GuestMemory,
    streams: &mut Streams,
    unread: &mut bool,
    returns: &mut Returns,
) -> Result<Turn, QueueError> {
    queue.decline_doorbells(memory)?;
    for _ in 0..ROUND {
        if streams.is_full() {
            return Ok(Turn::Done);
        }
        let Some(chain) = queue.pop_or_ask(memory)? else {
            *unread = false;
            return Ok(Turn::Done);
        };
        let mut header = [0; HEADER_SIZE];
        chain
            .readable
            .read(memory, 0, &mut header)
            .map_err(|_| QueueError::Request("a packet without a header"))?;
        let header = Header::parse(&header);
        // The read shows that there are at least so many.
        if chain.readable.len() - HEADER_BYTES < header.len {
            return Err(QueueError::Request("a packet shorter than its header says"));
        }
        streams.packet(memory, &header, &chain.readable)?;
        returns.add(&chain);
        queue.push(memory, chain, 0)?;
    }
    Ok(Turn::More)
}

/// From the streams to the guest.
fn send_packets(mut receiver: Receiver<'_>, streams: &mut Streams) -> Result<Turn, QueueError> {
    receiver.queue.decline_doorbells(receiver.memory)?;
    for _ in 0..ROUND {
        if !streams.has_work() {
            return Ok(Turn::Done);
        }
        if streams.send_next(&mut receiver)? == Progress::Starved {
            return Ok(Turn::Done);
        }
    }
    Ok(Turn::More)
}

impl VirtioDevice for VsockDevice {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        // Without the device's own features, stream sockets are what there is.
        EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_vsock_config`: the guest's context id.
        let space = u64::from(self.config.guest_cid).to_le_bytes();
        config_space::read(&space, offset, data);
    }

    fn attach(&mut self, events: EventRegistry) -> io::Result<()> {
        let mut streams = Streams::new(self.config.clone(), events.clone(), FIRST_STREAM)?;
        if let Some(saved) = self.saved.take() {
            let carried = streams.restore(&saved, &self.config.carried_ports)?;
            self.mailbox.put_carried(carried);
        }
        self.turns.attach(&events, TURNS)?;
        events.add(self.mailbox.wake.as_fd(), COMMANDS, EventSet::IN)?;
        events.add(streams.timer(), DEADLINES, EventSet::IN)?;
        events.add(self.returns.timer(), RETURNS, EventSet::IN)?;
        self.streams = Some(streams);
        self.events = Some(events);
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(Active::new(self.name(), activation, TRANSMIT + 1)?);
        // The driver may have sent something before it was ready to ring.
        self.unread = true;
        self.turns.later(TRANSMIT);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.turns.clear();
        self.forget_guest();
    }

    fn notified(&mut self) {
        // One look at both: what was taken is often what is answered.
        self.unread = true;
        self.work();
    }

    fn queue_notified(&mut self, index: usize) {
        match index {
            TRANSMIT => {
                self.unread = true;
                self.work();
            }
            RECEIVE => self.work(),
            // The driver's buffers for events stay where they are until there is one.
            _ => {}
        }
    }

    fn host_event(&mut self, token: u32, readiness: EventSet) {
        match token {
            TURNS => {
                self.turns.take();
                if let Some(streams) = &mut self.streams {
                    streams.tell_orphans();
                }
            }
            COMMANDS => self.carry_out_commands(),
            RETURNS => self.returns.overdue(),
            DEADLINES => {
                if let Some(streams) = &mut self.streams {
                    streams.expire(Instant::now());
                }
            }
            stream => {
                if let Some(streams) = &mut self.streams {
                    streams.socket_event(stream, readiness);
                }
            }
        }
        self.work();
        if token >= FIRST_STREAM
            && let Some(streams) = &mut self.streams
        {
            streams.after_socket_event(token);
        }
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn save(&self) -> DeviceState {
        let saved = self.streams.as_ref().map(Streams::save);
        DeviceState::Vsock(saved.unwrap_or_else(|| VsockState {
            guest_cid: self.config.guest_cid,
            ..VsockState::default()
        }))
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(saved) = saved else {
            return Err(RestoreError::different(
                self.name(),
                "another device was saved",
            ));
        };
        if saved.guest_cid != self.config.guest_cid {
            let why = format!(
                "the guest has the context id {} and would get {}",
                saved.guest_cid, self.config.guest_cid
            );
            return Err(RestoreError::different(self.name(), why));
        }
        self.saved = Some(saved.clone());
        Ok(())
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        for command in self.mailbox.close() {
            if let Command::Connect { caller, .. } = command {
                caller.refuse(ConnectError::Closed);
            }
        }
        if let Some(streams) = &mut self.streams {
            streams.close();
        }
        // Handles keep the mailbox, so that its descriptor would go on being watched.
        if let Some(events) = &self.events {
            let _ = events.remove(self.mailbox.wake.as_fd());
            let _ = events.remove(self.returns.timer());
            if let Some(streams) = &self.streams {
                let _ = events.remove(streams.timer());
            }
        }
    }
}
