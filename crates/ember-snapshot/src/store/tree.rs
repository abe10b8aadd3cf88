//! Directories with all that is in them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::StoreError;

/// Removes a directory, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    // A directory without write permission (packages have such) cannot be emptied by an
    // unprivileged owner until it has it.
    fn make_removable(path: &Path) -> io::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                make_removable(&entry.path())?;
            }
        }
        Ok(())
    }
    let result = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_removable(path).and_then(|()| fs::remove_dir_all(path))
        }
        result => result,
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Sees to it that everything in a directory is on disk.
pub(super) fn sync(directory: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(directory).map_err(StoreError::io("list", directory))? {
        let entry = entry.map_err(StoreError::io("list", directory))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .map_err(StoreError::io("examine", &path))?;
        if kind.is_dir() {
            sync(&path)?;
        } else if kind.is_file() {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(StoreError::io("write", &path))?;
        }
    }
    sync_directory(directory)
}

/// Sees to it that the names in a directory are on disk.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(StoreError::io("write", directory))
}

/// How much room a directory takes. What cannot be seen counts nothing.
pub(super) fn bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
