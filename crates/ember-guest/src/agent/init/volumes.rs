//! Volumes: file systems that are only read, beside the root.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::{BootError, mounts};
use crate::volumes::{PlaceError, collide, place};

const KIND: &str = "squashfs";

/// Why a volume is not where it is to be.
#[derive(Debug)]
pub(super) enum VolumeProblem {
    /// The links of the image lead to where it cannot be.
    Place(PathBuf, PlaceError),
    /// The links of the image lead to another one.
    Collision(PathBuf),
    /// The kernel has none of these file systems.
    NoSquashfs,
    /// The kernel cannot read this one.
    Unreadable,
    /// Anything else.
    Mount(Errno),
}

impl fmt::Display for VolumeProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(real, error) => write!(f, "it is {}, and {error}", real.display()),
            Self::Collision(other) => {
                write!(
                    f,
                    "it is within the volume {}, or around it",
                    other.display()
                )
            }
            Self::NoSquashfs => f.write_str(
                "this kernel has no squashfs, neither built in nor among the modules of the \
                 initramfs",
            ),
            Self::Unreadable => f.write_str(
                "it is no squashfs that this kernel can read: it may be damaged, or compressed in \
                 a way that the kernel was built without",
            ),
            Self::Mount(errno) => f.write_str(errno.desc()),
        }
    }
}

/// Mounts each device on its path, which is made if it is not there.
pub(super) fn mount_all(volumes: &[(PathBuf, PathBuf)]) -> Result<(), BootError> {
    let mut mounted: Vec<PathBuf> = Vec::new();
    for (device, path) in volumes {
        mounts::wait_for(device)?;
        mounts::directory(path, 0o755)?;
        // An image can have links on the way: where they lead is what counts.
        let real = fs::canonicalize(path).map_err(|source| BootError::Read {
            path: path.clone(),
            source,
        })?;
        let result = match mounted.iter().find(|other| collide(other, &real)) {
            Some(other) => Err(VolumeProblem::Collision(other.clone())),
            None => mount_one(device, &real),
        };
        result.map_err(|problem| BootError::Volume {
            device: device.clone(),
            target: path.clone(),
            problem,
        })?;
        mounted.push(real);
    }
    Ok(())
}

fn mount_one(device: &Path, real: &Path) -> Result<(), VolumeProblem> {
    place(real).map_err(|error| VolumeProblem::Place(real.to_owned(), error))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match mount(Some(device), real, Some(KIND), flags, None::<&str>) {
        Ok(()) => Ok(()),
        Err(Errno::ENODEV) => Err(VolumeProblem::NoSquashfs),
        Err(Errno::EINVAL) => Err(VolumeProblem::Unreadable),
        Err(errno) => Err(VolumeProblem::Mount(errno)),
    }
}
