//! The header of a vsock packet (specification section 5.10.6): bytes to fields and back, no I/O.

/// The size of a packet's header in bytes.
pub(super) const HEADER_SIZE: usize = 44;

/// The context id of the host, which is this side.
pub(super) const HOST_CID: u64 = 2;

/// The `type` of a stream socket, the only one that is served.
pub(super) const TYPE_STREAM: u16 = 1;

/// Flag of `SHUTDOWN`: the sender will receive no more data.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of `SHUTDOWN`: the sender will send no more data.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both flags: the sender is done with the stream.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Operation {
    /// Open a stream.
    Request = 1,
    /// The stream is open.
    Response = 2,
    /// There is no such stream (any more).
    Reset = 3,
    /// The sender will not send or receive (or both) any more.
    Shutdown = 4,
    /// Data.
    ReadWrite = 5,
    /// Here is how much room the sender has.
    CreditUpdate = 6,
    /// Tell how much room there is.
    CreditRequest = 7,
}

impl Operation {
    /// The operation with the number `raw`, if there is one.
    pub(super) fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// `struct virtio_vsock_hdr`. Every value is possible: nothing is checked in here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The sender's context id.
    pub(super) src_cid: u64,
    /// The receiver's context id.
    pub(super) dst_cid: u64,
    /// The sender's port.
    pub(super) src_port: u32,
    /// The receiver's port.
    pub(super) dst_port: u32,
    /// How many bytes of data follow the header.
    pub(super) len: u32,
    /// The type of socket.
    pub(super) kind: u16,
    /// The number of an [`Operation`].
    pub(super) op: u16,
    /// The operation's flags.
    pub(super) flags: u32,
    /// How many bytes the sender buffers for this stream.
    pub(super) buf_alloc: u32,
    /// How many bytes of the stream the sender has taken out of that buffer, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a header. All fields are little-endian.
    pub(super) fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// Writes the header.
    pub(super) fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The `N` bytes at `at`. Callers pass constants that lie inside the header.
fn field<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
