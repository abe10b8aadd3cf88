//! Block requests as the driver wrote them, checked against the disk, without any I/O
//! (specification section 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// The unit of every position and size (specification section 5.2.4).
pub(crate) const SECTOR: u64 = 512;
/// The bytes before the data: type, a reserved word, sector.
pub(crate) const HEADER_SIZE: u32 = 16;
/// The bytes of an entry of a discard or write-zeroes request.
pub(crate) const RANGE_SIZE: u32 = 16;
/// The bytes of a serial number.
pub(crate) const ID_SIZE: u32 = VIRTIO_BLK_ID_BYTES;

/// The most bytes one request reads or writes. The guest does not learn of it, but Linux's own
/// limit is 4 MiB unless its user raises it; without one, a guest could keep the device thread, and
/// with it the end of the VM, waiting for 4 GiB of I/O.
pub(crate) const MAX_DATA: u32 = 64 << 20;
/// The most ranges in one discard request.
pub(crate) const MAX_DISCARD_RANGES: u32 = 32;
/// The most sectors in one range of a discard request: 2 GiB.
pub(crate) const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// The most ranges in one write-zeroes request.
pub(crate) const MAX_ZEROES_RANGES: u32 = 1;
/// The most sectors in one write-zeroes request: 16 MiB, which may have to be written one by one.
pub(crate) const MAX_ZEROES_SECTORS: u32 = 1 << 15;

/// What the guest learns about its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It was done.
    Ok,
    /// It cannot be done: out of range, malformed, or the host failed.
    IoError,
    /// The device does not know such a request.
    Unsupported,
}

impl Status {
    /// The status byte.
    pub(crate) fn byte(self) -> u8 {
        // Each fits: they are 0, 1 and 2.
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// The disk, as far as requests are checked against it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    /// Its size in sectors.
    pub(crate) sectors: u64,
    /// Whether nothing may change it.
    pub(crate) read_only: bool,
}

/// A request whose position and size are within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Read `length` bytes at the byte `position`.
    Read { position: u64, length: u32 },
    /// Write `length` bytes at the byte `position`.
    Write { position: u64, length: u32 },
    /// Make stable what was written.
    Flush,
    /// Tell the serial number.
    GetId,
    /// Forget `ranges` ranges, which are the request's data.
    Discard { ranges: u32 },
    /// Make `ranges` ranges, which are the request's data, read as zeroes.
    WriteZeroes { ranges: u32 },
}

/// A range of a discard or write-zeroes request, in bytes, within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) position: u64,
    pub(crate) length: u64,
    /// The space may be given back to the host.
    pub(crate) unmap: bool,
}

impl Request {
    /// Checks the request that starts with `header` and has `readable` bytes after it and
    /// `writable` bytes before the status byte.
    pub(crate) fn parse(
        header: [u8; HEADER_SIZE as usize],
        readable: u32,
        writable: u32,
        disk: Disk,
    ) -> Result<Self, Status> {
        let [kind, _reserved, sector_low, sector_high] = words(header);
        let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
        match kind {
            VIRTIO_BLK_T_IN if readable == 0 => {
                let (position, _) = disk.span(sector, whole_sectors(writable)?)?;
                Ok(Self::Read {
                    position,
                    length: writable,
                })
            }
            VIRTIO_BLK_T_OUT if writable == 0 => {
                disk.check_writable()?;
                let (position, _) = disk.span(sector, whole_sectors(readable)?)?;
                Ok(Self::Write {
                    position,
                    length: readable,
                })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID if writable >= ID_SIZE => Ok(Self::GetId),
            VIRTIO_BLK_T_DISCARD => {
                disk.check_writable()?;
                Ok(Self::Discard {
                    ranges: count_ranges(readable, MAX_DISCARD_RANGES)?,
                })
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                disk.check_writable()?;
                Ok(Self::WriteZeroes {
                    ranges: count_ranges(readable, MAX_ZEROES_RANGES)?,
                })
            }
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_GET_ID => Err(Status::IoError),
            _ => Err(Status::Unsupported),
        }
    }
}

impl Range {
    /// Checks an entry of a discard request.
    pub(crate) fn discard(bytes: [u8; RANGE_SIZE as usize], disk: Disk) -> Result<Self, Status> {
        // The unmap flag must be refused here: it means something in the other request only
        // (specification section 5.2.6.2).
        Self::parse(bytes, disk, MAX_DISCARD_SECTORS, 0)
    }

    /// Checks the entry of a write-zeroes request.
    pub(crate) fn write_zeroes(
        bytes: [u8; RANGE_SIZE as usize],
        disk: Disk,
    ) -> Result<Self, Status> {
        Self::parse(
            bytes,
            disk,
            MAX_ZEROES_SECTORS,
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        )
    }

    fn parse(
        bytes: [u8; RANGE_SIZE as usize],
        disk: Disk,
        max_sectors: u32,
        known_flags: u32,
    ) -> Result<Self, Status> {
        let [sector_low, sector_high, sectors, flags] = words(bytes);
        if flags & !known_flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > max_sectors {
            return Err(Status::IoError);
        }
        let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
        let (position, length) = disk.span(sector, u64::from(sectors))?;
        Ok(Self {
            position,
            length,
            unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
        })
    }
}

impl Disk {
    /// Position and length in bytes of `count` sectors from `sector` on, if the disk has them.
    fn span(self, sector: u64, count: u64) -> Result<(u64, u64), Status> {
        match sector.checked_add(count) {
            // Does not overflow: the disk's size in bytes is a u64.
            Some(end) if end <= self.sectors => Ok((sector * SECTOR, count * SECTOR)),
            _ => Err(Status::IoError),
        }
    }

    fn check_writable(self) -> Result<(), Status> {
        if self.read_only {
            Err(Status::IoError)
        } else {
            Ok(())
        }
    }
}

fn whole_sectors(length: u32) -> Result<u64, Status> {
    let bytes = u64::from(length);
    if bytes.is_multiple_of(SECTOR) && length <= MAX_DATA {
        Ok(bytes / SECTOR)
    } else {
        Err(Status::IoError)
    }
}

fn count_ranges(length: u32, max: u32) -> Result<u32, Status> {
    let count = length / RANGE_SIZE;
    if length.is_multiple_of(RANGE_SIZE) && (1..=max).contains(&count) {
        Ok(count)
    } else {
        Err(Status::IoError)
    }
}

/// The four little-endian words of `bytes`.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let bits = u128::from_le_bytes(bytes);
    [
        bits as u32,
        (bits >> 32) as u32,
        (bits >> 64) as u32,
        (bits >> 96) as u32,
    ]
}
