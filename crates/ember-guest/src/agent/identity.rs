//! Who the guest is, and how it becomes somebody else.
//!
//! A clone waits for its identity before it can do anything, so this is the fast path of the
//! agent: whatever can be made ahead is, when the guest boots or is frozen
//! ([`Identities::prepare`]). What is left ([`Identities::apply`]) is a system call a step, and for
//! the ids not even that: they are pages of files that the agent has mapped.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use zeroize::Zeroize;

use super::sys;
use crate::protocol::{ErrorCode, Failure, Identity, Variables};

/// Shown by the kernel, which draws it once, at boot, and lets nobody write it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MACHINE_ID: &str = "/etc/machine-id";
/// Where the files are that are mounted over those two.
const FILES: &str = "/run/ember";
/// That of the boot id, which rooms cover their own `/proc`'s with.
pub(crate) const BOOT_ID_FILE: &str = "/run/ember/boot_id";
/// 32 digits and the line's end (machine-id(5)).
const MACHINE_ID_LEN: usize = 33;
/// 32 digits, four hyphens and the line's end.
const BOOT_ID_LEN: usize = 37;

/// Whose identity the agent changes.
#[derive(Debug)]
enum Place {
    /// Nobody's: an agent outside of a guest that was not told otherwise.
    Nowhere,
    /// The machine's.
    Guest,
    /// Files in a directory that stand for the machine, for tests.
    Directory(PathBuf),
}

/// The guest's identity.
#[derive(Debug)]
pub(crate) struct Identities {
    place: Place,
    /// The kernel's random number generator, once it was opened ahead.
    random: Option<File>,
    /// None if the root has no place for it.
    machine_id: Option<SharedFile<MACHINE_ID_LEN>>,
    /// None if the kernel shows none.
    boot_id: Option<SharedFile<BOOT_ID_LEN>>,
    environment: Environment,
}

/// The variables that an identity brought.
#[derive(Default)]
pub(crate) struct Environment {
    plain: Variables,
    secret: Variables,
}

impl Environment {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let all = self.plain.iter().chain(&self.secret);
        all.map(|(name, value)| (&name[..], &value[..]))
    }

    fn replace(&mut self, plain: Variables, secret: Variables) {
        self.plain = plain;
        // A snapshot of this guest would have them otherwise.
        for (_, value) in &mut self.secret {
            value.zeroize();
        }
        self.secret = secret;
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Environment")
            .field("variables", &self.plain.len())
            .field("secrets", &self.secret.len())
            .finish_non_exhaustive()
    }
}

impl Identities {
    /// Of nobody: an identity is refused.
    pub(crate) fn nowhere() -> Self {
        Self::new(Place::Nowhere)
    }

    /// Of files in a directory, which take what would be the machine's.
    pub(crate) fn in_directory(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            machine_id: Some(SharedFile::create(&directory.join("machine-id"))?),
            boot_id: Some(SharedFile::create(&directory.join("boot-id"))?),
            ..Self::new(Place::Directory(directory.to_owned()))
        })
    }

    /// Of this machine. Has to be called before anything else is started, which could get a mount
    /// namespace of its own that does not hear of what is mounted here.
    pub(crate) fn of_guest() -> io::Result<Self> {
        let mut identities = Self::new(Place::Guest);
        let boot_id = match fs::read(BOOT_ID) {
            Ok(text) => Some(text),
            // A kernel without sysctl.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        fs::create_dir_all(FILES)?;
        if let Some(text) = &boot_id {
            identities.boot_id = Some(cover(BOOT_ID, "boot_id", text)?);
        }
        // A root that brings no machine id gets one for this boot, as systemd does it.
        let given = fs::read(MACHINE_ID).unwrap_or_default();
        let text = match given.len() {
            MACHINE_ID_LEN => given,
            _ => boot_id
                .unwrap_or_default()
                .into_iter()
                .filter(|&byte| byte != b'-')
                .collect(),
        };
        match create(Path::new(MACHINE_ID)) {
            Ok(_) => identities.machine_id = Some(cover(MACHINE_ID, "machine_id", &text)?),
            // A root without an `/etc`, or one that cannot be written.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ReadOnlyFilesystem
                ) => {}
            Err(error) => return Err(error),
        }
        Ok(identities)
    }

    fn new(place: Place) -> Self {
        Self {
            place,
            random: None,
            machine_id: None,
            boot_id: None,
            environment: Environment::default(),
        }
    }

    /// What everything that is started gets.
    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Does ahead of time what [`Self::apply`] would have to do before it can begin.
    pub(crate) fn prepare(&mut self) -> Result<(), Failure> {
        let (path, result) = match &self.place {
            Place::Nowhere => return Ok(()),
            Place::Guest => {
                let path = PathBuf::from("/dev/urandom");
                let result = File::open(&path);
                (path, result)
            }
            Place::Directory(directory) => {
                let path = directory.join("entropy");
                let result = create(&path);
                (path, result)
            }
        };
        let opened = result.map_err(|error| failed(&format!("open {}", path.display()), &error))?;
        self.random = Some(opened);
        Ok(())
    }

    /// Sets the wall clock, to the time since 1970.
    pub(crate) fn set_clock(&self, time: Duration) -> Result<(), Failure> {
        if let Place::Nowhere = self.place {
            return Err(nobodys());
        }
        let set = self.place.set_clock(time);
        set.map_err(|error| {
            let message = format!("cannot set the wall clock: {error}");
            Failure::new(ErrorCode::Internal, message)
        })
    }

    /// Makes the guest what `identity` says. Whoever sees an error has to take the guest for
    /// nobody: some of it may have been applied.
    pub(crate) fn apply(&mut self, mut identity: Identity) -> Result<(), Failure> {
        identity.validate()?;
        if let Place::Nowhere = self.place {
            return Err(nobodys());
        }
        if self.random.is_none() {
            self.prepare()?;
        }
        let Some(random) = &self.random else {
            return Err(Failure::new(ErrorCode::Internal, "nothing was prepared"));
        };
        let step = |what: &'static str| move |error: io::Error| failed(what, &error);

        // First: whatever runs beside this may draw from it.
        self.place
            .add_entropy(random, &identity.entropy)
            .map_err(step("reseed the kernel's random numbers"))?;
        identity.entropy.zeroize();
        self.place
            .set_clock(identity.realtime)
            .map_err(step("set the wall clock"))?;
        if !identity.hostname.is_empty() {
            self.place
                .set_hostname(&identity.hostname)
                .map_err(step("set the host name"))?;
        }
        if let Some(file) = &mut self.machine_id {
            file.set(&machine_id(&identity.machine_id));
        }
        if let Some(file) = &mut self.boot_id {
            file.set(&boot_id(&identity.boot_id));
        }
        self.environment.replace(
            std::mem::take(&mut identity.env),
            std::mem::take(&mut identity.secrets),
        );
        Ok(())
    }
}

impl Place {
    fn add_entropy(&self, random: &File, entropy: &[u8]) -> io::Result<()> {
        match self {
            Self::Directory(_) => random.write_all_at(entropy, 0),
            _ => sys::add_entropy(random.as_fd(), entropy),
        }
    }

    fn set_clock(&self, realtime: Duration) -> io::Result<()> {
        match self {
            Self::Directory(directory) => {
                let text = realtime.as_nanos().to_string();
                fs::write(directory.join("realtime"), text)
            }
            _ => Ok(clock_settime(
                ClockId::CLOCK_REALTIME,
                TimeSpec::from_duration(realtime),
            )?),
        }
    }

    fn set_hostname(&self, name: &[u8]) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        match self {
            Self::Directory(directory) => fs::write(directory.join("hostname"), name),
            _ => Ok(nix::unistd::sethostname(std::ffi::OsStr::from_bytes(name))?),
        }
    }
}

fn nobodys() -> Failure {
    Failure::new(
        ErrorCode::Unsupported,
        "this agent was not told whose identity it may change (--identity)",
    )
}

fn failed(step: &str, error: &io::Error) -> Failure {
    let message = format!("cannot {step} for an identity: {error}");
    Failure::new(ErrorCode::Identity, message)
}

/// A file that everybody can read and the agent can write.
fn create(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o444)
        .open(path)
}

/// Mounts a file over another. It holds `text` until the agent writes it, and nobody but root can:
/// the mount is read-only, and its other name, which rooms need, is root's. (Cut to nothing, it would
/// take the agent's mapping with it.)
fn cover<const N: usize>(path: &str, name: &str, text: &[u8]) -> io::Result<SharedFile<N>> {
    use nix::mount::{MsFlags, mount};
    let source = Path::new(FILES).join(name);
    let mut file = SharedFile::create(&source)?;
    if let Ok(text) = text.try_into() {
        file.set(text);
    }
    let none = None::<&str>;
    mount(Some(&source), path, none, MsFlags::MS_BIND, none)?;
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, path, none, read_only, none)?;
    Ok(file)
}

/// A file of `N` bytes that is written without a system call.
#[derive(Debug)]
struct SharedFile<const N: usize>(sys::Mapping);

impl<const N: usize> SharedFile<N> {
    fn create(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o444)
            .open(path)?;
        file.set_len(N as u64)?;
        Ok(Self(sys::Mapping::of(file.as_fd())?))
    }

    fn set(&mut self, text: &[u8; N]) {
        self.0.write(text);
    }
}

/// `32 digits\n`.
fn machine_id(id: &[u8; 16]) -> [u8; MACHINE_ID_LEN] {
    let mut text = [b'\n'; MACHINE_ID_LEN];
    for (to, digit) in text.iter_mut().zip(digits(id)) {
        *to = digit;
    }
    text
}

/// As the kernel writes it: `8-4-4-4-12\n`.
fn boot_id(id: &[u8; 16]) -> [u8; BOOT_ID_LEN] {
    let mut text = [b'-'; BOOT_ID_LEN];
    text[36] = b'\n';
    let places = (0..36).filter(|place| ![8, 13, 18, 23].contains(place));
    for (place, digit) in places.zip(digits(id)) {
        text[place] = digit;
    }
    text
}

fn digits(id: &[u8; 16]) -> impl Iterator<Item = u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    id.iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| DIGITS[usize::from(digit)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_linux_writes_them() {
        let id = [
            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 1, 2, 3, 4, 5, 6, 0xff,
        ];
        assert_eq!(&machine_id(&id), b"0123456789abcdef00010203040506ff\n");
        assert_eq!(&boot_id(&id), b"01234567-89ab-cdef-0001-0203040506ff\n");
    }

    #[test]
    fn secrets_do_not_show() {
        let pair = |name: &[u8], value: &[u8]| (name.to_vec(), value.to_vec());
        let mut environment = Environment::default();
        environment.replace(vec![pair(b"A", b"1")], vec![pair(b"TOKEN", b"hush")]);
        assert_eq!(environment.iter().count(), 2);
        assert!(!format!("{environment:?}").contains("hush"));
        environment.replace(vec![], vec![]);
        assert_eq!(environment.iter().count(), 0);
    }
}
