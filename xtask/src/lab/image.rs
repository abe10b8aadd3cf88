//! What the lab boots: Debian's stock kernel and an initramfs with its modules, made once and kept
//! in the cache.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::{debian, dirs, modules, say};

/// Script that the kernel starts.
const BOOT: &str = include_str!("boot.sh");

/// The `cloud` flavour will not do: it lacks 9p.
const KERNELS: [&str; 2] = ["linux-image-6.12-amd64", "linux-image-amd64"];

/// Modules that the lab and what is tested in it need. Loaded at boot, with what they depend on.
const MODULES: [&str; 19] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "tun",
    "vhost_vsock",
    // For guests' networks: bridges, namespaces joined by pairs, and the firewall (`nft` loads no
    // modules here, since it finds none below /lib).
    // The first is what the firewall's modules ask the kernel's crypto API for.
    "crc32c_generic",
    "bridge",
    "veth",
    "dummy",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "nft_limit",
    "nft_reject_inet",
];

/// Applets of busybox that the boot script calls.
const APPLETS: [&str; 15] = [
    "sh",
    "mount",
    "insmod",
    "mkdir",
    "ln",
    "chmod",
    "ip",
    "hostname",
    "cp",
    "echo",
    "poweroff",
    "chroot",
    "switch_root",
    "cat",
    "ls",
];

/// A bootable pair.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// The Debian package and version the kernel is from.
    pub(crate) origin: String,
}

/// The image in the cache, made now if it is not there.
pub(crate) fn prepare() -> Result<Image> {
    let root = dirs::cache()?.join("lab");
    let directory = root.join(format!("image-{}", recipe_hash()));
    if let Some(image) = open(&directory) {
        return Ok(image);
    }
    let _lock = dirs::lock(&directory)?;
    if let Some(image) = open(&directory) {
        return Ok(image);
    }
    let work = dirs::Scratch::below(&root.join("work"))?;
    make(work.path(), &directory)?;
    open(&directory).with_context(|| format!("{} is incomplete", directory.display()))
}

fn open(directory: &Path) -> Option<Image> {
    let origin = fs::read_to_string(directory.join("origin")).ok()?;
    Some(Image {
        kernel: directory.join("vmlinuz"),
        initramfs: directory.join("initramfs"),
        origin: origin.trim().to_owned(),
    })
}

fn make(work: &Path, directory: &Path) -> Result<()> {
    say!("preparing the lab's kernel (once)");
    let fetched = debian::fetch(&KERNELS, "linux-image-", work)?;
    let unpacked = work.join("unpacked");
    debian::unpack(&fetched.file, &unpacked)?;
    let release = fetched.package.trim_start_matches("linux-image-");
    let kernel = unpacked.join(format!("boot/vmlinuz-{release}"));
    // Debian 12 has /lib/modules, a merged /usr has it below.
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|path| unpacked.join(path).join(release))
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(|| format!("{} holds no modules", fetched.package))?;

    let made = work.join("image");
    dirs::create(&made)?;
    fs::copy(&kernel, made.join("vmlinuz"))
        .with_context(|| format!("copying {}", kernel.display()))?;
    fs::write(made.join("initramfs"), initramfs(&modules)?)?;
    fs::write(
        made.join("origin"),
        format!("{} {}\n", fetched.package, fetched.version),
    )?;
    // What is there was incomplete, or `open` had found it.
    let _ = fs::remove_dir_all(directory);
    fs::rename(&made, directory)
        .with_context(|| format!("moving the lab's image to {}", directory.display()))
}

fn initramfs(modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for path in ["bin", "dev", "proc", "sys", "lab", "lab/modules"] {
        archive.directory(path);
    }
    let busybox = fs::read(debian::BUSYBOX).context("reading busybox")?;
    archive.file("bin/busybox", 0o755, &busybox);
    for applet in APPLETS {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    let mut order = String::new();
    for module in modules::in_load_order(modules, &MODULES)? {
        archive.file(
            &format!("lab/modules/{}.ko", module.name),
            0o644,
            &module.object,
        );
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.file("lab/modules/order", 0o644, order.as_bytes());
    archive.file("init", 0o755, BOOT.as_bytes());
    Ok(archive.finish())
}

fn recipe_hash() -> String {
    let parts: Vec<&str> = KERNELS
        .iter()
        .chain(&MODULES)
        .chain(&APPLETS)
        .chain([&BOOT])
        .copied()
        .collect();
    dirs::fnv(&parts)
}
