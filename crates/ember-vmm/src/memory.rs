//! Guest memory.

use vm_memory::GuestMemoryMmap;

/// All of a guest's memory. A clone is another handle on the same mappings.
pub(crate) type GuestMemory = GuestMemoryMmap<()>;
