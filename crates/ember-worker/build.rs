//! Builds the worker as a static program, for `WORKER` (feature `embed`).
//!
//! It is this package again, with the feature `worker` alone, by the same Cargo and the same lock
//! file, into a target directory of its own. Whatever an embedder builds with (flags, a
//! sanitizer, coverage, another profile), the worker is the same program.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the worker is made of. Those outside this package are there in a checkout only.
const SOURCES: [&str; 10] = [
    "build.rs",
    "Cargo.toml",
    "src/bin",
    "src/worker",
    "src/protocol.rs",
    "src/wire.rs",
    "src/lib.rs",
    "../ember-vmm/Cargo.toml",
    "../ember-vmm/src",
    "../ember-snapshot/src",
];

fn main() -> Result<(), Box<dyn Error>> {
    for path in SOURCES.iter().filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    if env::var_os("CARGO_FEATURE_EMBED").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target = env::var("TARGET")?;
    // Beside what Cargo gives this very build, which is another for a check, a test and a lint: the
    // worker is the same for all of them, and takes a minute to build.
    let directory = out.ancestors().nth(2).unwrap_or(&out).join("ember-worker");

    let mut cargo = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?);
    // What the outer build was told is not meant for the worker.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_outer_build) {
            cargo.env_remove(&name);
        }
    }
    cargo
        .args(["rustc", "--quiet", "--release", "--bin", "ember-worker"])
        .args(["--no-default-features", "--features", "worker"])
        .args(["--target", &target])
        .arg("--manifest-path")
        .arg(PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&directory)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        // Each worker is mapped from one file: what is not in it costs nobody anything.
        .env("CARGO_PROFILE_RELEASE_LTO", "thin")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        // As everywhere: a guest must not find an overflow that goes unnoticed, and what panics
        // says so before it ends.
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true")
        .env("CARGO_PROFILE_RELEASE_PANIC", "unwind")
        // No interpreter, since there are no files where it runs. Its addresses are random.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\x1f-Crelocation-model=pie",
        );
    let status = cargo
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !status.success() {
        return Err(format!("building the worker failed ({status}) for the reason above").into());
    }
    let built = directory.join(&target).join("release/ember-worker");
    fs::copy(&built, out.join("ember-worker"))
        .map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    Ok(())
}

fn is_of_outer_build(name: &str) -> bool {
    let of_cargo = name.starts_with("CARGO_")
        && !matches!(name, "CARGO_HOME" | "CARGO_MAKEFLAGS")
        && !name.starts_with("CARGO_NET_")
        && !name.starts_with("CARGO_HTTP_")
        && !name.starts_with("CARGO_REGISTR");
    of_cargo
        || matches!(
            name,
            "RUSTFLAGS"
                | "RUSTDOCFLAGS"
                | "RUSTC_WORKSPACE_WRAPPER"
                | "LLVM_PROFILE_FILE"
                | "TARGET"
                | "HOST"
                | "PROFILE"
                | "OPT_LEVEL"
                | "DEBUG"
                | "OUT_DIR"
                | "NUM_JOBS"
        )
}
