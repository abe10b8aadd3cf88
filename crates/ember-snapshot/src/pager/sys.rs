//! userfaultfd and `PAGEMAP_SCAN` (`linux/userfaultfd.h`, `linux/fs.h`).
#![allow(unsafe_code, reason = "ioctls that no crate has")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::PagerError;
use super::mapping::{GuestMapping, Part};
use crate::pages::{PAGE_SIZE, PageRun, PageSet};

const UFFD: u8 = 0xaa;
const API: u64 = 0xaa;
const IOCTL_NEW: Opcode = opcode::none(UFFD, 0x00);
const IOCTL_REGISTER: Opcode = opcode::read_write::<Register>(UFFD, 0x00);
const IOCTL_WAKE: Opcode = opcode::read::<Range>(UFFD, 0x02);
const IOCTL_COPY: Opcode = opcode::read_write::<Copy>(UFFD, 0x03);
const IOCTL_ZEROPAGE: Opcode = opcode::read_write::<Fill>(UFFD, 0x04);
const IOCTL_WRITEPROTECT: Opcode = opcode::read_write::<WriteProtect>(UFFD, 0x06);
const IOCTL_POISON: Opcode = opcode::read_write::<Fill>(UFFD, 0x08);
const IOCTL_API: Opcode = opcode::read_write::<Api>(UFFD, 0x3f);
const IOCTL_PAGEMAP_SCAN: Opcode = opcode::read_write::<Scan>(b'f', 16);

const MODE_MISSING: u64 = 1;
const MODE_WP: u64 = 2;
const WRITEPROTECT_WP: u64 = 1;
/// The bits of `Register::ioctls` are the numbers of the calls.
const CAN_WRITEPROTECT: u64 = 1 << 0x06;

const FEATURE_WP: u64 = 1 << 0;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_WP_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_POISON: u64 = 1 << 14;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;
const MESSAGE_BYTES: usize = 32;
/// How many events are taken in one call.
const MESSAGES: usize = 16;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

impl Range {
    fn of(part: &Part) -> Self {
        Self {
            start: part.address(),
            len: part.bytes(),
        }
    }
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_zeropage` and `struct uffdio_poison`, which are alike.
#[repr(C)]
struct Fill {
    range: Range,
    mode: u64,
    filled: i64,
}

#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

// Tripwires: the kernel's structures. Their sizes are part of the numbers of the calls.
const _: () = assert!(size_of::<Api>() == 24 && size_of::<Register>() == 32);
const _: () = assert!(size_of::<Copy>() == 40 && size_of::<Fill>() == 32);
const _: () = assert!(size_of::<WriteProtect>() == 24 && size_of::<Scan>() == 96);
const _: () = assert!(offset_of!(Copy, copied) == 32 && offset_of!(Fill, filled) == 24);

/// What a fault or another event was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A thread waits for this page.
    Fault(u64),
    /// These pages are being given back, and will be zero.
    Removed(PageRun),
}

/// What became of an attempt to fill pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// So many of them are there now, and whoever waited for them goes on.
    Pages(u64),
    /// The first is there already.
    Exists,
    /// An event has to be read first.
    Changing,
    /// There is no such mapping any more.
    Gone,
}

/// What is wanted of a [`Userfault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To fill pages that are not there.
    Missing,
    /// To be told of writes to protected pages: also to pages that are not there, if `everywhere`
    /// and the kernel can. (Of pages of a file it always can.)
    WriteProtect {
        /// See above.
        everywhere: bool,
    },
}

/// A userfaultfd that a guest's memory is registered with.
///
/// When it is dropped, the memory becomes ordinary again: protection is lifted, pages that are not
/// there are zero, and whoever waits goes on.
#[derive(Debug)]
pub(super) struct Userfault {
    fd: OwnedFd,
    mapping: GuestMapping,
    features: u64,
}

impl Userfault {
    /// Registers all of `mapping`.
    pub(super) fn register(mapping: GuestMapping, purpose: Purpose) -> Result<Self, PagerError> {
        let unsupported = match purpose {
            Purpose::Missing => PagerError::Unsupported {
                what: "fill memory on demand",
                since: "4.11",
            },
            Purpose::WriteProtect { .. } => PagerError::Unsupported {
                what: "protect a guest's memory from writes",
                since: "5.19",
            },
        };
        // What has to be, and what is good to have.
        let (needed, wished, mode) = match purpose {
            Purpose::Missing => (FEATURE_EVENT_REMOVE, FEATURE_POISON, MODE_MISSING),
            Purpose::WriteProtect { everywhere } => {
                let wished = if everywhere {
                    FEATURE_WP_UNPOPULATED
                } else {
                    0
                };
                (FEATURE_WP | FEATURE_WP_SHMEM, wished, MODE_WP)
            }
        };
        let fd = open()?;
        let mut features = needed | wished;
        // To ask for a feature that the kernel does not have fails, and may be tried again.
        if !handshake(fd.as_fd(), features) {
            features = needed;
            if !handshake(fd.as_fd(), features) {
                return Err(unsupported);
            }
        }
        for part in mapping.parts() {
            let mut register = Register {
                range: Range::of(part),
                mode,
                ioctls: 0,
            };
            // SAFETY: the structure is the one of this call.
            let call = unsafe { Updater::<IOCTL_REGISTER, _>::new(&mut register) };
            // SAFETY: what it changes is how faults in the range are resolved, which whoever made
            // the mapping has agreed to.
            unsafe { ioctl(&fd, call) }
                .map_err(PagerError::io("register a guest's memory with userfaultfd"))?;
            if mode == MODE_WP && register.ioctls & CAN_WRITEPROTECT == 0 {
                return Err(unsupported);
            }
        }
        Ok(Self {
            fd,
            mapping,
            features,
        })
    }

    /// The descriptor, to wait for events.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The memory.
    pub(super) fn mapping(&self) -> &GuestMapping {
        &self.mapping
    }

    /// Whether pages that are not there are protected as well.
    pub(super) fn protects_everywhere(&self) -> bool {
        self.features & FEATURE_WP_UNPOPULATED != 0
    }

    /// Takes the events that there are, without waiting. Says whether there was any.
    pub(super) fn events(&self, mut visit: impl FnMut(Event)) -> io::Result<bool> {
        let mut messages = [0; MESSAGE_BYTES * MESSAGES];
        let count = match rustix::io::read(&self.fd, &mut messages) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let (messages, _) = messages.as_chunks::<MESSAGE_BYTES>();
        for message in messages.iter().take(count / MESSAGE_BYTES) {
            if let Some(event) = self.event(message) {
                visit(event);
            }
        }
        Ok(count > 0)
    }

    /// What `struct uffd_msg` says: the event, and from byte 8 on what belongs to it.
    fn event(&self, message: &[u8; MESSAGE_BYTES]) -> Option<Event> {
        let [kind, first, second, ..] = message.as_chunks::<8>().0 else {
            return None;
        };
        let (first, second) = (u64::from_le_bytes(*first), u64::from_le_bytes(*second));
        match kind.first() {
            // Flags, then the address.
            Some(&EVENT_PAGEFAULT) => self.mapping.page_at(second).map(Event::Fault),
            // From, up to. A range does not reach across a mapping.
            Some(&EVENT_REMOVE) => {
                let start = self.mapping.page_at(first)?;
                let pages = second.checked_sub(first)? / PAGE_SIZE;
                PageRun::new(start, pages).map(Event::Removed)
            }
            _ => None,
        }
    }

    /// Fills pages from `first` on with `content`, as far as one call goes.
    pub(super) fn fill(&self, first: u64, content: &[u8]) -> io::Result<Filled> {
        let Some(part) = self.part(first, content.len() as u64 / PAGE_SIZE) else {
            return Ok(Filled::Gone);
        };
        let mut copy = Copy {
            dst: part.address(),
            src: content.as_ptr().addr() as u64,
            // A part may end before the content does, never the other way round.
            len: part.bytes(),
            mode: 0,
            copied: 0,
        };
        // SAFETY: the structure is the one of this call.
        let call = unsafe { Updater::<IOCTL_COPY, _>::new(&mut copy) };
        // SAFETY: the kernel reads `len` bytes of `content`, which has at least as many, and writes
        // only where no page is yet, within a mapping that is registered for it.
        let result = unsafe { ioctl(&self.fd, call) };
        filled(result, copy.copied, &part)
    }

    /// Fills the pages of `run` with zeroes, as far as one call goes.
    pub(super) fn zero(&self, run: PageRun) -> io::Result<Filled> {
        self.fill_with::<IOCTL_ZEROPAGE>(run)
    }

    /// Makes the pages of `run` such that whoever touches them gets SIGBUS, as far as one call
    /// goes. `None` if the kernel cannot.
    pub(super) fn poison(&self, run: PageRun) -> Option<io::Result<Filled>> {
        (self.features & FEATURE_POISON != 0).then(|| self.fill_with::<IOCTL_POISON>(run))
    }

    fn fill_with<const CALL: Opcode>(&self, run: PageRun) -> io::Result<Filled> {
        let Some(part) = self.part(run.start(), run.pages()) else {
            return Ok(Filled::Gone);
        };
        let mut fill = Fill {
            range: Range::of(&part),
            mode: 0,
            filled: 0,
        };
        // SAFETY: the structure is the one of these calls.
        let call = unsafe { Updater::<CALL, _>::new(&mut fill) };
        // SAFETY: they only change pages that are not there yet, within a mapping that is
        // registered for it.
        let result = unsafe { ioctl(&self.fd, call) };
        filled(result, fill.filled, &part)
    }

    /// The first part of the memory that has these pages.
    fn part(&self, first: u64, pages: u64) -> Option<Part> {
        self.mapping.within(PageRun::new(first, pages)?).next()
    }

    /// Lets whoever waits for pages of `run` try again.
    pub(super) fn wake(&self, run: PageRun) {
        for part in self.mapping.within(run) {
            let mut range = Range::of(&part);
            // SAFETY: the structure is the one of this call.
            let call = unsafe { Updater::<IOCTL_WAKE, _>::new(&mut range) };
            // SAFETY: it touches no memory. It fails only where the mapping is gone, and then
            // nobody waits.
            let _ = unsafe { ioctl(&self.fd, call) };
        }
    }

    /// Makes threads that write to the pages of `run` wait, or lets them go on.
    pub(super) fn protect(&self, run: PageRun, protected: bool) -> io::Result<()> {
        for part in self.mapping.within(run) {
            let mut protect = WriteProtect {
                range: Range::of(&part),
                mode: if protected { WRITEPROTECT_WP } else { 0 },
            };
            // SAFETY: the structure is the one of this call.
            let call = unsafe { Updater::<IOCTL_WRITEPROTECT, _>::new(&mut protect) };
            // SAFETY: it changes no content.
            unsafe { ioctl(&self.fd, call) }?;
        }
        Ok(())
    }
}

/// What a call that fills pages said: its result, and the field for what was done.
fn filled(result: rustix::io::Result<()>, done: i64, part: &Part) -> io::Result<Filled> {
    match result {
        Ok(()) => Ok(Filled::Pages(part.run.pages())),
        // Some of them, and then something came up.
        Err(Errno::AGAIN) if done > 0 => Ok(Filled::Pages(done.unsigned_abs() / PAGE_SIZE)),
        Err(Errno::AGAIN) => Ok(Filled::Changing),
        Err(Errno::EXIST) => Ok(Filled::Exists),
        Err(Errno::NOENT | Errno::SRCH) => Ok(Filled::Gone),
        Err(error) => Err(error.into()),
    }
}

/// A userfaultfd for faults in the kernel as well.
fn open() -> Result<OwnedFd, PagerError> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: nothing is registered with it yet.
    match unsafe { userfaultfd(flags) } {
        Ok(fd) => return Ok(fd),
        Err(Errno::PERM) => {}
        Err(Errno::NOSYS) => {
            return Err(PagerError::Unsupported {
                what: "hand page faults to a program",
                since: "4.11",
            });
        }
        Err(error) => return Err(PagerError::io("create a userfaultfd")(error)),
    }
    // Since Linux 6.1, whoever can open the device may do without the privilege.
    let device = File::open("/dev/userfaultfd").map_err(|_| PagerError::Refused)?;
    let flags = usize::try_from(flags.bits()).unwrap_or(0);
    // SAFETY: the call is the one of this device.
    unsafe { ioctl(&device, NewUserfault(flags)) }.map_err(|_| PagerError::Refused)
}

/// `USERFAULTFD_IOC_NEW`: its argument are flags, its result a descriptor.
struct NewUserfault(usize);

// SAFETY: the call takes a number, reads and writes no memory, and gives a new descriptor.
unsafe impl Ioctl for NewUserfault {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        IOCTL_NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the call succeeded, so this is a descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// Agrees with the kernel on `features`. Says whether it has them.
fn handshake(fd: BorrowedFd<'_>, features: u64) -> bool {
    let mut api = Api {
        api: API,
        features,
        ioctls: 0,
    };
    // SAFETY: the structure is the one of this call.
    let call = unsafe { Updater::<IOCTL_API, _>::new(&mut api) };
    // SAFETY: it touches nothing but the structure.
    unsafe { ioctl(fd, call) }.is_ok()
}

/// Categories of pages, for `PAGEMAP_SCAN`.
pub(super) mod category {
    /// Nothing protects the page from writes by way of userfaultfd.
    pub(in super::super) const WRITTEN: u64 = 1 << 1;
    /// The page is one of a file, or of shared memory: it is not a private copy.
    pub(in super::super) const FILE: u64 = 1 << 2;
    /// The page is mapped.
    pub(in super::super) const PRESENT: u64 = 1 << 3;
    /// The page was swapped out.
    pub(in super::super) const SWAPPED: u64 = 1 << 4;
    /// The page is the one page of zeroes.
    pub(in super::super) const PFNZERO: u64 = 1 << 5;
}

/// `struct pm_scan_arg`
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// How many regions are asked for in one call.
const REGIONS: usize = 1024;

/// Which pages to find.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// In all of these categories,
    pub(super) all: u64,
    /// in none of these,
    pub(super) none: u64,
    /// and in one of these.
    pub(super) any: u64,
}

/// Finds pages with `PAGEMAP_SCAN`, which Linux 6.7 has. `None` if this kernel does not.
pub(super) fn scan(
    pagemap: &File,
    mapping: &GuestMapping,
    wanted: Wanted,
) -> io::Result<Option<PageSet>> {
    let mut regions = vec![Region::default(); REGIONS];
    let mut found = Vec::new();
    for part in mapping.parts() {
        let end = part.address() + part.bytes();
        let mut start = part.address();
        while start < end {
            let scan = Scan {
                size: size_of::<Scan>() as u64,
                flags: 0,
                start,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr().addr() as u64,
                vec_len: regions.len() as u64,
                max_pages: 0,
                category_inverted: wanted.none,
                category_mask: wanted.all | wanted.none,
                category_anyof_mask: wanted.any,
                // The same for every page that is found, so that neighbours make one region.
                return_mask: wanted.none | wanted.all,
            };
            // SAFETY: the call writes to the structure, and to as many regions as there are.
            let (count, walked) = match unsafe { ioctl(pagemap, scan) } {
                Ok(result) => result,
                Err(Errno::NOTTY | Errno::INVAL) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for region in regions.iter().take(count) {
                let first = mapping.page_at(region.start);
                let pages = region.end.saturating_sub(region.start) / PAGE_SIZE;
                found.extend(first.and_then(|first| PageRun::new(first, pages)));
            }
            // A call that gets nowhere would be made for ever.
            if walked <= start {
                return Err(io::ErrorKind::InvalidData.into());
            }
            start = walked;
        }
    }
    Ok(Some(found.into_iter().collect()))
}

// SAFETY: the structure is the one of this call, and `vec` are `vec_len` regions that live until
// the caller, in the function above, has made it.
unsafe impl Ioctl for Scan {
    /// The number of regions, and the address up to which was looked.
    type Output = (usize, u64);
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        IOCTL_PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        scan: *mut c_void,
    ) -> rustix::io::Result<(usize, u64)> {
        // SAFETY: it is the pointer that `as_ptr` gave.
        let walked = unsafe { (*scan.cast::<Self>()).walk_end };
        Ok((usize::try_from(out).unwrap_or(0), walked))
    }
}
