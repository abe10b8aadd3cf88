//! The network device: a queue for frames to the guest and one for frames from it.

use std::io;
use std::os::fd::AsFd;

use ember_snapshot::state::{DeviceState, NetworkState};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::epoll::EventSet;

use super::NetworkConfig;
use super::header::{HEADER_SIZE, Header, Negotiated, OFFLOADS, Offload};
use super::receive::{Delivery, deliver};
use super::tap::Tap;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::queue::{Active, EVENT_IDX, QueueError, Turn, Turns};
use crate::devices::virtio::{ActivateError, Activation, RestoreError, VirtioDevice, config_space};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256; 2];

const FEATURES: u64 = EVENT_IDX
    | OFFLOADS
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// The least an Ethernet frame has: addresses and type.
const MIN_FRAME: usize = 14;
/// The most a frame has with its header: a segment that is still to be cut has up to 64 KiB.
const MAX_FRAME: usize = HEADER_SIZE + MIN_FRAME + 65536;
/// So many frames are received in one turn.
const TURN_FRAMES: u32 = 64;

/// The token of the device's own event.
const TURNS: u32 = 0;
/// The token of the TAP descriptor.
const TAP: u32 = 1;

/// A network card.
#[derive(Debug)]
pub(crate) struct NetworkDevice {
    tap: Tap,
    mac: [u8; 6],
    events: Option<EventRegistry>,
    turns: Turns,
    active: Option<Active>,
    negotiated: Negotiated,
    /// Whether the device thread watches the TAP descriptor.
    watching: bool,
    /// Whether a frame waits until the guest offers buffers.
    starved: bool,
    /// The interface is gone for good.
    unplugged: bool,
    /// The frame that is being received.
    received: Box<[u8]>,
    received_length: usize,
    /// The frame that is being sent.
    sent: Box<[u8]>,
    chains: Vec<(Chain, u32)>,
}

/// How receiving ended.
enum Received {
    /// There is no frame, or there may be more of them: the descriptor says when.
    Enough,
    /// The guest has no buffers.
    Starved,
    /// There will never be a frame again.
    Unplugged,
}

impl NetworkDevice {
    /// A card on the interface of `config`.
    pub(crate) fn new(config: NetworkConfig) -> io::Result<Self> {
        Self::over(Tap::new(config.tap)?, config.mac)
    }

    /// A card on a socket that keeps messages apart, which must not block.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn over_socket(socket: std::os::fd::OwnedFd, mac: [u8; 6]) -> io::Result<Self> {
        Self::over(Tap::over_socket(socket), mac)
    }

    fn over(tap: Tap, mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self {
            tap,
            mac,
            events: None,
            turns: Turns::new()?,
            active: None,
            negotiated: Negotiated::default(),
            watching: false,
            starved: false,
            unplugged: false,
            received: vec![0; MAX_FRAME].into_boxed_slice(),
            received_length: 0,
            sent: vec![0; MAX_FRAME].into_boxed_slice(),
            chains: Vec::new(),
        })
    }

    /// Starts or stops watching the TAP descriptor. It is not enough to wait for nothing: errors
    /// are always reported, again and again.
    fn watch(&mut self, watch: bool) -> io::Result<()> {
        let Some(events) = self.events.as_ref().filter(|_| watch != self.watching) else {
            return Ok(());
        };
        if watch {
            events.add(self.tap.as_fd(), TAP, EventSet::IN)?;
        } else {
            events.remove(self.tap.as_fd())?;
        }
        self.watching = watch;
        Ok(())
    }

    /// Receives a turn's frames.
    fn receive(&mut self) {
        let Self {
            tap,
            active,
            received,
            received_length,
            chains,
            negotiated,
            ..
        } = self;
        let outcome = active.as_mut().and_then(|active| {
            active.with_queue(RECEIVE, |queue, memory| {
                for _ in 0..TURN_FRAMES {
                    if *received_length == 0 {
                        match tap.read(received) {
                            Ok(length) if length > HEADER_SIZE => *received_length = length,
                            // The end of a descriptor that has frames no more.
                            Ok(0) => return Ok(Received::Unplugged),
                            Ok(_) => continue,
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                            Err(error) => {
                                tracing::warn!(%error, "a VM's network interface is gone");
                                return Ok(Received::Unplugged);
                            }
                        }
                    }
                    // Not longer than the buffer it was read into.
                    let frame = &mut received[..*received_length];
                    match deliver(queue, memory, frame, *negotiated, chains)? {
                        Delivery::Done => *received_length = 0,
                        Delivery::Dropped => {
                            tracing::debug!(length = frame.len(), "a frame has no room");
                            *received_length = 0;
                        }
                        Delivery::NoBuffers => return Ok(Received::Starved),
                    }
                }
                queue.decline_doorbells(memory)?;
                Ok(Received::Enough)
            })
        });
        // A malformed chain may have left some.
        self.chains.clear();
        self.starved = matches!(outcome, Some(Received::Starved));
        if let (Some(Received::Unplugged), Some(active)) = (&outcome, &self.active) {
            self.unplugged = true;
            active.interrupt.configuration_changed();
        }
        if let Err(error) = self.watch(matches!(outcome, Some(Received::Enough))) {
            tracing::warn!(%error, "a VM's network interface cannot be watched");
        }
    }

    fn transmit(&mut self) {
        let Self {
            tap,
            active,
            sent,
            negotiated,
            ..
        } = self;
        let Some(active) = active else {
            return;
        };
        let turn = active.serve(TRANSMIT, |memory, chain| {
            send(memory, chain, tap, sent, negotiated.to_host)
        });
        if turn == Turn::More {
            self.turns.later(TRANSMIT);
        }
    }
}

/// Sends the frame of `chain`, or drops it, as networks do: the guest is not told.
fn send(
    memory: &GuestMemory,
    chain: &Chain,
    tap: &Tap,
    buffer: &mut [u8],
    may: Offload,
) -> Result<u32, QueueError> {
    let length = chain.readable.len() as usize;
    let Some(frame) = buffer
        .get_mut(..length)
        .filter(|_| length >= HEADER_SIZE + MIN_FRAME)
    else {
        tracing::debug!(length, "the guest sent a frame of an impossible length");
        return Ok(0);
    };
    chain
        .readable
        .read(memory, 0, frame)
        .map_err(|_| QueueError::Request("a frame outside guest memory"))?;
    let Some((header, rest)) = frame.split_first_chunk_mut() else {
        return Ok(0);
    };
    let Some(told) = Header::parse(*header).to_host(rest.len(), may) else {
        tracing::debug!("the guest sent a frame with a header that was not negotiated");
        return Ok(0);
    };
    *header = told.bytes();
    if let Err(error) = tap.write(frame) {
        tracing::debug!(%error, "the host did not take a frame");
    }
    Ok(0)
}

impl VirtioDevice for NetworkDevice {
    fn name(&self) -> &'static str {
        "network"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.unplugged {
            0
        } else {
            VIRTIO_NET_S_LINK_UP as u16
        };
        let mut space = [0; 8];
        space[..6].copy_from_slice(&self.mac);
        space[6..].copy_from_slice(&status.to_le_bytes());
        config_space::read(&space, offset, data);
    }

    fn attach(&mut self, events: EventRegistry) -> io::Result<()> {
        self.turns.attach(&events, TURNS)?;
        self.events = Some(events);
        Ok(())
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.negotiated = Negotiated::from_features(activation.features);
        self.tap.set_offload(self.negotiated.to_guest)?;
        self.active = Some(Active::new(self.name(), activation, QUEUE_SIZES.len())?);
        self.turns.later(RECEIVE);
        self.turns.later(TRANSMIT);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.turns.clear();
        self.starved = false;
        self.received_length = 0;
        if let Err(error) = self.watch(false) {
            tracing::warn!(%error, "a VM's network interface is still watched");
        }
    }

    fn queue_notified(&mut self, index: usize) {
        match index {
            // Without a frame that waits, new buffers are no reason to do anything.
            RECEIVE if self.starved => self.receive(),
            TRANSMIT => self.transmit(),
            _ => {}
        }
    }

    fn host_event(&mut self, token: u32, _readiness: EventSet) {
        match token {
            TURNS => {
                let waiting = self.turns.take();
                if waiting & 1 << RECEIVE != 0 {
                    self.receive();
                }
                if waiting & 1 << TRANSMIT != 0 {
                    self.transmit();
                }
            }
            TAP if self.watching => self.receive(),
            _ => {}
        }
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Network(NetworkState { mac: self.mac })
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Network(saved) = saved else {
            return Err(RestoreError::different(
                self.name(),
                "another device was saved",
            ));
        };
        // The guest knows its card by the address that it had.
        self.mac = saved.mac;
        Ok(())
    }
}

impl Drop for NetworkDevice {
    fn drop(&mut self) {
        // The descriptor is closed next, which takes it out of the epoll set as well.
        let _ = self.watch(false);
    }
}
