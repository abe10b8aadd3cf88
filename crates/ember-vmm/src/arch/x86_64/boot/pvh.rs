//! The PVH boot protocol (Xen `docs/misc/pvh.pandoc` and
//! `xen/include/public/arch-x86/hvm/start_info.h`).

use vm_memory::{Bytes, GuestAddress};

use super::super::layout::{
    COMMAND_LINE, PVH_MEMORY_MAP, PVH_MODULES, PVH_START_INFO, memory_bytes, memory_map,
};
use super::{BootError, GuestRange};
use crate::memory::GuestMemory;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336E_C578;
/// The first version with a memory map.
const VERSION: u32 = 1;

/// Writes the start info and what it points to.
pub(super) fn write(
    memory: &GuestMemory,
    initramfs: Option<GuestRange>,
    rsdp: GuestAddress,
) -> Result<(), BootError> {
    let map = memory_map(memory_bytes(memory));
    let mut entries = Vec::new();
    for entry in &map {
        entries.extend(entry.start.to_le_bytes());
        entries.extend(entry.len.to_le_bytes());
        entries.extend((entry.kind as u32).to_le_bytes());
        entries.extend(0u32.to_le_bytes()); // reserved
    }
    memory.write_slice(&entries, PVH_MEMORY_MAP)?;

    // The first module is the initramfs.
    if let Some(initramfs) = initramfs {
        let mut module = Vec::new();
        module.extend(initramfs.start.0.to_le_bytes());
        module.extend(initramfs.len.to_le_bytes());
        module.extend(0u64.to_le_bytes()); // no command line of its own
        module.extend(0u64.to_le_bytes()); // reserved
        memory.write_slice(&module, PVH_MODULES)?;
    }

    let mut info = Vec::new();
    info.extend(MAGIC.to_le_bytes());
    info.extend(VERSION.to_le_bytes());
    info.extend(0u32.to_le_bytes()); // flags: not the initial domain
    info.extend(u32::from(initramfs.is_some()).to_le_bytes()); // modules
    info.extend(initramfs.map_or(0, |_| PVH_MODULES.0).to_le_bytes());
    info.extend(COMMAND_LINE.0.to_le_bytes());
    info.extend(rsdp.0.to_le_bytes());
    info.extend(PVH_MEMORY_MAP.0.to_le_bytes());
    info.extend(u32::try_from(map.len())?.to_le_bytes());
    info.extend(0u32.to_le_bytes()); // reserved
    memory.write_slice(&info, PVH_START_INFO)?;
    Ok(())
}
