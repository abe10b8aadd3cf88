//! The agent's own program for the JSON protocol on vsock (`docs/protocol.md`): a thread for each
//! client, and for each client that has run something an agent of its own (`backend`), so that its
//! programs have what programs have: rooms, users and limits.

mod backend;
mod request;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, getpeername, listen,
    socket,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::sys;
use crate::protocol::{JSON_PORT, LimitHit, Limits, MAX_ARGUMENT, Outcome, Spawn};
use backend::{Backend, Done, Failed};
use request::{Incoming, Request, ack, base64, error, error_message, read_frame, write_frame};

/// The most clients at a time. Who comes later is hung up on.
const MAX_CLIENTS: usize = 16;
/// Any address of this machine (`VMADDR_CID_ANY`), and the host's (vsock(7)).
const ANY: u32 = u32::MAX;
const HOST: u32 = 2;
/// Where the kernel shows cgroups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The most that a program may write to its outputs together.
const OUTPUT: u64 = 8 << 20;
/// The most that a compiler may say.
const MESSAGES: u64 = 1 << 20;
/// How long a compiler may take, and files to be written or removed.
const COMPILE: Duration = Duration::from_secs(60);
const FILES: Duration = Duration::from_secs(30);

/// How programs are run here: the image's languages, as the host knows them.
#[derive(Debug, Deserialize)]
struct Config {
    user: String,
    home: String,
    languages: Vec<Language>,
    /// Where clients' programs have their cgroups.
    #[serde(skip)]
    cgroups: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Language {
    names: Vec<String>,
    extension: String,
    /// Of what is run: the program, or what it was compiled into.
    interpreter: Vec<String>,
    inline: Option<String>,
    compile: Option<Compiler>,
}

#[derive(Debug, Deserialize)]
struct Compiler {
    command: Vec<String>,
    output: String,
}

/// The program. Its name has been taken off its arguments.
pub(super) fn main(mut arguments: impl Iterator<Item = OsString>) -> i32 {
    let role = arguments.next().unwrap_or_default();
    let value = arguments.next().unwrap_or_default();
    let result = match role.to_str() {
        Some(backend::ROLE) => backend::main(Path::new(&value)),
        Some("serve") => serde_json::from_slice(value.as_encoded_bytes())
            .map_err(io::Error::from)
            .and_then(serve),
        _ => return 2,
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            super::complain(&format_args!("cannot serve the JSON protocol: {error}"));
            1
        }
    }
}

/// Reads and judges all that a client has sent, and answers it.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(mut stream: &[u8]) {
    let mut answers = io::sink();
    while let Ok(Incoming::Frame(frame)) = read_frame(&mut stream) {
        let answer = match Request::parse(&frame) {
            Ok(request) => {
                // What was taken is no longer than what came.
                assert!(request.code.len() + request.stdin.map_or(0, |it| it.len()) <= frame.len());
                assert!((1..=request::MAX_ID).contains(&request.id.len()));
                assert!(request.timeout <= Duration::from_millis(request::MAX_TIMEOUT));
                assert!(request::MEMORY.contains(&request.memory_limit));
                ack(&request.id)
            }
            Err(invalid) => error_message(invalid.id.as_deref(), error::INVALID, &invalid.message),
        };
        let written = write_frame(&mut answers, &answer);
        assert!(written.is_ok(), "an answer could not be written");
    }
}

/// Serves all clients. Says on standard output when it does, or that somebody does already.
fn serve(mut config: Config) -> io::Result<()> {
    let listener = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let say = |word: &str| io::stdout().write_all(word.as_bytes());
    match bind(listener.as_raw_fd(), &VsockAddr::new(ANY, JSON_PORT)) {
        Ok(()) => {}
        // In a clone of a guest where it was served.
        Err(Errno::EADDRINUSE) => return say("served\n"),
        Err(errno) => return Err(errno.into()),
    }
    listen(&listener, Backlog::new(MAX_CLIENTS as i32)?)?;
    config.cgroups = make_way()?;
    say("ready\n")?;
    let config = Arc::new(config);
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(stream) => sys::received(stream),
            // Also what clients do to connections that wait (accept(2)).
            Err(_) => {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        let peer = getpeername::<VsockAddr>(stream.as_raw_fd());
        let is_host = peer.is_ok_and(|peer| peer.cid() == HOST);
        if !is_host || clients.load(Ordering::Acquire) >= MAX_CLIENTS {
            continue;
        }
        clients.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&clients));
        let config = Arc::clone(&config);
        // Without a thread the closure is dropped, and the client is hung up on.
        let _ = std::thread::Builder::new().spawn(move || {
            let _place = place;
            // The client has gone: there is nobody to tell.
            let _ = serve_client(stream, &config);
        });
    }
}

/// This program's own cgroup, with no process in it: its programs' are made in there, so that whoever
/// ends this one, in whatever way, ends those, and removes them. A cgroup that has processes itself
/// hands no controllers on (`Documentation/admin-guide/cgroup-v2.rst`, "No Internal Process
/// Constraint"), so that this program has one below it as well.
fn make_way() -> io::Result<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or_else(|| io::Error::other("there is no cgroup2"))?;
    let own = Path::new(CGROUPS).join(own);
    let leaf = own.join("server");
    std::fs::create_dir(&leaf)?;
    std::fs::write(leaf.join("cgroup.procs"), "0")?;
    Ok(own)
}

/// A client's place among those that there may be.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers a client's requests, one after the other, until it goes or has sent what cannot be
/// followed by anything.
fn serve_client(stream: OwnedFd, config: &Config) -> io::Result<()> {
    let mut stream = File::from(stream);
    let mut executor = Executor {
        config,
        backend: None,
    };
    loop {
        let frame = match read_frame(&mut stream)? {
            Incoming::Frame(frame) => frame,
            Incoming::Length(length) => {
                let message = format!(
                    "a frame has 1 to {} bytes, not {length}; the connection is closed",
                    request::MAX_FRAME
                );
                return write_frame(&mut stream, &error_message(None, error::INVALID, &message));
            }
            Incoming::End => return Ok(()),
        };
        let request = match Request::parse(&frame) {
            Ok(request) => request,
            Err(invalid) => {
                let id = invalid.id.as_deref();
                let answer = error_message(id, error::INVALID, &invalid.message);
                write_frame(&mut stream, &answer)?;
                continue;
            }
        };
        drop(frame);
        let Some(language) = config.find(&request.language) else {
            let known = config.languages.iter().filter_map(|it| it.names.first());
            let known: Vec<&str> = known.map(String::as_str).collect();
            let message = format!(
                "there is no language {:?} in this image; there are {}",
                request.language,
                known.join(", ")
            );
            let answer = error_message(Some(&request.id), error::LANGUAGE, &message);
            write_frame(&mut stream, &answer)?;
            continue;
        };
        write_frame(&mut stream, &ack(&request.id))?;
        let answer = match executor.execute(&request, language, &stream) {
            Ok(result) => result,
            Err(Failed::Gone) => return Ok(()),
            Err(Failed::Because(message)) => {
                // The next execution gets another.
                executor.backend = None;
                error_message(Some(&request.id), error::INTERNAL, &message)
            }
        };
        write_frame(&mut stream, &answer)?;
    }
}

impl Config {
    fn find(&self, name: &str) -> Option<&Language> {
        let mut languages = self.languages.iter();
        languages.find(|it| it.names.iter().any(|known| known == name))
    }
}

/// Runs one client's programs.
struct Executor<'a> {
    config: &'a Config,
    backend: Option<Backend>,
}

/// Puts a program's file where it is compiled or run, and goes on as the command behind that.
const STORE: &str = "rm -rf \"$0\" && mkdir -p \"$0/src\" && cat > \"$0/src/$1\" && \
                     cd \"$0/src\" && shift && exec \"$@\"";

impl Executor<'_> {
    fn execute(
        &mut self,
        request: &Request,
        language: &Language,
        client: &File,
    ) -> Result<Value, Failed> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let unique = LAST.fetch_add(1, Ordering::Relaxed);
        let scratch = format!("{}/.ember/json-{unique}", self.config.home);
        let is_inline = request.code.len() <= MAX_ARGUMENT && !request.code.contains(&0);
        if language.compile.is_none()
            && let Some(option) = &language.inline
            && is_inline
        {
            let mut argv = words(&language.interpreter);
            argv.extend([option.clone().into_bytes(), request.code.clone()]);
            let done = self.run_program(argv, request, client)?;
            return Ok(result(request, &done, None));
        }
        let result = self.execute_file(request, language, &scratch, client);
        if matches!(result, Err(Failed::Gone)) {
            // It still runs what nobody waits for.
            self.backend = None;
        }
        let remove = ["rm", "-rf", &scratch].map(|word| word.as_bytes().to_vec());
        let remove = self.command(remove.to_vec(), FILES, Limits::default());
        if self.run(&remove, &[], None).is_err() {
            // It has ended. What cannot be removed is in the way of nobody: whose turn it is to have
            // that name removes it first.
            self.backend = None;
            let _ = self.run(&remove, &[], None);
        }
        result
    }

    fn execute_file(
        &mut self,
        request: &Request,
        language: &Language,
        scratch: &str,
        client: &File,
    ) -> Result<Value, Failed> {
        let file = format!("main.{}", language.extension);
        let mut argv = words(&["/bin/sh", "-c", STORE, scratch, &file]);
        let (path, timeout) = match &language.compile {
            None => {
                argv.push(b"true".to_vec());
                (format!("{scratch}/src/{file}"), FILES)
            }
            Some(compiler) => {
                let output = format!("{scratch}/{}", compiler.output);
                argv.extend(compiler.command.iter().map(|word| {
                    let word = word.replace("{sources}", &file).replace("{source}", &file);
                    word.replace("{output}", &output).into_bytes()
                }));
                (output, COMPILE)
            }
        };
        let limits = Limits {
            output: Some(MESSAGES),
            ..Limits::default()
        };
        let mut store = self.command(argv, timeout, limits);
        store.stdin = true;
        let stored = self.run(&store, &request.code, Some(client))?;
        let compiled = language.compile.is_some().then_some(stored.outcome.wall);
        if !stored.outcome.success() {
            if compiled.is_none() {
                let said = String::from_utf8_lossy(&stored.stderr).into_owned();
                return Err(Failed::Because(format!("cannot store the program: {said}")));
            }
            return Ok(result(request, &stored, Some(&Compile::Failed)));
        }
        let mut argv = words(&language.interpreter);
        argv.push(path.into_bytes());
        let done = self.run_program(argv, request, client)?;
        Ok(result(request, &done, compiled.map(Compile::Took).as_ref()))
    }

    /// A command in the programs' account.
    fn command(&self, argv: Vec<Vec<u8>>, timeout: Duration, limits: Limits) -> Spawn {
        Spawn {
            argv,
            cwd: self.config.home.clone().into_bytes(),
            user: self.config.user.clone().into_bytes(),
            timeout: Some(timeout),
            limits,
            ..Spawn::default()
        }
    }

    fn run_program(
        &mut self,
        argv: Vec<Vec<u8>>,
        request: &Request,
        client: &File,
    ) -> Result<Done, Failed> {
        let limits = Limits {
            memory: Some(request.memory_limit),
            output: Some(OUTPUT),
            ..Limits::default()
        };
        let mut command = self.command(argv, request.timeout, limits);
        command.confined = true;
        command.stdin = request.stdin.is_some();
        let input = request.stdin.as_deref().unwrap_or_default();
        self.run(&command, input, Some(client))
    }

    /// Runs a command to its end, unless `client` goes before.
    fn run(
        &mut self,
        command: &Spawn,
        input: &[u8],
        client: Option<&File>,
    ) -> Result<Done, Failed> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let backend = match &mut self.backend {
            Some(backend) => backend,
            none => {
                let unique = LAST.fetch_add(1, Ordering::Relaxed);
                none.insert(Backend::start(
                    &self.config.cgroups.join(unique.to_string()),
                )?)
            }
        };
        backend.run(command, input, client.map(File::as_fd))
    }
}

fn words(words: &[impl AsRef<str>]) -> Vec<Vec<u8>> {
    let words = words.iter().map(|word| word.as_ref().as_bytes().to_vec());
    words.collect()
}

/// How the compiling of a program went.
enum Compile {
    Took(Duration),
    Failed,
}

fn result(request: &Request, done: &Done, compile: Option<&Compile>) -> Value {
    let outcome = &done.outcome;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut result = json!({
        "id": request.id,
        "type": "result",
        "status": status(outcome),
        "stdout": base64(&done.stdout),
        "stderr": base64(&done.stderr),
        "exit_code": outcome.status.shell_code(),
        "execution_time": millis(outcome.wall),
        "memory_used": outcome.peak_memory,
    });
    match compile {
        None => {}
        Some(Compile::Took(time)) => result["compilation_time"] = millis(*time).into(),
        Some(Compile::Failed) => {
            result["status"] = "compilation_error".into();
            result["execution_time"] = 0.into();
            result["compilation_time"] = millis(outcome.wall).into();
        }
    }
    result
}

fn status(outcome: &Outcome) -> &'static str {
    match outcome.limit {
        Some(LimitHit::WallTime | LimitHit::CpuTime) => "timeout",
        Some(LimitHit::Memory) => "memory_exceeded",
        None if outcome.success() => "success",
        _ => "runtime_error",
    }
}
