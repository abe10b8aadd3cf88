//! Bringing a kernel into guest memory.

use vm_memory::{Address, GuestAddress};

use super::bzimage::{BzImage, SetupHeader};
use super::elf::Elf;
use super::source::CopyError;
use super::{Form, KernelImage};
use crate::arch::layout;
use crate::memory::GuestMemory;

/// A kernel in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoadedKernel {
    /// How to enter it.
    pub(crate) entry: Entry,
    /// The first address behind everything that it takes.
    pub(crate) end: GuestAddress,
}

/// How a kernel is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// In 32-bit mode without paging, as a PVH guest.
    Pvh {
        /// Where.
        address: GuestAddress,
    },
    /// In 64-bit mode, by Linux's 64-bit boot protocol.
    Linux64 {
        /// Where.
        address: GuestAddress,
        /// What the zero page has to carry of the image's own; `None` for a bare ELF file, which
        /// has no such thing.
        setup: Option<SetupHeader>,
    },
}

/// Why a kernel cannot be brought into guest memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It wants to be where boot structures are, which no Linux does.
    #[error("the kernel wants to be at {0:#x}, below 1 MiB; this is not a Linux kernel")]
    TooLow(u64),
    /// It wants to be where there is no memory.
    #[error(
        "the kernel takes memory up to {} MiB, the guest has {} MiB below 4 GiB; give it more",
        .end.div_ceil(1 << 20), .available >> 20
    )]
    TooLittleMemory {
        /// The first address behind the kernel.
        end: u64,
        /// Where memory ends.
        available: u64,
    },
    /// Its bytes cannot be copied.
    #[error("the kernel cannot be copied into guest memory")]
    Copy(#[from] CopyError),
}

impl KernelImage {
    /// Copies the kernel into `memory`, which is fresh: what a kernel expects to be zero is not
    /// written, so that it takes no memory of the host until the guest uses it.
    pub(crate) fn load(&self, memory: &GuestMemory) -> Result<LoadedKernel, LoadError> {
        match &self.form {
            Form::Elf { elf, setup } => self.load_elf(elf, setup.as_ref(), memory),
            Form::BzImage(image) => self.load_bzimage(image, memory),
        }
    }

    fn load_elf(
        &self,
        elf: &Elf,
        setup: Option<&SetupHeader>,
        memory: &GuestMemory,
    ) -> Result<LoadedKernel, LoadError> {
        let mut end = 0;
        for segment in &elf.segments {
            check_place(segment.address, segment.end(), memory)?;
            end = end.max(segment.end());
        }
        for segment in &elf.segments {
            let address = GuestAddress(segment.address);
            self.content
                .copy_to_guest(segment.file_offset, segment.file_size, memory, address)?;
        }
        let entry = match elf.pvh_entry {
            Some(address) => Entry::Pvh {
                address: GuestAddress(u64::from(address)),
            },
            None => Entry::Linux64 {
                address: GuestAddress(elf.entry),
                setup: setup.cloned(),
            },
        };
        Ok(LoadedKernel {
            entry,
            end: GuestAddress(end),
        })
    }

    fn load_bzimage(
        &self,
        image: &BzImage,
        memory: &GuestMemory,
    ) -> Result<LoadedKernel, LoadError> {
        /// Where the 64-bit entry point is, from the beginning of the code.
        const ENTRY_64_OFFSET: u64 = 0x200;
        let address = image.setup.preferred_address;
        let size = (image.code.len() as u64).max(u64::from(image.setup.init_size));
        let end = address.saturating_add(size);
        check_place(address, end, memory)?;
        let code = &image.code;
        let (start, len) = (code.start as u64, code.len() as u64);
        self.content
            .copy_to_guest(start, len, memory, GuestAddress(address))?;
        let entry = Entry::Linux64 {
            address: GuestAddress(address).unchecked_add(ENTRY_64_OFFSET),
            setup: Some(image.setup.clone()),
        };
        Ok(LoadedKernel {
            entry,
            end: GuestAddress(end),
        })
    }
}

fn check_place(start: u64, end: u64, memory: &GuestMemory) -> Result<(), LoadError> {
    if start < layout::HIGH_RAM_START {
        return Err(LoadError::TooLow(start));
    }
    let available = layout::low_ram_end(memory);
    if end > available {
        return Err(LoadError::TooLittleMemory { end, available });
    }
    Ok(())
}
