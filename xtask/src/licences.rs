//! Licences and sources of everything the workspace is built from, from `cargo metadata` and
//! `deny.toml`. Takes a second; `cargo xtask deny` runs cargo-deny itself over the same file.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cargo, debian, dirs, say};

/// The only place crates come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks every dependency; gives how many there are.
pub(crate) fn check() -> Result<usize> {
    let path = dirs::workspace().join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let allowed = allowed_licences(&text);
    if allowed.is_empty() {
        bail!("{} allows no licence", path.display());
    }
    let metadata = cargo::metadata(true)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?;
    let complaints: Vec<String> = packages
        .iter()
        .filter_map(|package| complaint(package, &allowed))
        .collect();
    if !complaints.is_empty() {
        bail!("{}", complaints.join("; "));
    }
    Ok(packages.len())
}

/// Runs cargo-deny, built from source the first time.
pub(crate) fn deny() -> Result<u8> {
    if !debian::has_program("cargo-deny") {
        say!("installing cargo-deny with cargo install: several minutes on 2 CPUs, once");
        cargo::run(&["install", "--locked", "cargo-deny"], &[])?;
    }
    // The advisory database is not reachable from everywhere; `cargo deny check advisories`.
    cargo::run(
        &[
            "deny",
            "--all-features",
            "check",
            "licenses",
            "bans",
            "sources",
        ],
        &[],
    )?;
    Ok(0)
}

fn complaint(package: &Value, allowed: &BTreeSet<String>) -> Option<String> {
    let name = format!(
        "{} {}",
        package["name"].as_str().unwrap_or("?"),
        package["version"].as_str().unwrap_or("?")
    );
    match package["source"].as_str() {
        None | Some(REGISTRY) => {}
        Some(source) => return Some(format!("{name} comes from {source}")),
    }
    let Some(licence) = package["license"].as_str() else {
        return Some(format!("{name} states no licence"));
    };
    (!satisfied(licence, allowed))
        .then(|| format!("{name} is under {licence}, which deny.toml does not allow"))
}

/// The list `allow` of the table `licenses`: all of deny.toml that is read here.
fn allowed_licences(text: &str) -> BTreeSet<String> {
    let section = text.split("[licenses]").nth(1).unwrap_or_default();
    let list = section
        .split("allow = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next());
    let entries = list.unwrap_or_default().split(',');
    entries
        .map(|entry| entry.trim().trim_matches('"').to_owned())
        .filter(|entry| !entry.is_empty() && !entry.starts_with('#'))
        .collect()
}

/// Whether an SPDX expression can be met by what is allowed. `/` is an old way to write OR.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let text = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut rest = words.as_slice();
    let outcome = any_of(&mut rest, allowed, 0);
    // What was not understood is not allowed.
    outcome == Some(true) && rest.is_empty()
}

/// `a OR b`, which binds less than AND.
fn any_of(words: &mut &[&str], allowed: &BTreeSet<String>, depth: u32) -> Option<bool> {
    let mut outcome = all_of(words, allowed, depth)?;
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        outcome |= all_of(words, allowed, depth)?;
    }
    Some(outcome)
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<String>, depth: u32) -> Option<bool> {
    let mut outcome = single(words, allowed, depth)?;
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        outcome &= single(words, allowed, depth)?;
    }
    Some(outcome)
}

fn single(words: &mut &[&str], allowed: &BTreeSet<String>, depth: u32) -> Option<bool> {
    match *words {
        ["(", rest @ ..] if depth < 16 => {
            *words = rest;
            let outcome = any_of(words, allowed, depth + 1)?;
            let [")", rest @ ..] = *words else {
                return None;
            };
            *words = rest;
            Some(outcome)
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            // An exception only adds permissions.
            let whole = format!("{licence} WITH {exception}");
            Some(allowed.contains(*licence) || allowed.contains(&whole))
        }
        [licence, rest @ ..] if !matches!(*licence, "(" | ")" | "AND" | "OR" | "WITH") => {
            *words = rest;
            Some(allowed.contains(*licence))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "licences_tests.rs"]
mod tests;
