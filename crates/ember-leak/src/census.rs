//! What a process and the system around it hold.

mod process;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::Leak;

/// By how many bytes the anonymous memory of a process may grow. Below the memory of the smallest
/// guest (64 MiB), above what the C library keeps of stacks of ended threads (40 MiB).
pub const ANONYMOUS_BYTES_TOLERANCE: u64 = 48 << 20;
/// By how many mappings the anonymous memory of a process may grow: as many as kept stacks and
/// allocators' arenas have.
pub const ANONYMOUS_COUNT_TOLERANCE: usize = 128;

/// A kind of thing that can be left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Descriptor,
    Thread,
    Mapping,
    AnonymousMemory,
    Process,
    Mount,
    Cgroup,
    NetworkInterface,
    File,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptor => "descriptor",
            Self::Thread => "thread",
            Self::Mapping => "mapping",
            Self::AnonymousMemory => "anonymous memory",
            Self::Process => "process",
            Self::Mount => "mount",
            Self::Cgroup => "cgroup",
            Self::NetworkInterface => "network interface",
            Self::File => "file",
        })
    }
}

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Directories whose files count.
    pub(crate) directories: BTreeSet<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        // Named network namespaces are files here.
        Self {
            directories: BTreeSet::from([PathBuf::from("/run/netns")]),
        }
    }
}

/// One thing that is held.
#[derive(Clone, Debug)]
struct Item {
    /// What it has in common with others that could take its place.
    class: String,
    /// What tells it from all others, now and before, and tells a person what it is.
    identity: String,
}

/// Everything that is held at one time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census {
    items: BTreeMap<(Kind, String), BTreeSet<String>>,
    anonymous: Anonymous,
}

/// The memory of a process that is no file's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Anonymous {
    bytes: u64,
    count: usize,
}

impl Census {
    /// Counts.
    pub(crate) fn take(places: &Places) -> io::Result<Self> {
        let mut census = Self::default();
        census.add(Kind::Descriptor, process::descriptors()?);
        census.add(Kind::Thread, process::threads()?);
        census.add(Kind::Process, process::processes()?);
        census.add(Kind::Mount, system::mounts()?);
        census.add(Kind::Cgroup, system::cgroups()?);
        census.add(Kind::NetworkInterface, system::network_interfaces()?);
        census.add(Kind::File, system::files(&places.directories)?);
        let (mappings, anonymous) = process::mappings()?;
        census.add(Kind::Mapping, mappings);
        census.anonymous = anonymous;
        Ok(census)
    }

    fn add(&mut self, kind: Kind, items: Vec<Item>) {
        for item in items {
            self.items
                .entry((kind, item.class))
                .or_default()
                .insert(item.identity);
        }
    }

    /// What there is more of than there was `before`.
    pub(crate) fn beyond(&self, before: &Self) -> Vec<Leak> {
        let none = BTreeSet::new();
        let mut leaks = Vec::new();
        for ((kind, class), now) in &self.items {
            let then = before.items.get(&(*kind, class.clone())).unwrap_or(&none);
            if now.len() > then.len() {
                leaks.push(Leak {
                    kind: *kind,
                    class: class.clone(),
                    count: (then.len(), now.len()),
                    new: now.difference(then).cloned().collect(),
                });
            }
        }
        leaks.extend(self.anonymous.beyond(before.anonymous));
        leaks
    }
}

impl Anonymous {
    fn beyond(self, before: Self) -> Option<Leak> {
        let too_many = self.count > before.count + ANONYMOUS_COUNT_TOLERANCE;
        let too_much = self.bytes > before.bytes + ANONYMOUS_BYTES_TOLERANCE;
        (too_many || too_much).then(|| Leak {
            kind: Kind::AnonymousMemory,
            class: "mappings".to_owned(),
            count: (before.count, self.count),
            new: vec![format!(
                "{} KiB before, {} KiB now",
                before.bytes >> 10,
                self.bytes >> 10
            )],
        })
    }
}

#[cfg(test)]
mod tests;
