//! Guest memory: its mapping in this process and its registration with KVM.
#![allow(unsafe_code, reason = "giving guest memory to KVM")]

use std::io;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch;

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
