//! File systems: the kernel's own, the root, and what is written over it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::BootError;
use super::parameters::{Overlay, Parameters};

/// The file system of cgroups, and where it is.
const CGROUP: &str = "cgroup2";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Types that a root may have, in the order in which they are tried, with their options. A journal
/// cannot be replayed on a device that cannot be written.
const ROOT_TYPES: [(&str, Option<&str>); 3] = [
    ("squashfs", None),
    ("erofs", None),
    ("ext4", Some("noload")),
];
/// How long a device may take to appear, and how often it is looked for. Drivers find their
/// devices while they are loaded, so it is nearly always there at once.
const DEVICE_WAIT: Duration = Duration::from_secs(10);
const DEVICE_STEP: Duration = Duration::from_micros(500);

const LOWER: &str = "/ember/lower";
const UPPER: &str = "/ember/upper";
const MERGED: &str = "/ember/merged";

/// What is needed to find the root.
pub(super) fn early() -> Result<(), BootError> {
    // Without devtmpfs's help the initramfs may have made its own.
    attach(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MsFlags::MS_NOSUID,
        Some("mode=0755"),
    )?;
    attach("proc", "/proc", "proc", quiet(), None)
}

fn quiet() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC
}

/// Of a disk that is written to, and forgotten with its guest. What is removed is given back to the
/// host; nobody waits for what would only matter after a loss of power. Where the host had no room for
/// what belongs to the file system itself, nothing more is written, rather than anything.
const DISK_OPTIONS: &str = "nobarrier,discard,errors=remount-ro";

/// Mounts the root read-only with a layer over it that is written to, and makes that the root
/// directory.
pub(super) fn switch_to(device: &Path, parameters: &Parameters) -> Result<(), BootError> {
    wait_for(device)?;
    mount_root(device, parameters.root_type.as_deref())?;
    mount_upper(&parameters.overlay)?;
    let layers: [String; 4] = ["data", "work", "tmp", "shm"].map(|name| format!("{UPPER}/{name}"));
    for layer in &layers {
        directory(layer, 0o755)?;
    }
    let [data, work, temporary, shared] = layers;
    let options = format!("lowerdir={LOWER},upperdir={data},workdir={work}");
    attach(
        "overlay",
        MERGED,
        "overlay",
        MsFlags::empty(),
        Some(&options),
    )?;

    for early in ["/dev", "/proc"] {
        let target = format!("{MERGED}{early}");
        directory(&target, 0o755)?;
        relocate(early, &target)?;
    }
    // All that programs can write to is one file system, so that what they fill is bounded together. But
    // what is shared memory stays memory.
    let [temporary_at, shared_at] = ["/tmp", "/dev/shm"].map(|target| format!("{MERGED}{target}"));
    directory(&temporary_at, 0o755)?;
    directory(&shared_at, 0o755)?;
    bind(&temporary, &temporary_at)?;
    match &parameters.overlay {
        Overlay::Memory(_) => bind(&shared, &shared_at)?,
        Overlay::Device(_) => {
            let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let half = Some("mode=1777,size=50%");
            attach("tmpfs", &shared_at, "tmpfs", plain, half)?;
        }
    }
    let failed = |errno| BootError::SwitchRoot {
        path: MERGED.into(),
        errno,
    };
    // As switch_root(8): the initramfs cannot be left by pivot_root(2).
    chdir(MERGED).map_err(failed)?;
    relocate(".", "/")?;
    chroot(".").map_err(failed)?;
    chdir("/").map_err(failed)
}

/// The rest of what programs expect. Says whether there are cgroups.
pub(super) fn late(switched: bool) -> Result<bool, BootError> {
    attach("sysfs", "/sys", "sysfs", quiet(), None)?;
    // devtmpfs has none of these; a program's standard streams are found by these names.
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, name) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(BootError::Create {
                    path: name.into(),
                    source,
                });
            }
            _ => {}
        }
    }
    let devpts = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    attach(
        "devpts",
        "/dev/pts",
        "devpts",
        devpts,
        Some("gid=5,mode=0620,ptmxmode=0666"),
    )?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // Root's own, and little.
    let few = Some("mode=0755,size=10%");
    attach("tmpfs", "/run", "tmpfs", plain, few)?;
    if !switched {
        for target in ["/tmp", "/dev/shm"] {
            attach("tmpfs", target, "tmpfs", plain, Some("mode=1777"))?;
        }
    }
    match attach(CGROUP, CGROUP_ROOT, CGROUP, quiet(), None) {
        Ok(()) => Ok(true),
        // A kernel without cgroups: commands are then told apart by session.
        Err(
            BootError::Mount {
                errno: Errno::ENODEV,
                ..
            }
            | BootError::Create { .. },
        ) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Has moving a process into a cgroup not wait for a grace period of RCU each time, three ticks of the
/// clock: `favordynmods`, since Linux 6.0 (`Documentation/admin-guide/cgroup-v2.rst`, "Mounting"). It
/// costs one grace period itself.
pub(super) fn favour_changing_cgroups() -> Result<(), Errno> {
    let again = quiet() | MsFlags::MS_REMOUNT;
    mount(
        None::<&str>,
        CGROUP_ROOT,
        Some(CGROUP),
        again,
        Some("favordynmods"),
    )
}

/// Waits until a block device can be opened.
pub(super) fn wait_for(device: &Path) -> Result<(), BootError> {
    let end = Instant::now() + DEVICE_WAIT;
    loop {
        match File::open(device) {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < end => std::thread::sleep(DEVICE_STEP),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let seconds = DEVICE_WAIT.as_secs();
                return Err(BootError::NoDevice {
                    device: device.to_owned(),
                    seconds,
                });
            }
            Err(source) => {
                return Err(BootError::Read {
                    path: device.to_owned(),
                    source,
                });
            }
        }
    }
}

/// Mounts what is written to.
fn mount_upper(overlay: &Overlay) -> Result<(), BootError> {
    match overlay {
        Overlay::Memory(size) => {
            let memory = format!("mode=0755,size={size}");
            attach("tmpfs", UPPER, "tmpfs", MsFlags::empty(), Some(&memory))
        }
        Overlay::Device(device) => {
            wait_for(device)?;
            let device = device.to_string_lossy();
            let options = Some(DISK_OPTIONS);
            attach(&device, UPPER, "ext4", MsFlags::MS_NOATIME, options)
        }
    }
}

fn mount_root(device: &Path, wanted: Option<&str>) -> Result<(), BootError> {
    directory(LOWER, 0o755)?;
    let known = |name: &str| {
        ROOT_TYPES
            .iter()
            .find(|(it, _)| *it == name)
            .and_then(|(_, it)| *it)
    };
    let types = match wanted {
        Some(name) => vec![(name, known(name))],
        None => ROOT_TYPES.to_vec(),
    };
    for (kind, options) in &types {
        match mount(
            Some(device),
            LOWER,
            Some(*kind),
            MsFlags::MS_RDONLY,
            *options,
        ) {
            Ok(()) => return Ok(()),
            // Not this type, or not a type that this kernel knows.
            Err(Errno::EINVAL | Errno::ENODEV) => {}
            Err(errno) => {
                let what = format!("{} as {kind}", device.display());
                return Err(BootError::Mount {
                    what,
                    target: LOWER.into(),
                    errno,
                });
            }
        }
    }
    let tried = types
        .iter()
        .map(|(kind, _)| *kind)
        .collect::<Vec<_>>()
        .join(", ");
    Err(BootError::RootType {
        device: device.to_owned(),
        tried,
    })
}

/// Mounts a file system on a directory, which is made if it is not there.
fn attach(
    source: &str,
    target: &str,
    kind: &str,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), BootError> {
    let try_mount = || mount(Some(source), target, Some(kind), flags, options);
    let result = match try_mount() {
        Err(Errno::ENOENT) => {
            directory(target, 0o755)?;
            try_mount()
        }
        result => result,
    };
    match result {
        // Already there, at the hands of the kernel (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(BootError::Mount {
            what: kind.to_owned(),
            target: target.into(),
            errno,
        }),
    }
}

/// Shows a directory that everybody may write to at another place, where no device or program of
/// another user's means anything.
fn bind(directory: &str, target: &str) -> Result<(), BootError> {
    let failed = |errno| BootError::Mount {
        what: directory.to_owned(),
        target: target.into(),
        errno,
    };
    let none = None::<&str>;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let again = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | plain;
    // Not by the mode that a directory is made with, of which the mask takes away.
    fs::set_permissions(directory, Permissions::from_mode(0o1777)).map_err(|source| {
        BootError::Create {
            path: directory.into(),
            source,
        }
    })?;
    mount(Some(directory), target, none, MsFlags::MS_BIND, none).map_err(failed)?;
    mount(none, target, none, again, none).map_err(failed)
}

/// Has what is mounted from now on seen in the rooms that there are.
pub(super) fn share() -> Result<(), BootError> {
    let none = None::<&str>;
    let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(none, "/", none, flags, none).map_err(|errno| BootError::Mount {
        what: "what is mounted, for others to see,".to_owned(),
        target: "/".into(),
        errno,
    })
}

fn relocate(from: &str, to: &str) -> Result<(), BootError> {
    let none = None::<&str>;
    mount(Some(from), to, none, MsFlags::MS_MOVE, none).map_err(|errno| BootError::Mount {
        what: from.to_owned(),
        target: to.into(),
        errno,
    })
}

pub(super) fn directory(path: impl AsRef<Path>, mode: u32) -> Result<(), BootError> {
    let path = path.as_ref();
    match DirBuilder::new().recursive(true).mode(mode).create(path) {
        Ok(()) => Ok(()),
        Err(source) => Err(BootError::Create {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Mounts that something may still be written to, of devices that last: where they are mounted.
pub(super) fn writable_devices() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    parse_writable(&mounts)
}

/// `device directory type options 0 0` (fstab(5)), the last mounted first.
fn parse_writable(mounts: &str) -> Vec<String> {
    let mut targets: Vec<String> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, target) = (fields.next()?, fields.next()?);
            let _type = fields.next()?;
            let writable = fields.next()?.split(',').any(|option| option == "rw");
            (device.starts_with("/dev/") && writable).then(|| unescape(target))
        })
        .collect();
    targets.reverse();
    targets
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let byte = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_mounts_of_devices() {
        let mounts = "/dev/vda /ember/lower squashfs ro,relatime 0 0\n\
            overlay / overlay rw,relatime 0 0\n\
            tmpfs /tmp tmpfs rw 0 0\n\
            /dev/vdb /data ext4 rw,noatime 0 0\n\
            nonsense\n\
            /dev/vdc /a\\040b\\134c ext4 rw 0 0\n";
        assert_eq!(parse_writable(mounts), ["/a b\\c", "/data"]);
        assert_eq!(unescape("\\9 \\"), "\\9 \\");
    }
}
