//! The disks of a guest: its image, then its volumes, all of them read-only, and at last what it writes
//! to, if that is a disk.

use std::fs::File;
use std::sync::Arc;

use ember_vmm::devices::virtio::block::BlockConfig;
use ember_worker::host::DiskConfig;

use super::ReadyVolume;
use super::overlay::OverlayFile;
use crate::error::Error;

/// A disk of a guest.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    file: Arc<File>,
    read_only: bool,
}

/// The disks on files that are only read, in their order, which is that of their names in the guest.
pub(super) fn read_only<'a>(
    image: &'a Arc<File>,
    volumes: &'a [ReadyVolume],
) -> impl Iterator<Item = &'a Arc<File>> {
    std::iter::once(image).chain(volumes.iter().map(|volume| &volume.disk))
}

/// All disks of a guest that writes to `overlay`.
pub(crate) fn all<'a>(
    read_only: impl IntoIterator<Item = &'a Arc<File>>,
    overlay: Option<&OverlayFile>,
) -> Vec<Disk> {
    let read_only = read_only.into_iter().map(|file| (file, true));
    let overlay = overlay.map(|overlay| (overlay.file(), false));
    let disks = read_only.chain(overlay);
    disks
        .map(|(file, read_only)| Disk {
            file: Arc::clone(file),
            read_only,
        })
        .collect()
}

/// Disks of a VM in this process.
pub(crate) fn block_configs(disks: &[Disk]) -> Result<Vec<BlockConfig>, Error> {
    let config = |disk: &Disk| {
        let file = disk.file.try_clone().map_err(Error::of_host(
            "cannot use the file of an image or volume once more",
        ))?;
        Ok(match disk.read_only {
            true => BlockConfig::read_only(file),
            false => BlockConfig::read_write(file),
        })
    };
    disks.iter().map(config).collect()
}

/// Disks of a VM in a worker.
pub(crate) fn worker_disks(disks: &[Disk]) -> Vec<DiskConfig> {
    let config = |disk: &Disk| DiskConfig {
        file: Arc::clone(&disk.file),
        read_only: disk.read_only,
        serial: String::new(),
    };
    disks.iter().map(config).collect()
}
