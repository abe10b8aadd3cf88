//! How things ended: exit statuses, and JSON for programs.

use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ember_core::{Captured, Error, ErrorKind, Outcome, Output, Status, Verdict};
use serde_json::{Value, json};

/// Ember itself failed.
const FAILED: u8 = 125;
/// The program could not be compiled.
const NOT_COMPILED: u8 = 123;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// The time was up, as `timeout` reports it.
const TIMED_OUT: u8 = 124;

/// The exit status of a program that could not be compiled.
pub(crate) fn not_compiled() -> ExitCode {
    ExitCode::from(NOT_COMPILED)
}

/// The exit status that stands for what came of a program.
pub(crate) fn status_of(output: &Output) -> ExitCode {
    match output.verdict() {
        Verdict::CompilationError => not_compiled(),
        _ => status(&output.outcome),
    }
}

/// The exit status that stands for `outcome`.
pub(crate) fn status(outcome: &Outcome) -> ExitCode {
    ExitCode::from(number(outcome))
}

/// The same as a number.
pub(crate) fn number(outcome: &Outcome) -> u8 {
    if outcome.timed_out() {
        return TIMED_OUT;
    }
    u8::try_from(outcome.status.shell_code()).unwrap_or(u8::MAX)
}

/// `output` as JSON. JSON is text, and what a program writes need not be: `stdout` is what of it is
/// text, and `stdout_base64` is all of it where that is not the same, else null.
pub(crate) fn output(output: &Output) -> Value {
    let Output {
        stdout,
        stderr,
        truncated,
        outcome,
        compile,
        artifacts: _,
    } = output;
    let (exit_code, signal) = match outcome.status {
        Status::Exited(code) => (Some(code), None),
        Status::Signaled(signal) => (None, Some(signal)),
        _ => (None, None),
    };
    let text = |captured: &Captured| captured.to_string_lossy().into_owned();
    let base64 = |captured: &Captured| {
        let bytes: &[u8] = captured;
        std::str::from_utf8(bytes)
            .is_err()
            .then(|| BASE64.encode(bytes))
    };
    let compile = compile.as_ref().map(|compilation| {
        json!({
            "cached": compilation.cached,
            "seconds": compilation.time().map(|time| time.as_secs_f64()),
            "messages": text(&compilation.messages),
        })
    });
    json!({
        "verdict": output.verdict().name(),
        "exit_code": exit_code,
        "signal": signal,
        "timed_out": outcome.timed_out(),
        "out_of_memory": outcome.out_of_memory(),
        "limit": outcome.limit.map(|limit| limit.to_string()),
        "stdout": text(stdout),
        "stdout_base64": base64(stdout),
        "stderr": text(stderr),
        "stderr_base64": base64(stderr),
        "truncated": truncated,
        "wall_seconds": outcome.wall.as_secs_f64(),
        "user_seconds": outcome.user.as_secs_f64(),
        "system_seconds": outcome.system.as_secs_f64(),
        "peak_memory_bytes": outcome.peak_memory,
        "peak_processes": outcome.peak_processes,
        "output_bytes": outcome.output,
        "disk_bytes": outcome.disk,
        "compile": compile,
    })
}

/// Prints a line. Nobody has to read it: a reader that is gone is nothing to fail for.
macro_rules! say {
    ($($what:tt)*) => {{
        let _ = std::io::Write::write_fmt(
            &mut std::io::stdout(),
            format_args!("{}\n", format_args!($($what)*)),
        );
    }};
}
pub(crate) use say;

/// Says what went wrong, and which exit status stands for it.
pub(crate) fn failure(error: &anyhow::Error, as_json: bool) -> ExitCode {
    let kind = error.downcast_ref::<Error>().map(Error::kind);
    if as_json {
        let kind = kind.map_or_else(|| "Command".to_owned(), |kind| format!("{kind:?}"));
        let message = format!("{error:#}");
        println!(
            "{:#}",
            json!({ "error": { "kind": kind, "message": message } })
        );
    } else {
        eprintln!("ember: {error:#}");
    }
    ExitCode::from(match kind {
        Some(ErrorKind::NotFound) => NOT_FOUND,
        Some(ErrorKind::NotExecutable) => NOT_EXECUTABLE,
        _ => FAILED,
    })
}
