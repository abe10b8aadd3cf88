//! What a kernel finds in memory when it starts: its command line, the initramfs, the memory map
//! and the descriptor table, in the form its boot protocol wants.

mod linux64;
mod pvh;

use std::num::TryFromIntError;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

use super::BootRegisters;
use super::layout::{
    self, COMMAND_LINE, COMMAND_LINE_MAX, GDT, PAGE_SIZE, PVH_START_INFO, RESET_PORT, RESET_VALUE,
    RESET_VECTOR, ZERO_PAGE,
};
use crate::kernel::{Entry, Initramfs, LoadedKernel};
use crate::memory::GuestMemory;

/// Why a kernel cannot be given what it needs to start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// The command line is longer than the kernel reads.
    #[error("the command line has {length} bytes; this kernel reads at most {max}")]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// The longest one, without the zero byte at its end.
        max: usize,
    },
    /// The command line would end in its middle.
    #[error("the command line has a zero byte in it")]
    CommandLineZero,
    /// Kernel and initramfs need more memory than there is.
    #[error(
        "an initramfs of {size} bytes does not fit between the kernel, which ends at {kernel_end:#x}, \
         and the end of memory at {memory_end:#x}; give the guest more memory"
    )]
    InitramfsTooLarge {
        /// Its size.
        size: usize,
        /// The first address that it could have.
        kernel_end: u64,
        /// Where it has to end.
        memory_end: u64,
    },
    /// The kernel cannot be told where something is.
    #[error("an address or a size is beyond what the boot protocol can express")]
    Unrepresentable(#[from] TryFromIntError),
    /// Guest memory is not there.
    #[error("a boot structure cannot be written into guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GuestRange {
    start: GuestAddress,
    len: u64,
}

/// Writes everything that `kernel` needs to start, and says with what registers to enter it. `rsdp`
/// is where the ACPI tables begin.
pub(crate) fn write_boot_structures(
    memory: &GuestMemory,
    kernel: &LoadedKernel,
    initramfs: &Initramfs,
    command_line: &str,
    rsdp: GuestAddress,
) -> Result<BootRegisters, BootError> {
    write_command_line(memory, kernel, command_line)?;
    memory.write_slice(&reset_code(), RESET_VECTOR)?;
    let initramfs = match initramfs.is_empty() {
        false => Some(write_initramfs(memory, kernel, initramfs)?),
        true => None,
    };
    match &kernel.entry {
        Entry::Pvh { address } => {
            memory.write_slice(&GdtMode::Protected.descriptors(), GDT)?;
            pvh::write(memory, initramfs, rsdp)?;
            Ok(BootRegisters::Pvh {
                entry: address.0,
                start_info: PVH_START_INFO.0,
            })
        }
        Entry::Linux64 { address, setup } => {
            memory.write_slice(&GdtMode::Long.descriptors(), GDT)?;
            linux64::write(memory, setup.as_ref(), initramfs, rsdp)?;
            Ok(BootRegisters::Linux64 {
                entry: address.0,
                boot_params: ZERO_PAGE.0,
            })
        }
    }
}

fn write_command_line(
    memory: &GuestMemory,
    kernel: &LoadedKernel,
    line: &str,
) -> Result<(), BootError> {
    let mut max = COMMAND_LINE_MAX - 1;
    if let Entry::Linux64 {
        setup: Some(setup), ..
    } = &kernel.entry
    {
        max = max.min(setup.command_line_max as usize);
    }
    if line.len() > max {
        return Err(BootError::CommandLineTooLong {
            length: line.len(),
            max,
        });
    }
    if line.contains('\0') {
        return Err(BootError::CommandLineZero);
    }
    memory.write_slice(line.as_bytes(), COMMAND_LINE)?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE.0 + line.len() as u64))?;
    Ok(())
}

/// Writes the initramfs as high as it may be, so that it is out of the way of a kernel that still
/// has to unpack itself.
fn write_initramfs(
    memory: &GuestMemory,
    kernel: &LoadedKernel,
    initramfs: &Initramfs,
) -> Result<GuestRange, BootError> {
    let mut memory_end = layout::low_ram_end(memory);
    if let Entry::Linux64 {
        setup: Some(setup), ..
    } = &kernel.entry
    {
        memory_end = memory_end.min(u64::from(setup.initrd_address_max) + 1);
    }
    let kernel_end = kernel.end.0;
    let len = initramfs.len() as u64;
    let start = memory_end
        .checked_sub(len)
        .map(|start| start - start % PAGE_SIZE)
        .filter(|start| *start >= kernel_end)
        .ok_or(BootError::InitramfsTooLarge {
            size: initramfs.len(),
            kernel_end,
            memory_end,
        })?;
    let mut at = GuestAddress(start);
    for piece in initramfs.pieces() {
        memory.write_slice(piece, at)?;
        at = at.unchecked_add(piece.len() as u64);
    }
    Ok(GuestRange {
        start: GuestAddress(start),
        len,
    })
}

/// What is at the reset vector: real-mode code that writes the reset register.
///
/// Linux takes a platform with hardware-reduced ACPI for one with EFI when it restarts
/// (`reboot_init`), finds that there is none, and then jumps to the reset vector in real mode rather
/// than use the register that ACPI tells it of. Without this it would run into the empty memory
/// there and never end.
fn reset_code() -> [u8; 9] {
    let [port_low, port_high] = RESET_PORT.to_le_bytes();
    [
        0xBA,
        port_low,
        port_high, // mov dx, port
        0xB0,
        RESET_VALUE, // mov al, value
        0xEE,        // out dx, al
        0xF4,        // hlt
        0xEB,
        0xFD, // jmp to the hlt
    ]
}

/// What the code segment is.
#[derive(Clone, Copy, Debug)]
enum GdtMode {
    /// 32-bit.
    Protected,
    /// 64-bit.
    Long,
}

impl GdtMode {
    /// The descriptors (Intel SDM volume 3A, 3.4.5) of the segments that the boot vCPU starts with,
    /// should the kernel load a segment register before it has a table of its own: `__BOOT_CS` is
    /// 0x10, `__BOOT_DS` is 0x18.
    fn descriptors(self) -> [u8; 32] {
        const CODE_32: u64 = 0x00CF_9B00_0000_FFFF;
        const CODE_64: u64 = 0x00AF_9B00_0000_FFFF;
        const DATA: u64 = 0x00CF_9300_0000_FFFF;
        let code = match self {
            Self::Protected => CODE_32,
            Self::Long => CODE_64,
        };
        let mut bytes = [0; 32];
        bytes[16..24].copy_from_slice(&code.to_le_bytes());
        bytes[24..32].copy_from_slice(&DATA.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests;
