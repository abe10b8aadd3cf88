//! The header before every frame, in both directions, without any I/O (specification section
//! 5.1.6).
//!
//! It asks the other side for work that a network card would do: to compute a checksum, to cut a
//! long TCP segment. The guest's header goes to the host's kernel, so it is checked here first, and
//! only what was negotiated passes.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// The size of the header.
pub(crate) const HEADER_SIZE: usize = 12;

/// The features that let the other side leave work to be done.
pub(crate) const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// What one side may leave to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offload {
    /// Frames without a checksum.
    pub(crate) checksum: bool,
    /// Long TCP segments over IPv4.
    pub(crate) tcp4: bool,
    /// Long TCP segments over IPv6.
    pub(crate) tcp6: bool,
}

/// What was negotiated about frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Negotiated {
    /// What the guest may leave to the host.
    pub(crate) to_host: Offload,
    /// What the host may leave to the guest.
    pub(crate) to_guest: Offload,
    /// A frame may be spread over several of the guest's buffers.
    pub(crate) mergeable: bool,
}

impl Negotiated {
    /// Reads feature bits. Long segments come without a checksum, so one feature means nothing
    /// without the other (specification section 5.1.3.1).
    pub(crate) fn from_features(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let offload = |checksum: u32, tcp4: u32, tcp6: u32| Offload {
            checksum: has(checksum),
            tcp4: has(checksum) && has(tcp4),
            tcp6: has(checksum) && has(tcp6),
        };
        Self {
            to_host: offload(
                VIRTIO_NET_F_CSUM,
                VIRTIO_NET_F_HOST_TSO4,
                VIRTIO_NET_F_HOST_TSO6,
            ),
            to_guest: offload(
                VIRTIO_NET_F_GUEST_CSUM,
                VIRTIO_NET_F_GUEST_TSO4,
                VIRTIO_NET_F_GUEST_TSO6,
            ),
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
        }
    }
}

/// The header's fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    pub(crate) header_length: u16,
    pub(crate) gso_size: u16,
    pub(crate) checksum_start: u16,
    pub(crate) checksum_offset: u16,
    pub(crate) buffers: u16,
}

const NEEDS_CHECKSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const CHECKSUM_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const GSO_NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const GSO_TCP4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const GSO_TCP6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;

impl Header {
    pub(crate) fn parse(bytes: [u8; HEADER_SIZE]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h, i, j] = bytes;
        let word = |low, high| u16::from_le_bytes([low, high]);
        Self {
            flags,
            gso_type,
            header_length: word(a, b),
            gso_size: word(c, d),
            checksum_start: word(e, f),
            checksum_offset: word(g, h),
            buffers: word(i, j),
        }
    }

    pub(crate) fn bytes(self) -> [u8; HEADER_SIZE] {
        let [a, b] = self.header_length.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.checksum_start.to_le_bytes();
        let [g, h] = self.checksum_offset.to_le_bytes();
        let [i, j] = self.buffers.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, i, j]
    }

    /// What the host's kernel is told about a frame of `length` bytes for which the guest wrote
    /// this header. `None` if the guest asks for what it may not, or for nonsense: the frame is
    /// dropped.
    pub(crate) fn to_host(self, length: usize, may: Offload) -> Option<Self> {
        let mut told = Self::default();
        // All other flags mean nothing in this direction and are to be ignored (section 5.1.6.2.2).
        if self.flags & NEEDS_CHECKSUM != 0 {
            let end = usize::from(self.checksum_start) + usize::from(self.checksum_offset) + 2;
            if !may.checksum || end > length {
                return None;
            }
            told.flags = NEEDS_CHECKSUM;
            told.checksum_start = self.checksum_start;
            told.checksum_offset = self.checksum_offset;
        }
        match self.gso_type {
            GSO_NONE => return Some(told),
            GSO_TCP4 if may.tcp4 => {}
            GSO_TCP6 if may.tcp6 => {}
            _ => return None,
        }
        let headers = usize::from(self.header_length);
        if told.flags & NEEDS_CHECKSUM == 0 || self.gso_size == 0 || headers > length {
            return None;
        }
        told.gso_type = self.gso_type;
        told.gso_size = self.gso_size;
        told.header_length = self.header_length;
        Some(told)
    }

    /// What the guest is told about a frame for which the host's kernel wrote this header, and
    /// which is spread over `buffers` of the guest's buffers.
    pub(crate) fn to_guest(self, buffers: u16, may: Offload) -> Self {
        let mut told = Self {
            buffers,
            ..Self::default()
        };
        // The kernel was told the same, so what is left out here is not there.
        if may.checksum {
            told.flags = self.flags & (NEEDS_CHECKSUM | CHECKSUM_VALID);
            told.checksum_start = self.checksum_start;
            told.checksum_offset = self.checksum_offset;
        }
        let passes = match self.gso_type {
            GSO_TCP4 => may.tcp4,
            GSO_TCP6 => may.tcp6,
            _ => false,
        };
        if passes {
            told.gso_type = self.gso_type;
            told.gso_size = self.gso_size;
            told.header_length = self.header_length;
        }
        told
    }
}
