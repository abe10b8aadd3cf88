//! `ember session`: a live interpreter in a guest, a cell at a time.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use ember_core::{
    CellEnd, CellEvent, CellOutput, CellVerdict, Code, Data, RunningCell, Sandbox, SessionEnd,
    SessionOptions,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::{Common, Session};
use crate::guest::{for_code, guest, template};
use crate::report::say;

/// A cell raised something.
const RAISED: u8 = 1;
/// A cell's time was up, as `timeout` reports it.
const TIMED_OUT: u8 = 124;

pub(crate) async fn session(options: &Session, common: &Common) -> Result<ExitCode> {
    let failed = "cannot listen for signals";
    let mut interrupts = signal(SignalKind::interrupt()).context(failed)?;
    let mut terminate = signal(SignalKind::terminate()).context(failed)?;
    let mut hang_up = signal(SignalKind::hangup()).context(failed)?;
    let work = async {
        let opening = open(options, common);
        let (sandbox, session) = tokio::select! {
            opened = opening => opened?,
            _ = interrupts.recv() => return Ok(ExitCode::from(128 + 2)),
        };
        let is_shell = ["bash", "sh"].iter().any(|it| options.lang.starts_with(it));
        let outcome = Repl::new(session, common.json, is_shell)
            .read_and_run(&mut interrupts)
            .await;
        sandbox.close().await;
        outcome
    };
    // Dropping the work ends the guest.
    tokio::select! {
        outcome = work => outcome,
        _ = terminate.recv() => Ok(ExitCode::from(128 + 15)),
        _ = hang_up.recv() => Ok(ExitCode::from(128 + 1)),
    }
}

async fn open(options: &Session, common: &Common) -> Result<(Sandbox, ember_core::Session)> {
    let common = for_code(common, &Code::new(&options.lang, "")).await?;
    let sandbox = if common.boot || common.console {
        guest(&common)?.boot().await?
    } else {
        template(&common)?.build().await?.fork().await?
    };
    let session = sandbox.session(SessionOptions::new(&options.lang)).await?;
    Ok((sandbox, session))
}

struct Repl {
    session: ember_core::Session,
    lines: Lines<BufReader<Stdin>>,
    /// A person types.
    is_terminal: bool,
    json: bool,
    /// Its cells are a shell's.
    is_shell: bool,
    status: u8,
}

/// What came of asking for the next cell.
enum Input {
    Cell(String),
    End,
    Interrupted,
}

impl Repl {
    fn new(session: ember_core::Session, json: bool, is_shell: bool) -> Self {
        Self {
            session,
            lines: BufReader::new(tokio::io::stdin()).lines(),
            is_terminal: io::stdin().is_terminal(),
            json,
            is_shell,
            status: 0,
        }
    }

    async fn read_and_run(mut self, interrupts: &mut Signal) -> Result<ExitCode> {
        loop {
            let code = match self.read(interrupts).await? {
                Input::Cell(code) => code,
                Input::End => {
                    if self.is_terminal {
                        self.prompt("\n");
                    }
                    return Ok(ExitCode::from(self.status));
                }
                Input::Interrupted if self.is_terminal => {
                    self.prompt("\n");
                    continue;
                }
                Input::Interrupted => return Ok(ExitCode::from(128 + 2)),
            };
            let verdict = self.run(code, interrupts).await?;
            let status = match verdict {
                CellVerdict::Success => continue,
                CellVerdict::Timeout => TIMED_OUT,
                CellVerdict::Ended(end) => {
                    if !self.json && end != SessionEnd::Exited(0) {
                        eprintln!("ember: the session has ended: {end}");
                    }
                    return Ok(ExitCode::from(match end {
                        SessionEnd::Exited(code) => code,
                        SessionEnd::Signaled(signal) => 128_u8.saturating_add(signal),
                        SessionEnd::Deaf => TIMED_OUT,
                        _ => 128 + 9,
                    }));
                }
                _ => RAISED,
            };
            // A person has seen it.
            if !self.is_terminal {
                self.status = status;
            }
        }
    }

    fn prompt(&self, text: &str) {
        if self.is_terminal {
            let mut stderr = io::stderr();
            let _ = stderr.write_all(text.as_bytes());
            let _ = stderr.flush();
        }
    }

    /// The next cell: a line, or more where a line asks for more.
    async fn read(&mut self, interrupts: &mut Signal) -> Result<Input> {
        let mut cell = String::new();
        loop {
            self.prompt(if cell.is_empty() { ">>> " } else { "... " });
            let line = tokio::select! {
                line = self.lines.next_line() => line.context("cannot read standard input")?,
                _ = interrupts.recv() => return Ok(Input::Interrupted),
            };
            let Some(line) = line else {
                return Ok(match cell.is_empty() {
                    true => Input::End,
                    false => Input::Cell(cell),
                });
            };
            if cell.is_empty() && line.trim().is_empty() {
                continue;
            }
            cell.push_str(&line);
            cell.push('\n');
            if !is_open(&cell, self.is_shell) {
                return Ok(Input::Cell(cell));
            }
        }
    }

    /// Runs a cell and shows what comes of it. Ctrl-C interrupts it.
    async fn run(&self, code: String, interrupts: &mut Signal) -> Result<CellVerdict> {
        let running = self.session.begin(code)?;
        let shown = async {
            if self.json {
                let output = running.collect().await?;
                say!("{}", object(&output));
                Ok(output.verdict)
            } else {
                show(running).await
            }
        };
        tokio::pin!(shown);
        loop {
            tokio::select! {
                verdict = &mut shown => return verdict,
                _ = interrupts.recv() => self.session.interrupt(),
            }
        }
    }
}

/// Whether there is more of this cell to come: what Python's own prompt asks for more after, and what
/// other languages write in the same way. A block ends with an empty line.
fn is_open(cell: &str, is_shell: bool) -> bool {
    let mut lines = cell.lines().map(str::trim_end);
    let last = lines.clone().next_back().unwrap_or_default();
    if is_shell {
        // A word that opens a block, wherever it stands: `for` and `if` are said in one line, too.
        let opens = |line: &str| {
            let word = line.rsplit([' ', '\t', ';']).next().unwrap_or_default();
            matches!(word, "do" | "then" | "else" | "in" | "{" | "(") || line.contains("<<")
        };
        let goes_on = ["\\", "&&", "||", "|"].iter().any(|it| last.ends_with(it));
        return !last.is_empty() && (goes_on || lines.any(opens));
    }
    let quotes = |mark| cell.matches(mark).count() % 2 == 1;
    if quotes("\"\"\"") || quotes("'''") {
        return true;
    }
    if last.is_empty() {
        return false;
    }
    let opens = |line: &str| line.ends_with([':', '{', '(', '[']) || line.starts_with('@');
    last.ends_with(['\\', ',']) || lines.any(opens)
}

async fn show(mut running: RunningCell) -> Result<CellVerdict> {
    while let Some(event) = running.next().await? {
        // Nobody has to read it.
        let _ = match event {
            CellEvent::Stdout(bytes) => write(&mut io::stdout(), &bytes),
            CellEvent::Stderr(bytes) => write(&mut io::stderr(), &bytes),
            CellEvent::Display(data) | CellEvent::Value(data) => {
                write(&mut io::stdout(), format!("{}\n", text(&data)).as_bytes())
            }
            CellEvent::Error(error) => write(&mut io::stderr(), format!("{error}\n").as_bytes()),
            _ => Ok(()),
        };
    }
    let end = running.end().map(|end: &CellEnd| end.verdict.clone());
    end.context("the cell has no end")
}

fn write(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// What a terminal can show of it.
fn text(data: &Data) -> String {
    let kinds = || data.iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    match data.text() {
        Some(text) => text.to_owned(),
        None => format!("<{}>", kinds().join(", ")),
    }
}

fn object(output: &CellOutput) -> Value {
    let end = match &output.verdict {
        CellVerdict::Ended(end) => Some(end.to_string()),
        _ => None,
    };
    json!({
        "verdict": output.verdict.name(),
        "ended": end,
        "value": output.value,
        "displays": output.displays,
        "stdout": output.stdout.to_string_lossy(),
        "stderr": output.stderr.to_string_lossy(),
        "error": output.error,
        "wall_seconds": output.wall.as_secs_f64(),
        "truncated": output.truncated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_a_line_or_a_block() {
        for whole in [
            "x = 1\n",
            "f(1, 2)\n",
            "def f():\n    return 1\n\n",
            "x = (1,\n  2)\n\n",
            "x = '''\n a\n'''\n",
            "x = 1 + \\\n  2\n",
        ] {
            assert!(!is_open(whole, false), "{whole:?}");
        }
        for open in [
            "def f():\n",
            "def f():\n    return 1\n",
            "x = (\n",
            "x = 1 + \\\n",
            "x = '''\n\n",
            "@cached\n",
        ] {
            assert!(is_open(open, false), "{open:?}");
        }
    }
    #[test]
    fn a_cell_of_a_shell_is_a_line_or_a_block() {
        for whole in [
            "x=1\n",
            "for i in 1 2; do echo $i; done\n",
            "f() {\n echo\n}\n\n",
            "a[1]=:\n",
        ] {
            assert!(!is_open(whole, true), "{whole:?}");
        }
        for open in [
            "f() {\n",
            "for i in 1 2; do\n  echo\n",
            "echo \\\n",
            "ls |\n",
            "cat <<E\nx\n",
        ] {
            assert!(is_open(open, true), "{open:?}");
        }
    }
}
