//! A test in a process of its own.

use std::env;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

/// Set in the process that is to run a test itself.
const MARK: &str = "EMBER_LEAK_ISOLATED";
/// How that process ends if the test passed. No test harness ends like this, so that a test that
/// was not found, for example, is no success.
const PASSED: i32 = 86;

/// Runs a test's body in a process of its own, in which nothing else runs: the test binary again,
/// with this test only. Fails if the body does.
///
/// ```no_run
/// #[test]
/// fn boots_leave_nothing_behind() {
///     ember_leak::isolated!(|| {
///         let gate = ember_leak::LeakGate::arm().unwrap();
///         // …
///         gate.check().unwrap();
///     });
/// }
/// ```
#[macro_export]
macro_rules! isolated {
    ($body:expr) => {{
        fn here() {}
        $crate::run_isolated(::std::any::type_name_of_val(&here), &[], $body)
    }};
}

/// Like [`isolated!`], in new mount and network namespaces, which the body may change as root may
/// and which go away with it. Needs no privilege but that of making user namespaces, and the
/// program `unshare` (util-linux).
#[macro_export]
macro_rules! isolated_namespaces {
    ($body:expr) => {{
        fn here() {}
        let unshare = ["unshare", "--user", "--map-root-user", "--mount", "--net"];
        $crate::run_isolated(::std::any::type_name_of_val(&here), &unshare, $body)
    }};
}

/// What the macros expand to. `path` is the path of a function within the test's; `wrapper` is a
/// command that runs the command that follows it.
#[doc(hidden)]
pub fn run_isolated(path: &str, wrapper: &[&str], body: impl FnOnce()) {
    if env::var_os(MARK).is_some() {
        body();
        process::exit(PASSED);
    }
    // Test names have neither the crate nor what is within the test.
    let within = path.split("::").filter(|part| *part != "{{closure}}");
    let mut parts: Vec<_> = within.skip(1).collect();
    parts.pop();
    let test = parts.join("::");

    #[allow(clippy::expect_used, reason = "a test that cannot be run has failed")]
    let binary = env::current_exe().expect("a running program has a path");
    let mut command = match wrapper {
        [] => Command::new(binary),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(binary);
            command
        }
    };
    command.args([
        &*test,
        "--exact",
        "--nocapture",
        "--include-ignored",
        "--test-threads=1",
    ]);
    // Of its own too is its process group, by which a gate finds processes that were given away.
    command.env(MARK, &test).process_group(0);
    match run(command) {
        Ok((status, _)) if status.code() == Some(PASSED) => {}
        Ok((status, output)) => {
            // Set in, so that nobody takes the lines of its harness for those of this one.
            let output: String = output.lines().map(|line| format!("    {line}\n")).collect();
            panic!("{test} did not pass in a process of its own: {status}\n{output}")
        }
        Err(error) => panic!("{test} cannot be run in a process of its own: {error}"),
    }
}

/// How often it is looked whether the process has ended, or has got on.
const LOOK: Duration = Duration::from_millis(100);

/// Runs `command` to its end. Its output goes to a file, not to a pipe, which something that was
/// left behind could keep open. What it says of its [progress] is passed on at once.
fn run(mut command: Command) -> io::Result<(ExitStatus, String)> {
    let file = tempfile::tempfile()?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file.try_clone()?);
    let mut child = command.spawn()?;
    let mut output = Vec::new();
    loop {
        let status = child.try_wait()?;
        let known = output.len();
        let mut part = [0; 8192];
        loop {
            match file.read_at(&mut part, output.len() as u64)? {
                0 => break,
                count => output.extend_from_slice(&part[..count]),
            }
        }
        tell(&output, known)?;
        if let Some(status) = status {
            return Ok((status, String::from_utf8_lossy(&output).into_owned()));
        }
        thread::sleep(LOOK);
    }
}

/// What lines begin with that are passed on.
const PROGRESS: &str = "progress: ";

/// Says how far a test of minutes has got: on standard output itself, which no test harness holds
/// back until the end.
pub fn progress(what: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stdout().lock(), "{PROGRESS}{what}");
}

/// Passes on what has been said of progress in `output` in lines that end behind `known`.
fn tell(output: &[u8], known: usize) -> io::Result<()> {
    let is_end = |byte: &u8| *byte == b'\n';
    let begin = output[..known]
        .iter()
        .rposition(is_end)
        .map_or(0, |at| at + 1);
    let end = output.iter().rposition(is_end).map_or(0, |at| at + 1);
    let new = output.get(begin..end).unwrap_or_default();
    for line in String::from_utf8_lossy(new).lines() {
        if let Some(at) = line.find(PROGRESS) {
            writeln!(io::stdout().lock(), "{}", &line[at..])?;
        }
    }
    Ok(())
}
