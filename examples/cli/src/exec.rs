//! `ember exec`: a command in a guest of its own.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use ember_core::{Command, Sandbox, Stdin};

use crate::arguments::{Common, Exec, How};
use crate::guest::with_guest;
use crate::report::say;
use crate::{report, streams};

pub(crate) async fn exec(options: &Exec, common: &Common) -> Result<ExitCode> {
    let command = command(&options.words, &options.how);
    with_guest(common, async |sandbox: Sandbox| {
        let outcome = in_guest(&sandbox, command, common.json).await;
        (sandbox, outcome)
    })
    .await
}

async fn in_guest(sandbox: &Sandbox, command: Command, json: bool) -> Result<ExitCode> {
    if json {
        let output = sandbox.exec(command).await?;
        say!("{:#}", report::output(&output));
        return Ok(report::status(&output.outcome));
    }
    let process = sandbox.spawn(command.stdin(Stdin::Piped)).await?;
    let outcome = streams::connect(process).await?;
    Ok(report::status(&outcome))
}

/// The command that `words` and `how` describe.
pub(crate) fn command(words: &[OsString], how: &How) -> Command {
    let mut command = Command::from_argv(words);
    if let Some(user) = &how.user {
        command = command.user(user);
    }
    if let Some(directory) = &how.workdir {
        command = command.current_dir(directory);
    }
    for (name, value) in &how.env {
        command = command.env(name, value);
    }
    command
}
