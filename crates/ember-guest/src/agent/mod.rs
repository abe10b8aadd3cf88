//! The guest's half of the channel: the first process of every guest.
//!
//! As PID 1 it sets the guest up ([`init`]), connects to the host and serves its requests until
//! the host asks for the end; the connection may be lost and made again in between. With
//! `--serve-unix PATH` it serves the same on a UNIX socket and leaves the machine alone, which is
//! how it is tested without a VM.
//!
//! It is one thread around one epoll instance ([`server`]). Nothing in it waits for a command, a
//! reader or the host, but for the moment in which a new process is made.
//!
//! Unsafe code is in `spawn::child` (a child between clone and exec) and `sys` (system calls that
//! no crate wraps).

mod files;
mod identity;
mod init;
mod json;
mod keeper;
mod room;
mod server;
mod spawn;
mod sys;
mod tree;
mod users;

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

use crate::protocol::{FILES_PROGRAM, JSON_PROGRAM, SESSION_PROGRAM};
use identity::Identities;
use server::{Agent, End, Hooks};
use tree::Trees;

/// Takes what a client of the JSON protocol may have sent. Not part of the library's interface: a
/// fuzzer calls it.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz_json(stream: &[u8]) {
    json::fuzz(stream);
}

/// What the program was asked to do.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Be a guest's first process.
    Init,
    /// Serve on a UNIX socket.
    Serve {
        socket: PathBuf,
        /// Commands are put into cgroups below this directory.
        cgroup: Option<PathBuf>,
        /// What would change the machine's identity changes files in this directory.
        identity: Option<PathBuf>,
    },
    /// Do one thing with files: it was started by the agent itself.
    Files,
    /// Keep an interpreter, or reach one that is kept: it was started by the agent itself.
    Session,
    /// Serve the JSON protocol: it was started by the agent itself.
    Json,
    /// Say the version.
    Version,
}

const USAGE: &str = "\
ember-agent is the first process of an Ember guest and does nothing useful elsewhere.
For tests: ember-agent --serve-unix PATH [--cgroup DIRECTORY] [--identity DIRECTORY]";

fn role(
    first: bool,
    name: &OsStr,
    arguments: &mut impl Iterator<Item = OsString>,
) -> Result<Role, &'static str> {
    if !first && name.as_bytes() == FILES_PROGRAM {
        return Ok(Role::Files);
    }
    if !first && name.as_bytes() == SESSION_PROGRAM {
        return Ok(Role::Session);
    }
    if !first && name.as_bytes() == JSON_PROGRAM {
        return Ok(Role::Json);
    }
    let (mut socket, mut cgroup, mut identity) = (None, None, None);
    while let Some(argument) = arguments.next() {
        let value = match argument.to_str() {
            Some("--serve-unix") => &mut socket,
            Some("--cgroup") => &mut cgroup,
            Some("--identity") => &mut identity,
            Some("--version") => return Ok(Role::Version),
            // The kernel hands words of its command line that it does not know to PID 1.
            _ if first => continue,
            _ => return Err(USAGE),
        };
        *value = Some(PathBuf::from(arguments.next().ok_or(USAGE)?));
    }
    match socket {
        Some(socket) => Ok(Role::Serve {
            socket,
            cgroup,
            identity,
        }),
        None if first => Ok(Role::Init),
        None => Err(USAGE),
    }
}

/// The program. Returns its exit code.
pub fn main() -> i32 {
    let first = std::process::id() == 1;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    match role(first, &name, &mut arguments) {
        Ok(Role::Files) => files::main(arguments),
        Ok(Role::Session) => keeper::main(arguments),
        Ok(Role::Json) => json::main(arguments),
        Ok(Role::Init) => init::run(),
        Ok(Role::Serve {
            socket,
            cgroup,
            identity,
        }) => match serve_unix(&socket, cgroup.as_deref(), identity.as_deref()) {
            Ok(()) => 0,
            Err(error) => {
                complain(&format_args!(
                    "cannot serve on {}: {error}",
                    socket.display()
                ));
                1
            }
        },
        Ok(Role::Version) => {
            use std::io::Write;
            let line = concat!("ember-agent ", env!("CARGO_PKG_VERSION"), "\n");
            io::stdout().write_all(line.as_bytes()).map_or(1, |()| 0)
        }
        Err(usage) => {
            complain(&usage);
            2
        }
    }
}

/// One line for people, on standard error. There is nobody to tell if that fails.
fn complain(what: &dyn Display) {
    use std::io::Write;
    let _ = io::stderr().write_all(format!("ember-agent: {what}\n").as_bytes());
}

/// Serves one connection after the other, until it is told to end.
fn serve_unix(path: &Path, cgroup: Option<&Path>, identity: Option<&Path>) -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    sys::forget_parent();
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    umask(Mode::from_bits_truncate(0o022));
    let trees = match cgroup {
        Some(directory) => Trees::cgroups(directory)?,
        None => Trees::by_session(),
    };
    let (identities, hooks) = match identity {
        Some(directory) => (
            Identities::in_directory(directory)?,
            Hooks::listen(&directory.join("reseed"), &directory.join("reseed.d"))?,
        ),
        None => (Identities::nowhere(), Hooks::none()),
    };
    let mut agent = Agent::new(trees, identities, hooks)?;
    agent.watch_source(listener.as_fd())?;
    let result = agent.run(|| match listener.accept() {
        Ok((stream, _)) => Ok(Some(OwnedFd::from(stream))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    });
    agent.end_everything();
    let _ = std::fs::remove_file(path);
    result.map(|End::PowerOff| ())
}

#[cfg(test)]
mod tests;
