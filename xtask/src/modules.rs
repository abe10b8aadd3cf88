//! Kernel modules out of an unpacked Debian kernel package: which ones a set of names needs, in
//! the order in which they must be loaded.
//!
//! The dependencies stand in each module's `.modinfo` section, so neither `depmod` nor its index
//! is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A module ready to be loaded.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its name, with underscores.
    pub(crate) name: String,
    /// The uncompressed object file.
    pub(crate) object: Vec<u8>,
}

/// `names` and everything they depend on, in load order, from below `directory`. A name without a
/// file is taken to be built into the kernel.
pub(crate) fn in_load_order(directory: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(directory, &mut files)?;
    if files.is_empty() {
        bail!("no kernel modules below {}", directory.display());
    }
    let mut ordered = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        visit(&canonical(name), &files, &mut seen, &mut ordered)?;
    }
    Ok(ordered)
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    ordered: &mut Vec<Module>,
) -> Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    let object = read_object(path)?;
    for dependency in dependencies(&object) {
        visit(&dependency, files, seen, ordered)?;
    }
    ordered.push(Module {
        name: name.to_owned(),
        object,
    });
    Ok(())
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((stem, "ko" | "ko.xz")) = name.split_once('.')
        {
            files.insert(canonical(stem), path);
        }
    }
    Ok(())
}

fn read_object(path: &Path) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", path.display());
    let bytes = fs::read(path).with_context(reading)?;
    if path.extension().is_some_and(|extension| extension == "xz") {
        let mut object = Vec::new();
        liblzma::read::XzDecoder::new(&bytes[..])
            .read_to_end(&mut object)
            .with_context(reading)?;
        return Ok(object);
    }
    Ok(bytes)
}

/// The names in the `depends=` entry of `.modinfo`, a list of NUL-terminated `key=value` strings.
fn dependencies(object: &[u8]) -> Vec<String> {
    let list = object
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(list.unwrap_or_default()).into_owned();
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
#[path = "modules_tests.rs"]
mod tests;
