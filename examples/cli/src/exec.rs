//! `ember exec`: a command in a guest of its own.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use ember_core::{Command, Sandbox, Stdin};

use crate::arguments::{Common, Exec, How};
use crate::guest::with_guest;
use crate::report::say;
use crate::{report, streams, transfer};

pub(crate) async fn exec(options: &Exec, common: &Common) -> Result<ExitCode> {
    with_guest(common, async |sandbox: Sandbox| {
        let outcome = in_guest(&sandbox, options, common.json).await;
        (sandbox, outcome)
    })
    .await
}

async fn in_guest(sandbox: &Sandbox, options: &Exec, json: bool) -> Result<ExitCode> {
    let Exec { how, transfers, .. } = options;
    let command = match options.entry_point {
        true => {
            let words = options.words.iter();
            let command = sandbox.entry_point(words.map(|word| word.to_string_lossy()));
            with(command.context("the image names no program")?, how)
        }
        false => command(&options.words, how),
    };
    // As the command: where the image says, else in the root directory, by root.
    let config = sandbox.image_config();
    let usual = config.directory.clone().unwrap_or_else(|| "/".to_owned());
    let how = &How {
        workdir: how.workdir.clone().or_else(|| Some(usual.into())),
        user: how.user.clone().or_else(|| config.user.clone()),
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
    with(Command::from_argv(words), how)
}

/// `command` as `how` has it.
fn with(mut command: Command, how: &How) -> Command {
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
