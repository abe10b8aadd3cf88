//! The first frame each way, and what two ends make of it.

use super::codec::{Reader, put_string};
use super::{Kind, MAX_SOFTWARE, Malformed};

/// The newest version of the protocol that this code speaks.
///
/// 2: limits of processor time, output and disk in `Spawn`, which limit was hit and more usage in
/// `Exited`, no options in `Freeze`.
pub const VERSION: u16 = 2;
/// The oldest.
pub const MIN_VERSION: u16 = 2;

/// The agent can give a command a terminal of its own.
pub const FEATURE_PTY: u64 = 1 << 0;
/// The agent puts each command into a cgroup of its own, so that nothing a command has started
/// can get away from its end, and memory and process limits hold for all of it together.
pub const FEATURE_CGROUP: u64 = 1 << 1;
/// The agent can be frozen, thawed, and given an identity (`Freeze`, `Thaw`, `Identify`).
pub const FEATURE_FREEZE: u64 = 1 << 2;
/// The agent keeps runners (`Warm`, `Run`).
pub const FEATURE_WARM: u64 = 1 << 3;

/// The agent can keep a command from everything else in the guest (`Spawn::confined`).
pub const FEATURE_CONFINE: u64 = 1 << 4;
/// The agent brings a program for files (`Spawn::builtin`, [`FileRequest`](super::FileRequest)).
pub const FEATURE_FILES: u64 = 1 << 5;
/// The agent brings a program for sessions ([`SessionRole`](super::SessionRole)).
pub const FEATURE_SESSIONS: u64 = 1 << 6;
/// The agent says what a command uses while it runs (`Measure`).
pub const FEATURE_USAGE: u64 = 1 << 7;

/// The agent's wall clock can be set without an identity (`Clock`).
pub const FEATURE_CLOCK: u64 = 1 << 8;

/// Tells this protocol from anything else that might listen. The line ending shows a stream that
/// was mangled as text.
const MAGIC: [u8; 8] = *b"EMBER\r\n\0";

/// What an end says first: who it is and what it speaks.
///
/// The layout stays as it is in all versions, because it is read before a version is agreed.
/// Later versions may append fields; bytes after those known here are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version it speaks.
    pub min_version: u16,
    /// The newest version it speaks.
    pub version: u16,
    /// What it can do, as `FEATURE_` bits. Unknown bits are to be ignored.
    pub features: u64,
    /// The software's name and version, for people.
    pub software: String,
}

/// Two ends have no version in common.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the other end ({software}) speaks versions {theirs_min} to {theirs} of the guest protocol, \
     this end {MIN_VERSION} to {VERSION}: rebuild the older of the two"
)]
pub struct VersionMismatch {
    /// The other end's software.
    pub software: String,
    /// The oldest version it speaks.
    pub theirs_min: u16,
    /// The newest version it speaks.
    pub theirs: u16,
}

impl Hello {
    /// This code's own.
    pub fn ours(features: u64) -> Self {
        Self {
            min_version: MIN_VERSION,
            version: VERSION,
            features,
            software: concat!("ember-guest ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// The newest version that the other end and this code both speak.
    pub fn agree(&self) -> Result<u16, VersionMismatch> {
        let version = self.version.min(VERSION);
        if version < self.min_version.max(MIN_VERSION) {
            return Err(VersionMismatch {
                software: self.software.clone(),
                theirs_min: self.min_version,
                theirs: self.version,
            });
        }
        Ok(version)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.min_version.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
        let name = &self.software[..self.software.floor_char_boundary(MAX_SOFTWARE)];
        put_string(out, name.as_bytes());
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let kind = Kind::Hello;
        let mut reader = Reader::new(kind, payload);
        let magic = reader.bytes(MAGIC.len(), "magic")?;
        if magic != MAGIC {
            let value = magic
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte));
            return Err(reader.out_of_range("magic", value));
        }
        Ok(Self {
            min_version: reader.u16("oldest version")?,
            version: reader.u16("version")?,
            features: reader.u64("features")?,
            software: reader.text(MAX_SOFTWARE, "software")?.to_owned(),
        })
    }
}
