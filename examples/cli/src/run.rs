//! `ember run`: a program in a guest of its own.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ember_core::{Code, Sandbox};
use tokio::io::AsyncReadExt;

use crate::arguments::{Common, Run};
use crate::guest::{for_code, with_guest};
use crate::report::say;
use crate::{report, streams, transfer};

pub(crate) async fn run(options: &Run, common: &Common) -> Result<ExitCode> {
    let code = code(options).await?;
    let common = for_code(common, &code).await?;
    with_guest(&common, async |sandbox: Sandbox| {
        let outcome = in_guest(&sandbox, code, options, common.json).await;
        (sandbox, outcome)
    })
    .await
}

async fn in_guest(sandbox: &Sandbox, code: Code, options: &Run, json: bool) -> Result<ExitCode> {
    let Run { how, transfers, .. } = options;
    let files = match &how.user {
        Some(user) => sandbox.files().as_user(user),
        None => sandbox.files(),
    };
    transfer::put(&files, transfers, how).await?;
    if json {
        let output = sandbox.run(code).await?;
        transfer::get(&files, transfers, how, output.success()).await?;
        say!("{:#}", report::output(&output));
        return Ok(report::status_of(&output));
    }
    if let Some(compilation) = sandbox.compile(code.clone()).await? {
        // Warnings as well; nobody has to read them.
        let _ = io::stderr().write_all(&compilation.messages);
        if !compilation.success() {
            return Ok(report::not_compiled());
        }
    }
    let process = sandbox.start(code).await?;
    let outcome = streams::connect(process).await?;
    transfer::get(&files, transfers, how, outcome.success()).await?;
    Ok(report::status(&outcome))
}

/// The program that was asked for.
async fn code(options: &Run) -> Result<Code> {
    let mut words = options.words.iter();
    let mut from_stdin = false;
    let mut code = if let Some(text) = &options.code {
        // With `-c`, a language is required.
        Code::new(options.lang.clone().unwrap_or_default(), text)
    } else {
        let file = words.next().context("name the program's file")?;
        from_stdin = file == "-";
        if from_stdin {
            let Some(language) = &options.lang else {
                bail!("a program from standard input needs its language: --lang");
            };
            let mut text = String::new();
            tokio::io::stdin()
                .read_to_string(&mut text)
                .await
                .context("cannot read the program from standard input")?;
            Code::new(language, text)
        } else {
            let code = Code::file(file);
            match &options.lang {
                Some(language) => code.language(language),
                None => code,
            }
        }
    };
    code = code.args(words);
    if !from_stdin {
        code = code.piped_stdin();
    }
    let how = &options.how;
    if let Some(user) = &how.user {
        code = code.user(user);
    }
    if let Some(directory) = &how.workdir {
        code = code.current_dir(directory);
    }
    for (name, value) in &how.env {
        code = code.env(name, value);
    }
    Ok(code)
}
