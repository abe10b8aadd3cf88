//! What the system around the process has.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Item;

/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where those of version 2 are if there are others.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// What Ember's cgroups are called.
const OUR_CGROUPS: &str = "ember";

/// Mounts of the mount namespace.
pub(super) fn mounts() -> io::Result<Vec<Item>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().filter_map(parse_mount).collect())
}

/// A line of `mountinfo` (`proc_pid_mountinfo(5)`): `36 35 98:0 /mnt1 /mnt2 rw … - ext3 /dev/root`.
pub(super) fn parse_mount(line: &str) -> Option<Item> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (id, place) = (fields.next()?, fields.nth(3)?);
    Some(Item {
        class: place.to_owned(),
        identity: format!("mount {id}, {file_system}"),
    })
}

/// Network interfaces of the network namespace.
pub(super) fn network_interfaces() -> io::Result<Vec<Item>> {
    // Not /sys/class/net, which shows the namespace that sysfs was mounted in.
    let interfaces = fs::read_to_string("/proc/self/net/dev")?;
    let names = interfaces
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'));
    Ok(names.map(|(name, _)| one_of_a_kind(name.trim())).collect())
}

/// Cgroups below the process's own, and Ember's wherever they are.
pub(super) fn cgroups() -> io::Result<Vec<Item>> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    let unified = if Path::new(UNIFIED).exists() {
        UNIFIED
    } else {
        CGROUPS
    };
    let own = Path::new(unified).join(own);
    let mut found = Vec::new();
    walk(Path::new(CGROUPS), &mut |path, is_directory| {
        let ours = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(OUR_CGROUPS.as_bytes()));
        if is_directory && (ours || path.starts_with(&own)) {
            found.push(one_of_a_kind(&path.to_string_lossy()));
        }
    })?;
    Ok(found)
}

/// All that is in `directories`.
pub(super) fn files(directories: &BTreeSet<PathBuf>) -> io::Result<Vec<Item>> {
    let mut found = Vec::new();
    for directory in directories {
        walk(directory, &mut |path, _| {
            found.push(one_of_a_kind(&path.to_string_lossy()));
        })?;
    }
    Ok(found)
}

fn one_of_a_kind(name: &str) -> Item {
    Item {
        class: name.to_owned(),
        identity: name.to_owned(),
    }
}

/// Calls `visit` with everything below `directory`, which may be missing or go away meanwhile.
fn walk(directory: &Path, visit: &mut dyn FnMut(&Path, bool)) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            // The directory was removed while it was read.
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        visit(&entry.path(), is_directory);
        if is_directory {
            walk(&entry.path(), visit)?;
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    /// `ENODEV`: reading of a cgroup that was removed after it was opened.
    const NO_SUCH_DEVICE: i32 = 19;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_SUCH_DEVICE)
}
