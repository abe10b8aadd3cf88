//! A test in a process of its own.

use std::env;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitStatus, Stdio};

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
            panic!("{test} did not pass in a process of its own: {status}\n{output}")
        }
        Err(error) => panic!("{test} cannot be run in a process of its own: {error}"),
    }
}

/// Runs `command` to its end. Its output goes to a file, not to a pipe, which something that was
/// left behind could keep open.
fn run(mut command: Command) -> io::Result<(ExitStatus, String)> {
    let mut file = tempfile::tempfile()?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file.try_clone()?);
    let status = command.status()?;
    let mut output = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut output)?;
    Ok((status, String::from_utf8_lossy(&output).into_owned()))
}
