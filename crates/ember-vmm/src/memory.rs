//! Guest memory: its mapping in this process and its registration with KVM.
#![allow(unsafe_code, reason = "giving guest memory to KVM")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use nix::libc;
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, MmapRegion,
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
    GuestMemory::from_ranges(&ranges).map_err(io::Error::other)
}

/// Maps `bytes` of guest memory that begin as what is in `file`, in the order of their addresses
/// and without the hole below 4 GiB. Private: what the guest writes stays its own, and `file` is
/// never changed.
pub(crate) fn map_private(file: &Arc<File>, bytes: u64) -> io::Result<GuestMemory> {
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in arch::layout::memory_ranges(bytes) {
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let mapping = MmapRegion::build(
            Some(FileOffset::from_arc(Arc::clone(file), offset)),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            // Not reserved: most of it will never be copied.
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
        .map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(mapping, start)
            .ok_or_else(|| io::Error::other("guest memory beyond the address space"))?;
        regions.push(region);
        offset += len;
    }
    GuestMemory::from_regions(regions).map_err(io::Error::other)
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
const VISIT_BYTES: usize = 256 * 1024;
const PAGE_BYTES: usize = 4096;

/// Hands every page to `sink` that is this mapping's own: not the file's, and not untouched.
pub(crate) fn visit_changed(
    memory: &GuestMemory,
    sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut bytes = vec![0; VISIT_BYTES];
    let mut entries = vec![0; VISIT_BYTES / PAGE_BYTES * 8];
    for (region, range) in memory.iter().zip(ranges(memory)) {
        let mut done = 0;
        while done < range.len {
            let pages = ((range.len - done) / PAGE_BYTES).min(VISIT_BYTES / PAGE_BYTES);
            let entries = &mut entries[..pages * 8];
            let first = (range.host_address + done) / PAGE_BYTES;
            pagemap.read_exact_at(entries, first as u64 * 8)?;
            let changed: Vec<bool> = entries.as_chunks().0.iter().map(is_own).collect();
            let mut page = 0;
            while page < pages {
                let run = changed[page..].iter().take_while(|own| **own).count();
                if run == 0 {
                    page += 1;
                    continue;
                }
                let start = done + page * PAGE_BYTES;
                let bytes = &mut bytes[..run * PAGE_BYTES];
                region
                    .read_slice(bytes, MemoryRegionAddress(start as u64))
                    .map_err(io::Error::other)?;
                sink(range.offset + start as u64, bytes)?;
                page += run;
            }
            done += pages * PAGE_BYTES;
        }
    }
    Ok(())
}

/// What a guest will touch soon, in pages of its memory counted without the hole below 4 GiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// What it will write: first page and number of pages.
    pub written: Vec<(u64, u64)>,
    /// What it will only read.
    pub read: Vec<(u64, u64)>,
}

/// Brings what the guest will touch into this process, in as few calls as there are ranges: what it
/// will write is copied, what it will read is mapped. Only an optimization, so nothing is reported.
pub(crate) fn populate(memory: &GuestMemory, touched: &Touched) {
    for (ranges, advice) in [
        (&touched.written, libc::MADV_POPULATE_WRITE),
        (&touched.read, libc::MADV_POPULATE_READ),
    ] {
        for range in ranges {
            for_each_piece(memory, *range, |_, host_address, len| {
                let address = std::ptr::with_exposed_provenance_mut(host_address);
                // SAFETY: the range is within a mapping of guest memory, which `memory` keeps
                // alive; to populate it changes nothing that anyone can see.
                unsafe { libc::madvise(address, len, advice) };
            });
        }
    }
}

/// Calls `work` with the guest-physical address, the address in this process and the length of each
/// piece of `range` that is guest memory.
fn for_each_piece(
    memory: &GuestMemory,
    range: (u64, u64),
    mut work: impl FnMut(u64, usize, usize),
) {
    let page = PAGE_BYTES as u64;
    let start = range.0.saturating_mul(page);
    let end = range.0.saturating_add(range.1).saturating_mul(page);
    for (region, mapped) in memory.iter().zip(ranges(memory)) {
        let first = start.max(mapped.offset);
        let last = end.min(mapped.offset + mapped.len as u64);
        if first < last {
            let within = first - mapped.offset;
            work(
                region.start_addr().raw_value() + within,
                mapped.host_address + within as usize,
                (last - first) as usize,
            );
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

/// Has KVM map what the guest will touch, so that it need not leave the guest for each page. Where
/// KVM cannot, it maps each page when it is touched, as ever.
pub(crate) fn map_for_guest(vcpu: &VcpuFd, memory: &GuestMemory, touched: &Touched) {
    for range in touched.written.iter().chain(&touched.read) {
        for_each_piece(memory, *range, |guest_address, _, len| {
            let mut request = PreFaultMemory {
                gpa: guest_address,
                size: len as u64,
                ..PreFaultMemory::default()
            };
            while request.size > 0 {
                // SAFETY: the descriptor is open and the structure is KVM's, which updates it.
                let done = unsafe { pre_fault::memory(vcpu.as_raw_fd(), &raw mut request) };
                if !matches!(done, Ok(_) | Err(nix::errno::Errno::EINTR)) {
                    break;
                }
            }
        });
    }
}

/// Whether an entry of the page map is of a page that belongs to a private mapping itself (kernel
/// `Documentation/admin-guide/mm/pagemap.rst`): present or swapped out, and not a page of a file.
fn is_own(entry: &[u8; 8]) -> bool {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    let entry = u64::from_ne_bytes(*entry);
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0
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
