//! Kernels: where a guest's kernel comes from, and the files that it is once it is there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ember_vmm::kernel::KernelImage;
use serde::{Deserialize, Serialize};

use super::apt::{self, Apt};
use super::modules;
use super::{AssetError, Assets};

/// A kernel for guests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel(Source);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Source {
    #[default]
    Best,
    Stock,
    Tuned,
    File(PathBuf),
}

impl Kernel {
    /// Debian's kernel for clouds, as it is: nothing is compiled, modules are loaded at boot.
    pub fn stock() -> Self {
        Self(Source::Stock)
    }

    /// The kernel that `cargo xtask kernel` has built: smaller, faster to boot, without modules.
    pub fn tuned() -> Self {
        Self(Source::Tuned)
    }

    /// A bzImage or vmlinux of your own. What a guest needs (virtio-mmio, virtio-blk, vsock,
    /// squashfs, overlayfs) must be built in.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }
}

/// A kernel whose files are on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadyKernel {
    /// What it is, for people: `stock 6.12.117+deb12-cloud-amd64`.
    pub description: String,
    /// The kernel itself: a bzImage or an ELF file.
    pub image: PathBuf,
    /// Its modules, decompressed, in the order to load them.
    pub modules: Vec<PathBuf>,
}

/// Part of a stock kernel's key: a change to what is kept of one makes a new one.
const FORMAT: u32 = 2;
/// The pointer to the stock kernel in use, among the kernels.
const STOCK: &str = "kernels/stock-";
/// What the package has, which people and other tools may want.
const PACKED: &str = "vmlinuz";
/// The same, unpacked once so that no guest has to.
const UNPACKED: &str = "vmlinux";
const CONTENTS: &str = "kernel.json";

/// What a stock kernel's directory says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    release: String,
    modules: Vec<String>,
}

/// Why a kernel is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error(
        "there is no tuned kernel in {}; `cargo xtask kernel` in Ember's source builds it, and \
         the stock kernel needs no building", .0.display()
    )]
    NoTuned(PathBuf),
    #[error("cannot read the kernel {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the package {package} is not a kernel's: it has no {missing}")]
    NotAKernel {
        package: String,
        missing: &'static str,
    },
    #[error("{} is not a kernel that a guest can be booted with", path.display())]
    Unusable {
        path: PathBuf,
        source: Box<ember_vmm::kernel::KernelError>,
    },
    #[error("{} is damaged; remove its directory and it is made again", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> KernelError + 'a {
    move |source| KernelError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn prepare(assets: &Assets, kernel: &Kernel) -> Result<ReadyKernel, AssetError> {
    let tuned = assets.cache.root().join("kernels/tuned/vmlinux");
    match &kernel.0 {
        Source::Best if tuned.is_file() => Ok(plain("tuned", tuned)),
        Source::Best | Source::Stock => stock(assets, false),
        Source::Tuned if tuned.is_file() => Ok(plain("tuned", tuned)),
        Source::Tuned => Err(KernelError::NoTuned(assets.cache.root().to_owned()).into()),
        Source::File(path) => {
            // Said here, with its name, and not by the VM that wants to load it.
            fs::File::open(path).map_err(|source| KernelError::Read {
                path: path.clone(),
                source,
            })?;
            Ok(plain(&path.display().to_string(), path.clone()))
        }
    }
}

fn plain(description: &str, image: PathBuf) -> ReadyKernel {
    ReadyKernel {
        description: description.to_owned(),
        image,
        modules: Vec::new(),
    }
}

/// The stock kernel in the cache, or the newest one if there is none or `renew` asks for it.
pub(super) fn stock(assets: &Assets, renew: bool) -> Result<ReadyKernel, AssetError> {
    let pointer = format!("{STOCK}{FORMAT}");
    let cached = || -> Result<Option<ReadyKernel>, AssetError> {
        let Some(key) = assets.cache.pointer(&pointer)? else {
            return Ok(None);
        };
        let directory = assets.cache.root().join("kernels").join(key);
        directory.is_dir().then(|| open(&directory)).transpose()
    };
    if !renew && let Some(kernel) = cached()? {
        return Ok(kernel);
    }
    let mut apt = Apt::open(&assets.cache, &assets.progress)?;
    if !renew && let Some(kernel) = cached()? {
        return Ok(kernel);
    }
    let package = apt.dependency(
        // 6.12 is a long-term kernel that Debian 12 carries beside its own 6.1.
        &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"],
        "linux-image-",
    )?;
    let key = format!("{}-{}-{FORMAT}", package.name, package.version);
    let directory = assets.cache.entry("kernels", &key, |directory| {
        let scratch = directory.join("package");
        fs::create_dir(&scratch).map_err(io_error("create", &scratch))?;
        assets.progress.step("unpack the kernel", || {
            apt::unpack(&package.file, &scratch)?;
            keep(&package.name, &scratch, directory)
        })?;
        fs::remove_dir_all(&scratch).map_err(io_error("remove", &scratch))?;
        Ok::<_, AssetError>(())
    })?;
    assets.cache.set_pointer(&pointer, &key)?;
    apt.clean()?;
    open(&directory)
}

/// Keeps of the unpacked package `scratch` what a guest needs.
fn keep(package: &str, scratch: &Path, directory: &Path) -> Result<(), AssetError> {
    let lacks = |missing| KernelError::NotAKernel {
        package: package.to_owned(),
        missing,
    };
    let release = package
        .strip_prefix("linux-image-")
        .ok_or_else(|| lacks("release in its name"))?;
    let kernel = scratch.join(format!("boot/vmlinuz-{release}"));
    if !kernel.is_file() {
        return Err(lacks("vmlinuz").into());
    }
    let packed = directory.join(PACKED);
    fs::rename(&kernel, &packed).map_err(io_error("move", &packed))?;
    let image = KernelImage::from_path(&packed).map_err(|source| KernelError::Unusable {
        path: packed.clone(),
        source: Box::new(source),
    })?;
    let image = image
        .vmlinux()
        .ok_or_else(|| lacks("kernel that can be unpacked"))?;
    let unpacked = directory.join(UNPACKED);
    fs::write(&unpacked, image).map_err(io_error("write", &unpacked))?;

    let tree = ["lib/modules", "usr/lib/modules"]
        .map(|parent| scratch.join(parent).join(release))
        .into_iter()
        .find(|tree| tree.is_dir())
        .ok_or_else(|| lacks("modules"))?;
    let mut names = Vec::new();
    for module in modules::collect(&tree)? {
        let name = format!("{}.ko", module.name);
        let path = directory.join(&name);
        fs::write(&path, &module.bytes).map_err(io_error("write", &path))?;
        names.push(name);
    }
    let contents = Contents {
        release: release.to_owned(),
        modules: names,
    };
    let path = directory.join(CONTENTS);
    let text = serde_json::to_vec_pretty(&contents).map_err(|source| KernelError::Damaged {
        path: path.clone(),
        source,
    })?;
    fs::write(&path, text).map_err(io_error("write", &path))?;
    Ok(())
}

fn open(directory: &Path) -> Result<ReadyKernel, AssetError> {
    let path = directory.join(CONTENTS);
    let text = fs::read(&path).map_err(io_error("read", &path))?;
    let contents: Contents =
        serde_json::from_slice(&text).map_err(|source| KernelError::Damaged { path, source })?;
    Ok(ReadyKernel {
        description: format!("stock {}", contents.release),
        image: directory.join(UNPACKED),
        modules: contents
            .modules
            .iter()
            .map(|name| directory.join(name))
            .collect(),
    })
}
