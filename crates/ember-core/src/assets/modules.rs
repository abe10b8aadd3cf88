//! Which modules of a distribution's kernel a guest needs, and in which order they load.
//!
//! A kernel package carries no index of dependencies (`depmod` writes one when it is installed),
//! so they are read where depmod reads them: from each module's `.modinfo`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What a guest can need, in the order in which it is best to have it. One that the kernel has
/// built in, or does not have at all, is left out.
const WANTED: &[&str] = &[
    // First the transport and the disk: everything else can load while they settle.
    "virtio_mmio",
    "virtio_blk",
    "squashfs",
    "overlay",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "virtio_net",
    "virtio_balloon",
    "pvpanic_mmio",
    "vmgenid",
    "erofs",
    "ext4",
];

/// Far beyond any module; what a compressed file may grow to.
const LARGEST: u64 = 64 << 20;

/// Why modules could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is not a kernel module: {reason}", path.display())]
    NotAModule { path: PathBuf, reason: &'static str },
    #[error("the kernel module {module} needs {dependency}, which the kernel does not have")]
    MissingDependency { module: String, dependency: String },
}

/// A module, decompressed.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// Reads the modules that a guest needs from `tree` (`…/lib/modules/VERSION`), in load order.
pub(crate) fn collect(tree: &Path) -> Result<Vec<Module>, ModuleError> {
    let mut files = BTreeMap::new();
    find(&tree.join("kernel"), &mut files)?;
    let builtin_list = tree.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin_list)
        .map_err(io_error("read", &builtin_list))?
        .lines()
        .filter_map(|line| module_name(Path::new(line)))
        .collect();
    let mut order = Order {
        files,
        builtin,
        seen: BTreeSet::new(),
        loaded: Vec::new(),
    };
    for name in WANTED {
        if order.files.contains_key(*name) {
            order.add(name, None)?;
        }
    }
    Ok(order.loaded)
}

struct Order {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    seen: BTreeSet<String>,
    loaded: Vec<Module>,
}

impl Order {
    /// Adds `name` after what it depends on.
    fn add(&mut self, name: &str, needed_by: Option<&str>) -> Result<(), ModuleError> {
        if self.builtin.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name).cloned() else {
            return match needed_by {
                Some(module) => Err(ModuleError::MissingDependency {
                    module: module.to_owned(),
                    dependency: name.to_owned(),
                }),
                None => Ok(()),
            };
        };
        let bytes = decompress(&path)?;
        let info = modinfo(&bytes).map_err(|reason| ModuleError::NotAModule {
            path: path.clone(),
            reason,
        })?;
        for dependency in dependencies(info) {
            self.add(&dependency, Some(name))?;
        }
        for dependency in soft_dependencies(info) {
            // Soft ones may be anything, aliases included: those that are modules are enough.
            if self.files.contains_key(&dependency) {
                self.add(&dependency, None)?;
            }
        }
        self.loaded.push(Module {
            name: name.to_owned(),
            bytes,
        });
        Ok(())
    }
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ModuleError + 'a {
    move |source| ModuleError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn find(directory: &Path, into: &mut BTreeMap<String, PathBuf>) -> Result<(), ModuleError> {
    let failed = io_error("list", directory);
    for entry in fs::read_dir(directory).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let path = entry.path();
        if entry.file_type().map_err(&failed)?.is_dir() {
            find(&path, into)?;
        } else if let Some(name) = module_name(&path) {
            into.insert(name, path);
        }
    }
    Ok(())
}

/// `virtio_rng` for `kernel/drivers/char/hw_random/virtio-rng.ko.xz`: the kernel takes a dash and
/// an underscore for the same.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz").then(|| name.replace('-', "_"))
}

fn decompress(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let file = fs::File::open(path).map_err(io_error("open", path))?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "xz") {
        liblzma::read::XzDecoder::new(file)
            .take(LARGEST)
            .read_to_end(&mut bytes)
            .map_err(io_error("decompress", path))?;
    } else {
        file.take(LARGEST)
            .read_to_end(&mut bytes)
            .map_err(io_error("read", path))?;
    }
    Ok(bytes)
}

fn dependencies(modinfo: &[u8]) -> Vec<String> {
    field(modinfo, "depends=")
        .flat_map(|value| value.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// The modules after `pre:` in `softdep=pre: a b post: c`.
fn soft_dependencies(modinfo: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for value in field(modinfo, "softdep=") {
        let mut before = false;
        for word in value.split_whitespace() {
            match word {
                "pre:" => before = true,
                "post:" => before = false,
                name if before => names.push(name.replace('-', "_")),
                _ => {}
            }
        }
    }
    names
}

fn field<'a>(modinfo: &'a [u8], name: &'a str) -> impl Iterator<Item = &'a str> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| str::from_utf8(entry).ok())
        .filter_map(move |entry| entry.strip_prefix(name))
}

/// The section `.modinfo` of a 64-bit little-endian ELF file: strings that end in zero bytes.
fn modinfo(elf: &[u8]) -> Result<&[u8], &'static str> {
    const CUT: &str = "it ends early";
    // From the specification's Elf64_Ehdr and Elf64_Shdr.
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("it is not a 64-bit ELF file");
    }
    let table = usize::try_from(number::<8>(elf, 0x28).ok_or(CUT)?).map_err(|_| CUT)?;
    let size = number::<2>(elf, 0x3a).ok_or(CUT)? as usize;
    let count = number::<2>(elf, 0x3c).ok_or(CUT)? as usize;
    let names_index = number::<2>(elf, 0x3e).ok_or(CUT)? as usize;

    let section = |index: usize| -> Option<(usize, &[u8])> {
        let header = elf.get(table.checked_add(index.checked_mul(size)?)?..)?;
        let name = usize::try_from(number::<4>(header, 0)?).ok()?;
        let offset = usize::try_from(number::<8>(header, 0x18)?).ok()?;
        let length = usize::try_from(number::<8>(header, 0x20)?).ok()?;
        // A section without bytes in the file has any length it likes.
        let end = offset.checked_add(length)?;
        Some((name, elf.get(offset..end).unwrap_or_default()))
    };
    let (_, names) = section(names_index).ok_or(CUT)?;
    for index in 0..count {
        let (name, contents) = section(index).ok_or(CUT)?;
        let name = names.get(name..).ok_or(CUT)?;
        if name.starts_with(b".modinfo\0") {
            return Ok(contents);
        }
    }
    Err("it has no .modinfo")
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests;
