//! Shows what takes its time, on standard error.

use ember_core::{Event, Progress};

/// A listener that writes a line when a step begins and its time when it ends.
pub(crate) fn to_stderr() -> Progress {
    Progress::new(|event| match event {
        Event::Started { step } => eprint!("ember: {step} …"),
        Event::Finished {
            elapsed, succeeded, ..
        } => {
            let outcome = if *succeeded { "" } else { " failed after" };
            eprintln!("{outcome} {:.1} s", elapsed.as_secs_f64());
        }
        _ => {}
    })
}
