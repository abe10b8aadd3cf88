//! Calling cargo from a program that cargo started.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::dirs;

/// A cargo command at the workspace's root, without what `cargo run` set for this program: build
/// scripts that look at those variables would run again.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(dirs::workspace())
        .stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if let Some(name) = name.to_str()
            && is_of_this_run(name)
        {
            command.env_remove(name);
        }
    }
    command
}

fn is_of_this_run(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_BIN_")
        || matches!(
            name,
            "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH" | "CARGO_CRATE_NAME"
        )
        || matches!(
            name,
            "CARGO_PRIMARY_PACKAGE" | "OUT_DIR" | "RUST_RECURSION_COUNT"
        )
}

/// Runs cargo and fails when it does.
pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let status = cargo(arguments)
        .envs(environment.iter().copied())
        .status()
        .context("running cargo")?;
    if !status.success() {
        bail!("cargo {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// What `cargo metadata` says of the workspace and, with `dependencies`, of all it is built from.
pub(crate) fn metadata(dependencies: bool) -> Result<Value> {
    let mut arguments = vec!["metadata", "--format-version=1", "--locked"];
    if !dependencies {
        arguments.push("--no-deps");
    }
    let output = cargo(&arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed ({})", output.status);
    }
    serde_json::from_slice(&output.stdout).context("reading what cargo metadata printed")
}

/// An executable cargo has built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Built {
    /// Package it belongs to.
    pub(crate) package: String,
    /// Name of the target: a test file's stem, or the library's or program's name.
    pub(crate) target: String,
    /// `test`, `lib`, `bin`, ...
    pub(crate) kind: String,
    /// The file.
    pub(crate) executable: PathBuf,
    /// The package's directory.
    pub(crate) directory: PathBuf,
}

/// Builds with `arguments` and gives the executables.
pub(crate) fn build(arguments: &[&str]) -> Result<Vec<Built>> {
    let mut arguments = arguments.to_vec();
    arguments.push("--message-format=json-render-diagnostics");
    let mut child = cargo(&arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("running cargo")?;
    let mut built = Vec::new();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            built.extend(parse_artifact(&line?));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "cargo {} failed ({status})",
            arguments[..arguments.len() - 1].join(" ")
        );
    }
    built.sort_by(|a, b| (&a.package, &a.kind, &a.target).cmp(&(&b.package, &b.kind, &b.target)));
    let names = package_names()?;
    for artifact in &mut built {
        if let Some(name) = names.get(&artifact.directory) {
            artifact.package.clone_from(name);
        }
    }
    Ok(built)
}

/// Names of the workspace's packages by their directories.
fn package_names() -> Result<BTreeMap<PathBuf, String>> {
    let metadata = metadata(false)?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    Ok(packages
        .iter()
        .filter_map(|package| {
            let directory = Path::new(package["manifest_path"].as_str()?).parent()?;
            Some((
                directory.to_path_buf(),
                package["name"].as_str()?.to_owned(),
            ))
        })
        .collect())
}

fn parse_artifact(line: &str) -> Option<Built> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let target = &message["target"];
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some(Built {
        package: String::new(),
        target: target["name"].as_str()?.to_owned(),
        kind: target["kind"][0].as_str()?.to_owned(),
        executable: message["executable"].as_str()?.into(),
        directory: manifest.parent()?.to_path_buf(),
    })
}

#[cfg(test)]
#[path = "cargo_tests.rs"]
mod tests;
