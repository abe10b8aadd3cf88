//! `ember shell`: this terminal, connected with one in a guest.

use std::io::{IsTerminal, stdin};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use ember_core::{Command, Process, PtySize, Sandbox};
use rustix::termios::{self, OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Common, Shell};
use crate::exec::command;
use crate::guest::with_guest;
use crate::{report, streams};

pub(crate) async fn shell(options: &Shell, common: &Common) -> Result<ExitCode> {
    if common.json {
        bail!("a shell is for people: --json has no meaning for it; use `ember exec`");
    }
    // Without a terminal here, the guest still has one, of the usual size: a script can talk to it.
    let size = size().unwrap_or(PtySize {
        rows: 24,
        columns: 80,
    });
    let terminal = std::env::var_os("TERM").unwrap_or_else(|| "dumb".into());
    let directory = options.how.workdir.clone();
    let command = command(&options.words, &options.how)
        .current_dir(directory.unwrap_or_else(|| "/root".into()))
        .env("TERM", terminal)
        .pty(size);
    with_guest(common, async |sandbox: Sandbox| {
        let outcome = in_guest(&sandbox, command).await;
        (sandbox, outcome)
    })
    .await
}

async fn in_guest(sandbox: &Sandbox, command: Command) -> Result<ExitCode> {
    let process = sandbox.spawn(command).await?;
    // From here on, every key is the guest's, Ctrl-C too.
    let _raw = Raw::enter().context("cannot switch the terminal to raw mode")?;
    let resizing = follow_size(&process)?;
    let outcome = streams::connect(process).await;
    resizing.abort();
    Ok(report::status(&outcome?))
}

/// Tells the guest whenever this terminal changes its size.
fn follow_size(process: &Process) -> Result<tokio::task::JoinHandle<()>> {
    let mut changes = signal(SignalKind::window_change()).context("cannot listen for signals")?;
    let control = process.control();
    Ok(tokio::spawn(async move {
        while changes.recv().await.is_some() {
            if let Some(size) = size() {
                control.resize(size);
            }
        }
    }))
}

fn size() -> Option<PtySize> {
    let size = termios::tcgetwinsize(stdin()).ok()?;
    // A terminal that does not know its size says zero.
    (size.ws_row > 0 && size.ws_col > 0).then_some(PtySize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The terminal in raw mode; dropping it restores what was before.
struct Raw(Option<Termios>);

impl Raw {
    /// Does nothing where standard input is no terminal.
    fn enter() -> rustix::io::Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self(None));
        }
        let before = termios::tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // There is no one to tell, and nothing else to try.
            let _ = termios::tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}
