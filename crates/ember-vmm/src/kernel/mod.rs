//! Guest kernels: what a file holds and how it is brought into guest memory.
//!
//! A distribution ships a bzImage: a small program that unpacks the kernel it carries. Unpacking
//! takes the guest longer than everything else that it does while it boots, so it is done here,
//! once, and the kernel proper, an ELF file (`vmlinux`), is what a guest is started with. Only a
//! bzImage that nothing here can unpack is started as it is.

mod bzimage;
mod elf;
mod initramfs;
mod load;
mod source;
mod unpack;

use std::fs::File;
use std::io;
use std::path::Path;

pub use bzimage::BzImageError;
pub(crate) use bzimage::{SETUP_HEADER_OFFSET, SetupHeader};
pub use elf::ElfError;
pub use initramfs::Initramfs;
pub(crate) use load::{Entry, LoadedKernel};
pub use unpack::Compression;

use bzimage::BzImage;
use elf::Elf;
use source::{Content, Source};
use unpack::UnpackError;

/// The largest file that is taken for a kernel, and the largest kernel that is unpacked.
const SIZE_MAX: usize = 512 << 20;
/// As many bytes as it takes to recognise what a file is.
const START_SIZE: usize = 0x206;

/// A kernel that a guest can be booted with: parsed, unpacked and checked. Clones share its bytes.
#[derive(Clone, Debug)]
pub struct KernelImage {
    content: Content,
    form: Form,
    unpacked: bool,
}

#[derive(Clone, Debug)]
enum Form {
    /// The kernel proper, with the setup header of the bzImage it came in.
    Elf {
        elf: Elf,
        setup: Option<SetupHeader>,
    },
    /// A bzImage that has to unpack itself.
    BzImage(BzImage),
}

/// Why a file is not a kernel that can be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// It cannot be read.
    #[error("the kernel cannot be read")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error(
        "this is {0}, not a kernel; give a bzImage (a distribution's vmlinuz) or an ELF vmlinux"
    )]
    NotAKernel(&'static str),
    /// It is larger than any kernel.
    #[error("the kernel is larger than {} MiB", SIZE_MAX >> 20)]
    TooLarge,
    /// An ELF file that cannot be booted.
    #[error("the kernel cannot be booted")]
    Elf(#[from] ElfError),
    /// A bzImage that cannot be booted.
    #[error("the kernel cannot be booted")]
    BzImage(#[from] BzImageError),
    /// A bzImage whose payload is broken.
    #[error("the bzImage's payload ({0}) cannot be unpacked; the file is damaged")]
    Damaged(Compression, #[source] io::Error),
    /// A bzImage whose payload unpacks to more than it says.
    #[error("the bzImage's payload unpacks to more than the {0} bytes it may")]
    Oversized(usize),
    /// A bzImage that can neither be unpacked here nor be entered in 64-bit mode.
    #[error(
        "the bzImage is packed in a way that is not known here and has no 64-bit entry point; \
         use a 64-bit kernel, packed with zstd, gzip, xz, LZMA or LZ4"
    )]
    NoEntry,
}

impl KernelImage {
    /// Opens the kernel at `path`.
    ///
    /// A bzImage is read and unpacked, which takes a large part of a second;
    /// [`vmlinux`](Self::vmlinux) has the result, to be kept in a file for the next time. An ELF
    /// file is not read into memory: its bytes go from the file to the guest whenever one is
    /// booted, so it must not change while the image is in use.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, KernelError> {
        Self::from_file(File::open(path)?)
    }

    /// Like [`from_path`](Self::from_path), with a file that is open already. The image moves the
    /// file's position, which it shares with duplicates of the descriptor.
    pub fn from_file(file: File) -> Result<Self, KernelError> {
        let content = Content::file(file)?;
        if content.len() > SIZE_MAX as u64 {
            return Err(KernelError::TooLarge);
        }
        let mut start = vec![0; START_SIZE.min(content.len() as usize)];
        content.read_at(0, &mut start)?;
        if start.starts_with(&elf::MAGIC) {
            return Self::from_elf(content);
        }
        if !bzimage::is_bzimage(&start) {
            return Err(KernelError::NotAKernel(describe(&start)));
        }
        let mut bytes = vec![0; content.len() as usize];
        content.read_at(0, &mut bytes)?;
        Self::from_bytes(bytes)
    }

    /// Takes a kernel that is in memory already: a bzImage or an ELF file.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, KernelError> {
        if bytes.len() > SIZE_MAX {
            return Err(KernelError::TooLarge);
        }
        if bytes.starts_with(&elf::MAGIC) {
            return Self::from_elf(Content::memory(bytes));
        }
        if !bzimage::is_bzimage(&bytes) {
            return Err(KernelError::NotAKernel(describe(&bytes)));
        }
        Self::from_bzimage(bytes)
    }

    /// The kernel proper, an ELF file, if it was unpacked from a bzImage. Worth keeping: an image
    /// made [from a file](Self::from_path) with these bytes costs neither time nor memory.
    pub fn vmlinux(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Memory(bytes) if self.unpacked => Some(bytes),
            _ => None,
        }
    }

    fn from_elf(content: Content) -> Result<Self, KernelError> {
        let elf = Elf::parse(&content)?;
        Ok(Self {
            content,
            form: Form::Elf { elf, setup: None },
            unpacked: false,
        })
    }

    fn from_bzimage(bytes: Vec<u8>) -> Result<Self, KernelError> {
        let image = BzImage::parse(&bytes)?;
        // The kernel unpacks itself within `init_size`, so what comes out is never larger.
        let limit = match image.setup.init_size as usize {
            0 => SIZE_MAX,
            init_size => init_size.min(SIZE_MAX),
        };
        match unpack::unpack(&bytes[image.payload.clone()], limit) {
            Ok(unpacked) => {
                let elf = Elf::parse(unpacked.as_slice())?;
                let content = Content::memory(unpacked);
                let form = Form::Elf {
                    elf,
                    setup: Some(image.setup),
                };
                Ok(Self {
                    content,
                    form,
                    unpacked: true,
                })
            }
            Err(UnpackError::Unsupported) if image.setup.has_64_bit_entry => {
                let content = Content::memory(bytes);
                Ok(Self {
                    content,
                    form: Form::BzImage(image),
                    unpacked: false,
                })
            }
            Err(UnpackError::Unsupported) => Err(KernelError::NoEntry),
            Err(UnpackError::TooLarge(limit)) => Err(KernelError::Oversized(limit)),
            Err(UnpackError::Damaged(compression, error)) => {
                Err(KernelError::Damaged(compression, error))
            }
        }
    }
}

/// What a file that is no kernel seems to be: people mostly give the wrong one of two files.
fn describe(start: &[u8]) -> &'static str {
    const KINDS: [(&[u8], &str); 9] = [
        (b"!<arch>\n", "a Debian package or an archive"),
        (b"\xED\xAB\xEE\xDB", "an RPM package"),
        (b"\x1F\x8B", "a gzip file, perhaps an initramfs"),
        (b"\x28\xB5\x2F\xFD", "a zstd file, perhaps an initramfs"),
        (b"\xFD7zXZ\0", "an xz file"),
        (b"070701", "an initramfs"),
        (b"hsqs", "a squashfs image"),
        (b"#!", "a script"),
        (
            b"MZ",
            "an EFI program without the Linux boot header, perhaps for another processor",
        ),
    ];
    if start.is_empty() {
        return "an empty file";
    }
    let kind = KINDS.iter().find(|(magic, _)| start.starts_with(magic));
    kind.map_or("an unknown kind of file", |(_, kind)| kind)
}

#[cfg(test)]
mod tests;
