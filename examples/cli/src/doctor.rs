//! `ember doctor`: what this host can do, and what to change.

use std::process::ExitCode;

use anyhow::Result;
use ember_core::{Condition, Host};
use serde_json::json;

use crate::arguments::Common;
use crate::report::say;

pub(crate) fn doctor(common: &Common) -> Result<ExitCode> {
    let host = Host::examine();
    if common.json {
        say!("{:#}", json!(host));
    } else {
        for finding in &host.findings {
            let mark = match finding.condition {
                Condition::Good => "ok  ",
                Condition::Poor => "note",
                Condition::Bad => "BAD ",
            };
            say!("{mark}  {:<16} {}", finding.subject, finding.found);
            if let Some(advice) = &finding.advice {
                say!("      {:<16} → {advice}", "");
            }
        }
        say!("");
        say!(
            "{}",
            if host.can_boot() {
                "This host can run sandboxes."
            } else {
                "This host cannot run sandboxes."
            }
        );
    }
    Ok(if host.can_boot() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
