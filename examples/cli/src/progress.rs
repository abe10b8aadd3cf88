//! Shows what takes its time, on standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use ember_core::{Event, Progress};

/// What takes longer is worth a line also where nobody watches.
const LONG: Duration = Duration::from_secs(2);

/// A listener that shows each step, with its time: on a terminal from when it begins, elsewhere
/// when it has taken long.
pub(crate) fn to_stderr() -> Progress {
    let watched = io::stderr().is_terminal();
    // Standard error may be gone, and progress is nothing to fail for.
    Progress::new(move |event| {
        let mut stderr = io::stderr();
        let _ = match event {
            Event::Started { step } if watched => write!(stderr, "ember: {step} …"),
            Event::Finished {
                elapsed, succeeded, ..
            } if watched => {
                let failed = if *succeeded { "" } else { " failed after" };
                writeln!(stderr, "{failed} {:.1} s", elapsed.as_secs_f64())
            }
            Event::Finished {
                step,
                elapsed,
                succeeded: true,
            } if *elapsed >= LONG => {
                writeln!(stderr, "ember: {step} took {:.1} s", elapsed.as_secs_f64())
            }
            Event::Noticed { message } => writeln!(stderr, "ember: {message}"),
            _ => Ok(()),
        };
    })
}
