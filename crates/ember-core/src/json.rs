//! The JSON protocol of a guest's agent, and streams to ports in a guest.

use std::time::Duration;

use ember_guest::host::Command;
use ember_guest::protocol::JSON_PORT;
use serde::Serialize;
use tokio::io::AsyncReadExt;

use crate::error::{Error, ErrorKind};
use crate::language::Language;
use crate::sandbox::vm::GuestVm;
use crate::sandbox::{Process, Sandbox};

/// How long the guest may take to serve the protocol.
const START: Duration = Duration::from_secs(10);
/// What the agent's program says when it serves, or another does already.
const WORDS: [&[u8]; 2] = [b"ready\n", b"served\n"];

/// How the guest's program runs programs: `agent::json::Config` there.
#[derive(Serialize)]
struct Config<'a> {
    user: &'a str,
    home: &'a str,
    languages: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    names: Vec<String>,
    extension: &'a str,
    interpreter: &'a [String],
    inline: Option<&'a str>,
    compile: Option<Compiler<'a>>,
}

#[derive(Serialize)]
struct Compiler<'a> {
    command: &'a [String],
    output: &'a str,
}

/// The JSON protocol as a guest serves it, on [`PORT`](Self::PORT) (`docs/protocol.md`). Dropped, it is
/// served no more, and what ran for its clients is ended.
#[derive(Debug)]
pub struct JsonProtocol {
    _server: Process,
}

impl JsonProtocol {
    /// The guest's vsock port.
    pub const PORT: u32 = JSON_PORT;
}

impl Sandbox {
    /// Has the guest's agent serve the JSON protocol, for as long as the result is there: clients
    /// [connect](Self::connect) to [`JsonProtocol::PORT`]. A guest does not serve it unasked, and a
    /// clone of one that does goes on with it until it is closed: what this gives for it only says so.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] if the guest cannot, with what it says; [`ErrorKind::GuestDied`].
    pub async fn json_protocol(&self) -> Result<JsonProtocol, Error> {
        let image = &self.fixture().image;
        let config = Config {
            user: &image.account.user,
            home: &image.account.home,
            languages: entries(&image.languages),
        };
        let config = serde_json::to_string(&config).map_err(|error| {
            let message = "cannot say how programs are run";
            Error::because(ErrorKind::Internal, message, error)
        })?;
        let mut server = self.spawn_unlimited(Command::json(&config)).await?;
        let failed = |why: &str| {
            let message = format!("the guest cannot serve the JSON protocol: {why}");
            Error::new(ErrorKind::Internal, message)
        };
        let Some(mut stdout) = server.take_stdout() else {
            return Err(failed("its program has no output"));
        };
        let mut said = Vec::new();
        let word = async {
            while !said.ends_with(b"\n") && said.len() < 64 {
                if stdout.read_buf(&mut said).await.unwrap_or_default() == 0 {
                    break;
                }
            }
        };
        if tokio::time::timeout(START, word).await.is_err() {
            return Err(failed("it does not answer"));
        }
        if WORDS.contains(&said.as_slice()) {
            return Ok(JsonProtocol { _server: server });
        }
        let output = server.output(4096).await?;
        Err(failed(output.stderr.to_string_lossy().trim_end()))
    }

    /// A stream to a vsock port of the guest that something there listens on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if nothing listens there, [`ErrorKind::Exhausted`] if too many streams
    /// are open, [`ErrorKind::Closed`] and [`ErrorKind::GuestDied`] if there is no guest any more, or
    /// none that answers.
    pub async fn connect(&self, port: u32) -> Result<tokio::net::UnixStream, Error> {
        let vm = self.parts()?.vm;
        let stream = GuestVm::connect(vm, port).await;
        let stream = stream.map_err(|error| self.guest().judge(error))?;
        stream
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(stream))
            .map_err(Error::of_host("cannot use a stream to the guest"))
    }
}

fn entries<'a>(languages: &'a [Language]) -> Vec<Entry<'a>> {
    let entry = |language: &'a Language| -> Entry<'a> {
        let Language {
            extensions,
            inline,
            compile,
            ..
        } = language;
        let into = compile.as_ref().and_then(|it| it.into.as_ref());
        let into = into.and_then(|into| languages.iter().find(|it| it.name == *into));
        Entry {
            names: names(language),
            extension: extensions.first().map_or("txt", String::as_str),
            interpreter: &into.unwrap_or(language).interpreter,
            inline: inline.as_deref(),
            compile: compile.as_ref().map(|compiler| Compiler {
                command: &compiler.command,
                output: &compiler.output,
            }),
        }
    };
    languages.iter().map(entry).collect()
}

/// All that a language answers to: its names, alone and with as much of its version as may follow.
fn names(language: &Language) -> Vec<String> {
    let mut names = Vec::new();
    for name in std::iter::once(&language.name).chain(&language.aliases) {
        names.push(name.clone());
        let mut version = String::new();
        for part in language.version.iter().flat_map(|it| it.split('.')) {
            if !version.is_empty() {
                version.push('.');
            }
            version.push_str(part);
            names.extend(["", "-", "@"].map(|between| format!("{name}{between}{version}")));
        }
    }
    names.retain(|name| language.answers_to(name));
    names
}
