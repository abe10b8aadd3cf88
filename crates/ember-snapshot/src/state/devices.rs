//! The devices.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The UART. The names are those of its registers (TL16C550 data sheet).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the data sheet's")]
pub struct SerialState {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    /// Input that the guest has not read.
    pub in_buffer: ByteBuf,
}

/// One virtio device: what the transport knows, and what the device itself knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// The registers of the transport.
    pub transport: TransportState,
    /// All queues of the device.
    pub queues: Vec<QueueState>,
    /// What is particular to the kind of device.
    pub device: DeviceState,
}

/// The registers of virtio over MMIO (specification section 4.2.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The device status register.
    pub status: u32,
    /// The interrupt status register.
    pub interrupt_status: u32,
    /// Whether the driver made the device work on its queues.
    pub active: bool,
    /// Whether the device stopped doing so because the driver broke the rules.
    pub broken: bool,
    /// Which half of the device's features is shown.
    pub device_features_select: u32,
    /// Which half of the driver's features is written.
    pub driver_features_select: u32,
    /// The features that the driver accepted.
    pub driver_features: u64,
    /// Which queue the queue registers mean.
    pub queue_select: u32,
}

/// One queue (specification section 2.7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Number of descriptors.
    pub size: u16,
    /// Whether the driver enabled it.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the available ring.
    pub available_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// The next entry of the available ring that the device takes.
    pub next_available: u16,
    /// The next entry of the used ring that the device fills.
    pub next_used: u16,
    /// The entry of the used ring up to which the driver was interrupted, if it wanted to be.
    pub announced: u16,
}

/// What is particular to a kind of device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A disk.
    Block(BlockState),
    /// The guest channel.
    Vsock(VsockState),
    /// A network card.
    Network(NetworkState),
    /// The source of randomness, which has no state.
    Entropy,
    /// The balloon.
    Balloon(BalloonState),
}

/// A disk as the guest knows it. A restore needs one that is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Its serial number.
    pub serial: String,
}

/// A network card as the guest knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// Its hardware address.
    pub mac: [u8; 6],
}

/// The balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// How many pages it should hold.
    pub target_pages: u32,
    /// How many it holds, as the guest says.
    pub actual_pages: u32,
    /// Whether the guest was offered to report free memory by itself.
    pub free_page_reporting: bool,
    /// Whether the guest was offered to take pages back when it runs out of memory.
    pub deflate_on_oom: bool,
}

/// The guest channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's context id.
    pub guest_cid: u32,
    /// The host's port that the next stream gets.
    pub next_port: u32,
    /// Streams that the guest knows of.
    pub connections: Vec<ConnectionState>,
    /// Answers that the guest has not got yet, as packet headers of 44 bytes.
    pub answers: Vec<ByteBuf>,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PhaseState {
    /// The host asked for it and the guest has not answered.
    Connecting,
    /// Data may flow.
    Open,
    /// The guest was told of its end and has not confirmed it.
    Closing,
}

/// One stream of the guest channel. Counters are modulo 2^32 (specification section 5.10.6.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionState {
    /// The guest's port.
    pub guest_port: u32,
    /// The host's port.
    pub host_port: u32,
    /// How far it has come.
    pub phase: PhaseState,
    /// What the guest is done with: flags of `SHUTDOWN`.
    pub guest_shutdown: u32,
    /// What the host is done with.
    pub host_shutdown: u32,
    /// What of it the guest was told.
    pub told_shutdown: u32,
    /// The guest is owed the packet that asks for the stream.
    pub owes_request: bool,
    /// The guest is owed the packet that accepts the stream.
    pub owes_response: bool,
    /// The guest is owed news of its credit.
    pub owes_credit_update: bool,
    /// The guest was asked for news of its buffer.
    pub asked_for_credit: bool,
    /// How many bytes of the guest's the host buffers at most.
    pub buffer_bytes: u32,
    /// How many bytes came from the guest.
    pub received: u32,
    /// How many of them have left for the host.
    pub forwarded: u32,
    /// The value of `forwarded` that the guest knows.
    pub told: u32,
    /// How many bytes the guest buffers at most.
    pub peer_buffer_bytes: u32,
    /// How many bytes the guest has taken out of its buffer.
    pub peer_forwarded: u32,
    /// How many bytes went to the guest.
    pub sent: u32,
    /// What the guest sent and the host's end had no room for.
    pub backlog: ByteBuf,
}
