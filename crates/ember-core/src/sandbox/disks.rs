//! The disks of a guest: its image, and then its volumes, all of them read-only.

use std::fs::File;
use std::sync::Arc;

use ember_vmm::devices::virtio::block::BlockConfig;
use ember_worker::host::DiskConfig;

use super::ReadyVolume;
use crate::error::Error;

/// The files of a guest's disks, in their order, which is that of their names in the guest.
pub(super) fn disks<'a>(
    image: &'a Arc<File>,
    volumes: &'a [ReadyVolume],
) -> impl Iterator<Item = &'a Arc<File>> {
    std::iter::once(image).chain(volumes.iter().map(|volume| &volume.disk))
}

/// Files as disks of a VM in this process.
pub(crate) fn block_configs<'a>(
    files: impl IntoIterator<Item = &'a Arc<File>>,
) -> Result<Vec<BlockConfig>, Error> {
    let disk = |file: &Arc<File>| {
        file.try_clone()
            .map(BlockConfig::read_only)
            .map_err(Error::of_host(
                "cannot use the file of an image or volume once more",
            ))
    };
    files.into_iter().map(disk).collect()
}

/// A file as a disk of a VM in a worker.
pub(crate) fn read_only_disk(file: &Arc<File>) -> DiskConfig {
    DiskConfig {
        file: Arc::clone(file),
        read_only: true,
        serial: String::new(),
    }
}
