//! Guest memory: its mapping in this process and its registration with KVM.
#![allow(unsafe_code, reason = "giving guest memory to KVM")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use ember_snapshot::pager::{self, GuestMapping, Segment};
use ember_snapshot::{PageRun, PageSet};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use nix::libc;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::arch;
use crate::vm::MemoryRange;

/// All of a guest's memory. A clone is another handle on the same mappings.
pub(crate) type GuestMemory = GuestMemoryMmap<()>;

/// Maps `bytes` of zeroed memory for a guest: private to it, and backed by nothing until touched.
pub(crate) fn map_anonymous(bytes: u64) -> io::Result<GuestMemory> {
    let ranges = arch::layout::memory_ranges(bytes)
        .into_iter()
        .map(|(start, len)| Ok((start, usize::try_from(len).map_err(io::Error::other)?)))
        .collect::<io::Result<Vec<(GuestAddress, usize)>>>()?;
    let memory = GuestMemory::from_ranges(&ranges).map_err(|error| match error {
        FromRangesError::MmapRegion(error) => mapping_error(error),
        error => io::Error::other(error),
    })?;
    // A guest touches a few pages of its lowest memory: what it is started with, and what its other
    // processors start from. A huge page there would be 2 MiB to clear and to keep for them. A
    // kernel that has no huge pages knows no such advice.
    if let Some(lowest) = memory.iter().next() {
        let _ = advise(&lowest.get_mmap(), HUGE_PAGE_BYTES, Advice::SmallPages);
    }
    Ok(memory)
}

/// What the operating system said: vm-memory shows it, and does not give it as its source.
fn mapping_error(error: MmapRegionError) -> io::Error {
    match error {
        MmapRegionError::Mmap(error) => error,
        error => io::Error::other(error),
    }
}

/// Maps `bytes` of guest memory that begin as what is in `file`, in the order of their addresses
/// and without the hole below 4 GiB. Private: what the guest writes stays its own, and `file` is
/// never changed.
pub(crate) fn map_private(file: &Arc<File>, bytes: u64) -> io::Result<GuestMemory> {
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in arch::layout::memory_ranges(bytes) {
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let file = FileOffset::from_arc(Arc::clone(file), offset);
        let mapping = map_aligned(&file, size)?;
        let region = GuestRegionMmap::new(mapping, start)
            .ok_or_else(|| io::Error::other("guest memory beyond the address space"))?;
        regions.push(region);
        offset += len;
    }
    GuestMemory::from_regions(regions).map_err(io::Error::other)
}

/// What one entry of a page table's second level maps, on all architectures with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Maps `size` bytes of `file`, at a multiple of 2 MiB if that can be had: huge pages of the file
/// are mapped as such only there.
fn map_aligned(file: &FileOffset, size: usize) -> io::Result<MmapRegion> {
    let map = || {
        MmapRegion::build(
            Some(file.clone()),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            // Not reserved: most of it will never be copied.
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
        .map_err(mapping_error)
    };
    let mapping = map()?;
    let excess = mapping.as_ptr().addr() % HUGE_PAGE_BYTES;
    if excess == 0 || size < HUGE_PAGE_BYTES {
        return Ok(mapping);
    }
    // The kernel puts a mapping at the end of the highest gap that it fits in (`vm_unmapped_area`),
    // so that what is too much, taken first, moves it down to where it should be. Another thread
    // may come between, which costs nothing but time.
    drop(mapping);
    let filler = MmapRegion::<()>::build(
        None,
        excess,
        libc::PROT_NONE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    let mapping = map();
    drop(filler);
    mapping
}

/// Lets the kernel merge pages of `memory` with others of equal content.
pub(crate) fn allow_merging(memory: &GuestMemory) -> io::Result<()> {
    for region in memory.iter() {
        let mapping = region.get_mmap();
        advise(&mapping, mapping.size(), Advice::Mergeable)?;
    }
    Ok(())
}

/// Of what the kernel can be told of memory (madvise(2)), some that changes none of its content.
#[derive(Clone, Copy, Debug)]
enum Advice {
    /// Pages may be merged with others that are equal.
    Mergeable = libc::MADV_MERGEABLE as isize,
    /// No huge pages.
    SmallPages = libc::MADV_NOHUGEPAGE as isize,
}

/// Advises the kernel on the first `bytes` of a mapping, or on all of one that is smaller.
fn advise(mapping: &MmapRegion, bytes: usize, advice: Advice) -> io::Result<()> {
    let bytes = bytes.min(mapping.size());
    // SAFETY: this advice changes no content, and the range is within one mapping.
    match unsafe { libc::madvise(mapping.as_ptr().cast(), bytes, advice as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where `memory` is in this process.
pub(crate) fn ranges(memory: &GuestMemory) -> Vec<MemoryRange> {
    let mut offset = 0;
    let mut ranges = Vec::new();
    for region in memory.iter() {
        let len = region.get_mmap().size();
        ranges.push(MemoryRange {
            offset,
            host_address: region.get_mmap().as_ptr().expose_provenance(),
            len,
        });
        offset += len as u64;
    }
    ranges
}

/// How much is copied out at once.
const VISIT_BYTES: u64 = 256 * 1024;

/// Hands every page to `sink` that is this mapping's own: not the file's, and not untouched.
pub(crate) fn visit_changed(
    memory: &GuestMemory,
    sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let changed = pager::changed_pages(&mapping(memory)?).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    for run in changed.runs() {
        for piece in run.pieces(VISIT_BYTES / arch::layout::PAGE_SIZE) {
            let mut offset = piece.offset();
            let mut outcome = Ok(());
            for_each_piece(memory, piece, |address, len| {
                if outcome.is_ok() {
                    bytes.resize(len as usize, 0);
                    outcome = memory
                        .read_slice(&mut bytes, GuestAddress(address))
                        .map_err(io::Error::other)
                        .and_then(|()| sink(offset, &bytes));
                    offset += len;
                }
            });
            outcome?;
        }
    }
    Ok(())
}

/// `memory` for those who look after its pages. It must not outlive `memory`.
pub(crate) fn mapping(memory: &GuestMemory) -> io::Result<GuestMapping> {
    let segments = ranges(memory).into_iter().filter_map(|range| {
        let host = std::ptr::with_exposed_provenance_mut(range.host_address);
        Some(Segment {
            host: NonNull::new(host)?,
            offset: range.offset,
            bytes: range.len as u64,
        })
    });
    // SAFETY: each segment is a whole private mapping of guest memory, which nothing in this process
    // refers to except through vm-memory's volatile accesses, and which is unmapped only with
    // `memory`: the callers keep that for as long as they keep this.
    unsafe { GuestMapping::new(segments) }.map_err(io::Error::other)
}

/// Calls `work` with the guest-physical address and the length of each piece of `run` that is guest
/// memory.
fn for_each_piece(memory: &GuestMemory, run: PageRun, mut work: impl FnMut(u64, u64)) {
    let (start, end) = (run.offset(), run.offset() + run.bytes());
    for (region, mapped) in memory.iter().zip(ranges(memory)) {
        let first = start.max(mapped.offset);
        let last = end.min(mapped.offset + mapped.len as u64);
        if first < last {
            let address = region.start_addr().raw_value() + (first - mapped.offset);
            work(address, last - first);
        }
    }
}

/// `struct kvm_pre_fault_memory` (kernel `Documentation/virt/kvm/api.rst`, 4.143; since 6.11).
#[repr(C)]
#[derive(Debug, Default)]
struct PreFaultMemory {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

mod pre_fault {
    use kvm_bindings::KVMIO;
    nix::ioctl_readwrite!(memory, KVMIO, 0xd5, super::PreFaultMemory);
}

/// Has KVM map what the guest will touch, in this process as well, so that it need not leave the
/// guest for each page. Says whether KVM can; where it cannot, it maps each page when it is touched,
/// as ever.
pub(crate) fn map_for_guest(vcpu: &VcpuFd, memory: &GuestMemory, touched: &PageSet) -> bool {
    let mut possible = true;
    for run in touched.runs() {
        for_each_piece(memory, *run, |gpa, size| {
            let mut request = PreFaultMemory {
                gpa,
                size,
                ..PreFaultMemory::default()
            };
            while request.size > 0 && possible {
                // SAFETY: the descriptor is open and the structure is KVM's, which updates it.
                let done = unsafe { pre_fault::memory(vcpu.as_raw_fd(), &raw mut request) };
                possible = matches!(done, Ok(_) | Err(nix::errno::Errno::EINTR));
            }
        });
    }
    possible
}

/// A VM's descriptor together with the guest memory that KVM was given.
///
/// KVM keeps using the mappings for as long as the VM exists, so the two are one value and the
/// memory is the last to go.
#[derive(Debug)]
pub(crate) struct VmWithMemory {
    fd: VmFd,
    memory: GuestMemory,
}

impl VmWithMemory {
    /// Gives all of `memory` to the VM, at the addresses it says.
    pub(crate) fn new(fd: VmFd, memory: GuestMemory) -> Result<Self, kvm_ioctls::Error> {
        let vm = Self { fd, memory };
        for (slot, region) in (0..).zip(vm.memory.iter()) {
            let host_address = region.get_mmap().as_ptr() as u64;
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host_address,
            };
            // SAFETY: the range is one whole mapping, which lives as long as `vm.memory` and so
            // longer than the descriptor; nothing in this process refers to it except through
            // vm-memory's volatile accesses.
            unsafe { vm.fd.set_user_memory_region(slot) }?;
        }
        Ok(vm)
    }

    /// The VM's descriptor.
    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}
