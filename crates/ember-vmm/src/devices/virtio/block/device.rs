//! The block device: one queue, served in order.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

use ember_snapshot::state::{BlockState, DeviceState};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::epoll::EventSet;

use super::BlockConfig;
use super::request::{
    Disk, HEADER_SIZE, ID_SIZE, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_ZEROES_RANGES,
    MAX_ZEROES_SECTORS, RANGE_SIZE, Range, Request, SECTOR, Status,
};
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::positioned_io::{Span, read_exact_at, write_all_at};
use crate::devices::virtio::queue::{Active, EVENT_IDX, QueueError, Turn, Turns};
use crate::devices::virtio::{ActivateError, Activation, RestoreError, VirtioDevice, config_space};
use crate::event_loop::EventRegistry;
use crate::memory::GuestMemory;

const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 128;
/// Data buffers of a request: the queue less the header's descriptor and the status byte's.
const MAX_DATA_BUFFERS: u32 = QUEUE_SIZE as u32 - 2;
/// Discarded ranges are best aligned to so many sectors: a file system's block.
const DISCARD_ALIGNMENT: u32 = 8;

const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// The token of the device's own event.
const TURNS: u32 = 0;

/// What is written where a file system cannot zero a range by itself.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// A disk.
#[derive(Debug)]
pub(crate) struct BlockDevice {
    backend: Backend,
    features: u64,
    config_space: [u8; CONFIG_SIZE],
    turns: Turns,
    active: Option<Active>,
}

impl BlockDevice {
    /// A disk over the file of `config`. Fails if the file cannot be one.
    pub(crate) fn new(config: BlockConfig) -> io::Result<Self> {
        let BlockConfig {
            file,
            read_only,
            serial,
        } = config;
        if !read_only {
            check_open_for_writing(&file)?;
        }
        let size = size_of_disk(&file)?;
        if !size.is_multiple_of(SECTOR) {
            return Err(invalid(format!(
                "a disk's size must be a multiple of {SECTOR} bytes, and this file has {size}: pad it"
            )));
        }
        let id = id(&serial)?;
        let mut features =
            EVENT_IDX | FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE;
        features |= if read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        let disk = Disk {
            sectors: size / SECTOR,
            read_only,
        };
        Ok(Self {
            backend: Backend {
                file,
                disk,
                id,
                write_through: false,
            },
            features,
            config_space: config_space(disk),
            turns: Turns::new()?,
            active: None,
        })
    }
}

impl VirtioDevice for BlockDevice {
    fn name(&self) -> &'static str {
        "block"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.config_space, offset, data);
    }

    fn attach(&mut self, events: EventRegistry) -> io::Result<()> {
        self.turns.attach(&events, TURNS)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        // A driver that does not flush relies on every write being stable when it is done
        // (specification section 5.2.6.2).
        self.backend.write_through = activation.features & FLUSH == 0;
        self.active = Some(Active::new(self.name(), activation, 1)?);
        // Requests may have been made available before.
        self.turns.later(QUEUE);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.turns.clear();
    }

    fn queue_notified(&mut self, _index: usize) {
        let Some(active) = &mut self.active else {
            return;
        };
        let backend = &self.backend;
        if active.serve(QUEUE, |memory, chain| backend.serve(memory, chain)) == Turn::More {
            self.turns.later(QUEUE);
        }
    }

    fn host_event(&mut self, token: u32, _readiness: EventSet) {
        if token == TURNS && self.turns.take() != 0 {
            self.queue_notified(QUEUE);
        }
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn save(&self) -> DeviceState {
        let Backend { disk, id, .. } = &self.backend;
        let length = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        DeviceState::Block(BlockState {
            sectors: disk.sectors,
            read_only: disk.read_only,
            serial: String::from_utf8_lossy(&id[..length]).into_owned(),
        })
    }

    fn restore(&mut self, saved: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Block(saved) = saved else {
            return Err(RestoreError::different(
                self.name(),
                "another device was saved",
            ));
        };
        let disk = self.backend.disk;
        if (disk.sectors, disk.read_only) != (saved.sectors, saved.read_only) {
            let kind = |read_only| if read_only { "read-only" } else { "writable" };
            let why = format!(
                "the guest knows a {} disk of {} sectors and is given a {} one of {}",
                kind(saved.read_only),
                saved.sectors,
                kind(disk.read_only),
                disk.sectors
            );
            return Err(RestoreError::different(self.name(), why));
        }
        self.backend.id = id(&saved.serial)
            .map_err(|error| RestoreError::different(self.name(), error.to_string()))?;
        Ok(())
    }
}

/// A serial number as the guest is told it.
fn id(serial: &str) -> io::Result<[u8; ID_SIZE as usize]> {
    let mut id = [0; ID_SIZE as usize];
    id.get_mut(..serial.len())
        .ok_or_else(|| {
            invalid(format!(
                "a disk's serial number has at most {ID_SIZE} bytes: shorten {serial:?}"
            ))
        })?
        .copy_from_slice(serial.as_bytes());
    Ok(id)
}

/// The disk's file.
#[derive(Debug)]
struct Backend {
    file: File,
    disk: Disk,
    id: [u8; ID_SIZE as usize],
    /// Whether every write is made stable at once.
    write_through: bool,
}

impl Backend {
    /// Does the request `chain` and tells the guest how it went. Returns the bytes written.
    fn serve(&self, memory: &GuestMemory, chain: &Chain) -> Result<u32, QueueError> {
        // The last writable byte is the status, the ones before it are data.
        let Some(data_length) = chain.writable.len().checked_sub(1) else {
            return Err(QueueError::Request(
                "a block request without room for its status",
            ));
        };
        let (status, written) = match self.execute(memory, chain, data_length) {
            Ok(written) => (Status::Ok, written),
            Err(status) => (status, 0),
        };
        chain
            .writable
            .write(memory, data_length, &[status.byte()])
            .map_err(|_| QueueError::Request("a block request whose status is outside memory"))?;
        // `written` bytes of data, at most `data_length`, and the status.
        Ok(written + 1)
    }

    fn execute(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
        data_length: u32,
    ) -> Result<u32, Status> {
        let mut header = [0; HEADER_SIZE as usize];
        chain
            .readable
            .read(memory, 0, &mut header)
            .map_err(|_| Status::IoError)?;
        let readable = chain.readable.len() - HEADER_SIZE;

        match Request::parse(header, readable, data_length, self.disk)? {
            Request::Read { position, length } => {
                let span = Span {
                    memory,
                    buffers: &chain.writable,
                    offset: 0,
                    length,
                };
                self.check(read_exact_at(&self.file, position, span), "read")?;
                Ok(length)
            }
            Request::Write { position, length } => {
                let span = Span {
                    memory,
                    buffers: &chain.readable,
                    offset: HEADER_SIZE,
                    length,
                };
                self.check(write_all_at(&self.file, position, span), "write")?;
                self.settle()
            }
            Request::Flush => self.flush(),
            Request::GetId => {
                chain
                    .writable
                    .write(memory, 0, &self.id)
                    .map_err(|_| Status::IoError)?;
                Ok(ID_SIZE)
            }
            Request::Discard { ranges } => {
                for range in 0..ranges {
                    let range = Range::discard(read_range(memory, chain, range)?, self.disk)?;
                    self.check(self.discard(range), "discard")?;
                }
                self.settle()
            }
            Request::WriteZeroes { ranges } => {
                for range in 0..ranges {
                    let range = Range::write_zeroes(read_range(memory, chain, range)?, self.disk)?;
                    self.check(self.write_zeroes(range), "zero")?;
                }
                self.settle()
            }
        }
    }

    fn discard(&self, range: Range) -> io::Result<()> {
        // Discarding is a hint; a file that cannot have holes keeps its data.
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, range)
            .map(drop)
    }

    fn write_zeroes(&self, range: Range) -> io::Result<()> {
        if range.unmap && self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, range)? {
            return Ok(());
        }
        if self.fallocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, range)? {
            return Ok(());
        }
        let mut position = range.position;
        let end = range.position + range.length;
        while position < end {
            // At most 64 KiB, so it fits.
            let length = (end - position).min(ZEROES.len() as u64) as usize;
            self.file.write_all_at(&ZEROES[..length], position)?;
            position += length as u64;
        }
        Ok(())
    }

    /// Changes how `range` is allocated. False if the file system has no such thing.
    fn fallocate(&self, mode: FallocateFlags, range: Range) -> io::Result<bool> {
        if range.length == 0 {
            return Ok(true);
        }
        // A file that shrank must not grow again.
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let position = i64::try_from(range.position).map_err(io::Error::other)?;
        let length = i64::try_from(range.length).map_err(io::Error::other)?;
        loop {
            match fallocate(&self.file, mode, position, length) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends a request that changed the disk.
    fn settle(&self) -> Result<u32, Status> {
        if self.write_through {
            self.flush()
        } else {
            Ok(0)
        }
    }

    fn flush(&self) -> Result<u32, Status> {
        // Nothing changes a read-only disk, and its file may be on a medium that refuses to sync.
        if !self.disk.read_only {
            self.check(self.file.sync_data(), "flush")?;
        }
        Ok(0)
    }

    fn check(&self, result: io::Result<()>, what: &'static str) -> Result<(), Status> {
        result.map_err(|error| {
            tracing::debug!(%error, what, "a disk's file failed; the guest sees an I/O error");
            Status::IoError
        })
    }
}

fn read_range(
    memory: &GuestMemory,
    chain: &Chain,
    index: u32,
) -> Result<[u8; RANGE_SIZE as usize], Status> {
    let mut range = [0; RANGE_SIZE as usize];
    chain
        .readable
        .read(memory, HEADER_SIZE + index * RANGE_SIZE, &mut range)
        .map_err(|_| Status::IoError)?;
    Ok(range)
}

/// The size of the configuration space: up to and including `write_zeroes_may_unmap` and its
/// padding (specification section 5.2.4).
const CONFIG_SIZE: usize = 60;

fn config_space(disk: Disk) -> [u8; CONFIG_SIZE] {
    let mut space = [0; CONFIG_SIZE];
    let mut put = |offset: usize, bytes: &[u8]| {
        space[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &disk.sectors.to_le_bytes()); // capacity
    put(12, &MAX_DATA_BUFFERS.to_le_bytes()); // seg_max
    put(20, &(SECTOR as u32).to_le_bytes()); // blk_size
    if !disk.read_only {
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_DISCARD_RANGES.to_le_bytes());
        put(44, &DISCARD_ALIGNMENT.to_le_bytes());
        put(48, &MAX_ZEROES_SECTORS.to_le_bytes());
        put(52, &MAX_ZEROES_RANGES.to_le_bytes());
        put(56, &[1]); // write_zeroes_may_unmap
    }
    space
}

/// The size of a regular file or a block device.
fn size_of_disk(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(metadata.len())
    } else if kind.is_block_device() {
        // A block device has no length but an end.
        let mut file = file;
        let position = file.stream_position()?;
        let size = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(position))?;
        Ok(size)
    } else {
        Err(invalid(
            "a disk must be a regular file or a block device".to_owned(),
        ))
    }
}

fn check_open_for_writing(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if flags & OFlag::O_ACCMODE != OFlag::O_RDWR {
        return Err(invalid(
            "a disk that the guest may write needs a file that is open for reading and writing"
                .to_owned(),
        ));
    }
    // Linux appends even if a write names its position (pwrite(2), BUGS).
    if flags.contains(OFlag::O_APPEND) {
        return Err(invalid(
            "a disk's file must not be open for appending".to_owned(),
        ));
    }
    Ok(())
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
