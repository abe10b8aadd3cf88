//! `ember exec`: a command in a guest of its own.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use ember_core::{Command, Sandbox, Stdin};

use crate::arguments::{Common, Exec, How};
use crate::guest::with_guest;
use crate::report::say;
use crate::{report, streams, transfer};

pub(crate) async fn exec(options: &Exec, common: &Common) -> Result<ExitCode> {
    let command = command(&options.words, &options.how);
    with_guest(common, async |sandbox: Sandbox| {
        let outcome = in_guest(&sandbox, command, options, common.json).await;
        (sandbox, outcome)
    })
    .await
}

async fn in_guest(
    sandbox: &Sandbox,
    command: Command,
    options: &Exec,
    json: bool,
) -> Result<ExitCode> {
    let Exec { how, transfers, .. } = options;
    // As the command: in the root directory, by root.
    let how = &How {
        workdir: how.workdir.clone().or_else(|| Some("/".into())),
        user: how.user.clone(),
        env: Vec::new(),
    };
    let files = match &how.user {
        Some(user) => sandbox.files().as_user(user),
        None => sandbox.files().as_root(),
    };
    transfer::put(&files, transfers, how).await?;
    if json {
        let output = sandbox.exec(command).await?;
        transfer::get(&files, transfers, how, output.success()).await?;
        say!("{:#}", report::output(&output));
        return Ok(report::status(&output.outcome));
    }
    let process = sandbox.spawn(command.stdin(Stdin::Piped)).await?;
    let outcome = streams::connect(process).await?;
    transfer::get(&files, transfers, how, outcome.success()).await?;
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
