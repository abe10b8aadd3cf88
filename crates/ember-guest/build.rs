//! Builds the agent as a static program, for `AGENT` (feature `embed`).
//!
//! It is this package again, with the features `agent` alone, by the same Cargo and the same
//! lock file, into a target directory below `OUT_DIR`. Whatever an embedder builds with (flags, a
//! sanitizer, coverage, another profile), the agent is the same program.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// No interpreter and no relocation: the kernel maps it and jumps to it. What is the same is there once
/// (the toolchain's linker is LLVM's): each byte is copied thrice before it runs.
const FLAGS: &[&str] = &[
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Cforce-unwind-tables=no",
    "-Clink-arg=-Wl,--icf=all",
    "-Clink-arg=-Wl,--no-eh-frame-hdr",
];

/// What the standard library and the C library bring for unwinding, a tenth of the program, is left
/// out: nothing in it unwinds. `INSERT` leaves everything else as it is without a script.
const LINKER_SCRIPT: &str = "SECTIONS { /DISCARD/ : { *(.eh_frame) } } INSERT AFTER .rodata;\n";

fn main() -> Result<(), Box<dyn Error>> {
    for path in [
        "build.rs",
        "Cargo.toml",
        "src/agent",
        "src/archive",
        "src/bin",
        "src/protocol",
        "src/lib.rs",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    if env::var_os("CARGO_FEATURE_EMBED").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target = env::var("TARGET")?;
    let directory = out.join("agent-target");

    let script = out.join("agent.ld");
    fs::write(&script, LINKER_SCRIPT)?;
    let script = script.to_str().ok_or("OUT_DIR is no text")?;
    let script = format!("-Clink-arg={script}");
    let flags = [FLAGS, &["-Clink-arg=-T", &script]].concat();

    let mut cargo = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?);
    // What the outer build was told is not meant for the agent.
    for (name, _) in env::vars_os() {
        let inherited = name.to_str().is_some_and(|name| {
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
        });
        if inherited {
            cargo.env_remove(&name);
        }
    }
    cargo
        .args(["rustc", "--quiet", "--release", "--bin", "ember-agent"])
        .args([
            "--no-default-features",
            "--features",
            "agent",
            "--target",
            &target,
        ])
        .arg("--manifest-path")
        .arg(PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&directory)
        // Small and without unwinding: it is copied into every guest, and a panic of PID 1 is the
        // guest's end in any case.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "z")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let status = cargo
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !status.success() {
        return Err(format!("building the agent failed ({status}) for the reason above").into());
    }
    let built = directory.join(&target).join("release/ember-agent");
    fs::copy(&built, out.join("ember-agent"))
        .map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    Ok(())
}
