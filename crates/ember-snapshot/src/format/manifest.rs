//! What a snapshot says of itself, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::memory::MemoryHash;

/// What a snapshot is and what it was made from. It is in the file as JSON.
///
/// A field that is not known is passed over, and one that came later has a default, so that a field
/// can be added without a new version. Nothing in here has been checked but that it contradicts no
/// other section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub created: SystemTime,
    /// The program that made it.
    pub created_by: String,
    /// The processor architecture, by the name that Rust gives it.
    pub architecture: String,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Size of the guest's memory in bytes.
    pub memory_bytes: u64,
    /// The hash of the guest's whole memory, that of the layers below included. The writer fills it
    /// in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_hash: Option<MemoryHash>,
    /// The kernel that was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Artefact>,
    /// What is on the guest's disks, in the order of the disks.
    #[serde(default)]
    pub images: Vec<Artefact>,
    /// What a host has to offer.
    #[serde(default)]
    pub cpu: CpuRequirements,
    /// The snapshot that this one is a diff to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Everything else that it was built from, such as what ran to warm it up.
    #[serde(default)]
    pub built_from: BTreeMap<String, String>,
}

/// A file that a guest was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// What people call it.
    pub name: String,
    /// The digest of its content, with the name of the function: `sha256:…`.
    pub digest: String,
}

/// What a processor and its kernel have to offer for a guest to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuRequirements {
    /// The processor's maker as CPUID says it, if that matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The processor's features, by the names that Linux has for them.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// What KVM has to be capable of.
    #[serde(default)]
    pub capabilities: BTreeSet<String>,
}

/// The snapshot that a diff was made from.
///
/// A diff depends on its parent's memory and on nothing else of it, so a parent can be replaced by
/// another snapshot with the same memory, such as the compacted form of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// What its memory has to be.
    pub memory_hash: MemoryHash,
    /// How to find it: what that means is up to who does.
    pub name: String,
}

/// A time as people write it, to the second.
mod rfc3339 {
    use std::time::{Duration, SystemTime};

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    /// The last second of the year 9999, where the notation ends.
    const LAST: Duration = Duration::from_secs(253_402_300_799);

    pub(super) fn serialize<S: Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let since_epoch = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let time = SystemTime::UNIX_EPOCH + since_epoch.min(LAST);
        serializer.collect_str(&humantime::format_rfc3339_seconds(time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(D::Error::custom)
    }
}
