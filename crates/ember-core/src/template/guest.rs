//! What a snapshot says of the guest in it, beyond what the monitor knows: the section of the file
//! that only this crate reads.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use ember_guest::protocol::{Hello, VersionMismatch};
use ember_guest::volumes::MAX_VOLUMES;
use serde::{Deserialize, Serialize};

use crate::sandbox::{Fixture, ReadyVolume, Settings};
use crate::{Account, ImageConfig, Language};

/// The version of the section. Its encoding has no names in it, so any change to [`Guest`] is a new
/// one.
pub(crate) const VERSION: u16 = 6;

/// Far more than any image's languages take.
const LIMIT: usize = 1 << 20;

/// Why the section cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error(
        "what the snapshot says of its guest has version {found}, and this program reads version \
         {VERSION}; build the template anew, or use the program that wrote it"
    )]
    Version { found: u16 },
    #[error("what the snapshot says of its guest has {0} bytes; the limit is {LIMIT}")]
    TooLarge(usize),
    #[error("the snapshot's guest has {0} volumes; the limit is {MAX_VOLUMES}")]
    Volumes(usize),
    #[error("what the snapshot says of its guest is damaged")]
    Damaged(#[source] Option<postcard::Error>),
    #[error(transparent)]
    Agent(#[from] VersionMismatch),
}

/// What is needed to make clones again, besides what the monitor saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guest {
    agent: Agent,
    /// Where the image was, as bytes.
    image: Vec<u8>,
    pub(crate) languages: Vec<Language>,
    pub(crate) account: Account,
    pub(crate) config: ImageConfig,
    timeout: Option<Duration>,
    output_limit: u64,
    /// The languages whose interpreters are kept warm.
    pub(crate) runners: Vec<String>,
    volumes: Vec<Volume>,
    /// Whether it writes to a disk, which the snapshot has, rather than to memory.
    pub(crate) has_overlay_disk: bool,
}

/// Where a volume is in the guest, and where its file was; both as bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Volume {
    place: Vec<u8>,
    file: Vec<u8>,
}

/// [`Hello`], whose own form is the wire's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Agent {
    min_version: u16,
    version: u16,
    features: u64,
    software: String,
}

impl Guest {
    pub(crate) fn new(hello: &Hello, fixture: &Fixture) -> Self {
        Self {
            agent: Agent {
                min_version: hello.min_version,
                version: hello.version,
                features: hello.features,
                software: hello.software.clone(),
            },
            image: fixture.image.file.as_os_str().as_bytes().to_vec(),
            languages: fixture.image.languages.clone(),
            account: fixture.image.account.clone(),
            config: fixture.image.config.clone(),
            timeout: fixture.settings.timeout,
            output_limit: fixture.settings.output_limit as u64,
            runners: fixture.runners.clone(),
            volumes: fixture.volumes.iter().map(Volume::of).collect(),
            has_overlay_disk: fixture.overlay.is_some(),
        }
    }

    /// What the agent said when it came up.
    pub(crate) fn hello(&self) -> Hello {
        let agent = &self.agent;
        Hello {
            min_version: agent.min_version,
            version: agent.version,
            features: agent.features,
            software: agent.software.clone(),
        }
    }

    /// Where the image was.
    pub(crate) fn image(&self) -> &Path {
        path(&self.image)
    }

    /// Where each volume is in the guest, and where its file was, in the order of the disks.
    pub(crate) fn volumes(&self) -> impl ExactSizeIterator<Item = (&Path, &Path)> {
        self.volumes
            .iter()
            .map(|it| (path(&it.place), path(&it.file)))
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            timeout: self.timeout,
            output_limit: usize::try_from(self.output_limit).unwrap_or(usize::MAX),
        }
    }

    /// Writes it as bytes: the version, little-endian, and then postcard.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, GuestError> {
        let bytes = VERSION.to_le_bytes().to_vec();
        let bytes =
            postcard::to_extend(self, bytes).map_err(|error| GuestError::Damaged(Some(error)))?;
        if bytes.len() > LIMIT {
            return Err(GuestError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads it from what [`encode`](Self::encode) wrote, all of it. What this allocates is in
    /// proportion to `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, GuestError> {
        if bytes.len() > LIMIT {
            return Err(GuestError::TooLarge(bytes.len()));
        }
        let (version, rest) = bytes.split_first_chunk().ok_or(GuestError::Damaged(None))?;
        let found = u16::from_le_bytes(*version);
        if found != VERSION {
            return Err(GuestError::Version { found });
        }
        let guest: Self = match postcard::take_from_bytes(rest) {
            Ok((guest, [])) => guest,
            Ok(_) => return Err(GuestError::Damaged(None)),
            Err(error) => return Err(GuestError::Damaged(Some(error))),
        };
        if guest.volumes.len() > MAX_VOLUMES {
            return Err(GuestError::Volumes(guest.volumes.len()));
        }
        // Nobody exchanges a hello with a clone: this is the one chance to find out.
        guest.hello().agree()?;
        Ok(guest)
    }
}

impl Volume {
    fn of(volume: &ReadyVolume) -> Self {
        Self {
            place: volume.place.as_os_str().as_bytes().to_vec(),
            file: volume.file.as_os_str().as_bytes().to_vec(),
        }
    }
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
