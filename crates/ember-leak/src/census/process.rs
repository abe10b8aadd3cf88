//! What the process itself holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::process;

use super::{Anonymous, Item};

/// Open descriptors.
pub(super) fn descriptors() -> io::Result<Vec<Item>> {
    // What this very look has open for itself.
    let own = format!("/proc/{}/fd", process::id());
    let mut items = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(target) = unless_gone(fs::read_link(entry.path()))? else {
            continue;
        };
        let target = target.to_string_lossy();
        if target == own {
            continue;
        }
        items.push(Item {
            class: class_of_descriptor(&target).to_owned(),
            identity: format!("{} → {target}", entry.file_name().to_string_lossy()),
        });
    }
    Ok(items)
}

/// `socket:[1234]` is one socket of many; a path is what it is.
pub(super) fn class_of_descriptor(target: &str) -> &str {
    match target.split_once(":[") {
        Some((kind, inode))
            if inode
                .trim_end_matches(']')
                .bytes()
                .all(|b| b.is_ascii_digit()) =>
        {
            kind
        }
        _ => target,
    }
}

/// Threads.
pub(super) fn threads() -> io::Result<Vec<Item>> {
    let mut items = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        let Some(stat) = unless_gone(fs::read_to_string(path.join("stat")))? else {
            continue;
        };
        let Some(stat) = Stat::parse(&stat) else {
            continue;
        };
        items.push(Item {
            identity: format!("thread {}, started at {}", stat.id, stat.started),
            class: stat.name,
        });
    }
    Ok(items)
}

/// Descendants of this process, and what else is in its process group.
pub(super) fn processes() -> io::Result<Vec<Item>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry
            .file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit)
        {
            continue;
        }
        let stat = unless_gone(fs::read_to_string(entry.path().join("stat")))?;
        if let Some(stat) = stat.as_deref().and_then(Stat::parse) {
            all.insert(stat.id, stat);
        }
    }

    let own = process::id();
    let group = all.get(&own).map(|stat| stat.group);
    let ancestors: BTreeSet<u32> = ancestry(own, &all).collect();
    let is_ours = |stat: &Stat| {
        let given_away = Some(stat.group) == group
            && !ancestors.contains(&stat.id)
            // Dead, it is for the one that took it over to wait for.
            && stat.state != 'Z';
        stat.id != own && (given_away || ancestry(stat.id, &all).any(|id| id == own))
    };
    let items = all.values().filter(|stat| is_ours(stat)).map(|stat| {
        let state = if stat.state == 'Z' {
            ", dead and not waited for"
        } else {
            ""
        };
        Item {
            class: stat.name.clone(),
            identity: format!(
                "process {}, child of {}, started at {}{state}",
                stat.id, stat.parent, stat.started
            ),
        }
    });
    Ok(items.collect())
}

/// The process `id`, its parent, its parent's parent and so on.
fn ancestry(id: u32, all: &BTreeMap<u32, Stat>) -> impl Iterator<Item = u32> {
    // Parents were read at different times, so that a circle is thinkable; it is cut.
    std::iter::successors(Some(id), |id| {
        all.get(id)
            .map(|stat| stat.parent)
            .filter(|parent| *parent != 0)
    })
    .take(all.len() + 1)
}

/// A line of `/proc/PID/stat` (`proc_pid_stat(5)`).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) state: char,
    pub(super) parent: u32,
    pub(super) group: u32,
    /// In clock ticks since the machine started: with the id, it names a process for all time.
    pub(super) started: u64,
}

impl Stat {
    pub(super) fn parse(line: &str) -> Option<Self> {
        // The name may have anything in it, parentheses and spaces included.
        let (id, rest) = line.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        Some(Self {
            id: id.parse().ok()?,
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Mappings of files, and how much anonymous memory there is.
pub(super) fn mappings() -> io::Result<(Vec<Item>, Anonymous)> {
    Ok(parse_mappings(&fs::read_to_string("/proc/self/maps")?))
}

pub(super) fn parse_mappings(maps: &str) -> (Vec<Item>, Anonymous) {
    let mut items = Vec::new();
    let mut anonymous = Anonymous::default();
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ');
        let (Some(range), Some(permissions)) = (fields.next(), fields.next()) else {
            continue;
        };
        let name = fields.nth(3).unwrap_or_default().trim_start();
        match name {
            // Address space that is only reserved, such as an arena that may grow, is no memory.
            "" if permissions.starts_with("---") => {}
            "" => {
                anonymous.bytes += length(range).unwrap_or_default();
                anonymous.count += 1;
            }
            // The heap, the stack and the kernel's own pages.
            _ if name.starts_with('[') => {}
            _ if is_library(name) => {}
            _ => items.push(Item {
                class: name.to_owned(),
                identity: format!("{range} {permissions}"),
            }),
        }
    }
    (items, anonymous)
}

fn length(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    number(end)?.checked_sub(number(start)?)
}

fn is_library(name: &str) -> bool {
    let file = Path::new(name)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    file.ends_with(".so") || file.contains(".so.")
}

/// What is listed can be gone when it is looked at.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    /// `ESRCH`: reading of a process that ended after its file was opened.
    const NO_SUCH_PROCESS: i32 = 3;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_SUCH_PROCESS)
}
