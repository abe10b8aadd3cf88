//! From a request to a running process.
//!
//! Everything that needs memory or files is done before the new process exists (`Plan`), so that
//! what runs in it (`child`) is a handful of system calls.

mod arch;
mod child;
pub(crate) mod environment;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::Resource;
use nix::unistd::{Gid, Uid, dup, fchown, pipe2};

use super::identity::Environment;
use super::room::{Inside, filter};
use super::sys;
use super::tree::Tree;
use super::users::User;
use crate::protocol::{ErrorCode, Failure, PtySize, Spawn};

use child::{Credentials, Plan, Rights, Stack, Step};

/// The agent's ends of a command's streams. All are non-blocking.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    /// None on a terminal, whose output is all stdout.
    pub(crate) stderr: Option<OwnedFd>,
}

/// The command's ends.
#[derive(Debug)]
pub(crate) struct Ends {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

/// Starts commands. One for the whole agent: it holds what is used for each.
#[derive(Debug)]
pub(crate) struct Spawner {
    null: OwnedFd,
    stack: Stack,
    /// The agent's own PID namespace.
    namespace: OwnedFd,
    filter: Vec<libc::sock_filter>,
    /// The agent's own program, wherever it is by now.
    own: OwnedFd,
}

/// Why a process is made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose<'a> {
    /// To run a command.
    Command,
    /// To be a runner, and to have this as descriptor 3.
    Runner(BorrowedFd<'a>),
}

impl Spawner {
    pub(crate) fn new() -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        Ok(Self {
            null: null.into(),
            stack: Stack::new(),
            namespace: File::open("/proc/self/ns/pid")?.into(),
            filter: filter::program(),
            own: File::options()
                .read(true)
                .custom_flags(libc::O_PATH)
                .open("/proc/self/exe")?
                .into(),
        })
    }

    /// What system calls confined programs cannot make, for a runner that confines them.
    pub(crate) fn filter(&self) -> Vec<u8> {
        filter::bytes(&self.filter)
    }

    /// The streams of a program whose process is there, and its ends of them as it needs them.
    pub(crate) fn streams(&self, request: &Spawn, user: &User) -> Result<(Streams, Ends), Failure> {
        match request.pty {
            Some(size) => terminal(size, Some(user)),
            None => pipes(request.stdin),
        }
        .map_err(|errno| failed("make its streams", errno))
    }

    /// The descriptors that become a program's 0, 1 and 2.
    pub(crate) fn numbers(&self, ends: &Ends) -> [RawFd; 3] {
        let null = self.null.as_fd();
        [
            ends.stdin.as_ref().map_or(null, AsFd::as_fd).as_raw_fd(),
            ends.stdout.as_raw_fd(),
            ends.stderr.as_ref().unwrap_or(&ends.stdout).as_raw_fd(),
        ]
    }

    /// Starts a command in a session of its own, within `tree`.
    pub(crate) fn spawn(
        &mut self,
        request: &Spawn,
        tree: &mut Tree,
        given: &Environment,
        purpose: Purpose<'_>,
    ) -> Result<(i32, Streams), Failure> {
        request.validate()?;
        let user = user(request)?;
        let (streams, ends) = match request.pty {
            Some(size) => terminal(size, user.as_ref()),
            None => pipes(request.stdin),
        }
        .map_err(|errno| failed("make its streams", errno))?;

        let known = user.clone().unwrap_or_else(me);
        let environment = environment::build(request, &known, given.iter());
        let cwd = if request.cwd.is_empty() {
            b"/"
        } else {
            &request.cwd[..]
        };
        let candidates = environment::candidates(&request.argv[0], &environment);
        let mut plan = Plan::new(
            strings(candidates)?,
            strings(request.argv.iter().cloned())?,
            strings(environment)?,
            string(cwd.to_vec())?,
            self.numbers(&ends),
            request.pty.is_some(),
            user.as_ref().map(|user| Credentials {
                uid: user.uid,
                gid: user.gid,
                groups: user.groups.clone(),
            }),
            rlimits(request),
        );
        if request.builtin {
            plan.execute_file(self.own.as_raw_fd());
        }
        let mut room = None;
        match purpose {
            Purpose::Runner(fd) => {
                plan.inherit(fd.as_raw_fd());
                if request.confined {
                    plan.allow(Rights::Runners);
                }
            }
            Purpose::Command => room = tree.room().filter(|_| request.confined),
        }
        let inside = match room {
            None => None,
            Some(room) => {
                plan.allow(Rights::Confined {
                    namespaces: room.inner().map(|fd| fd.as_raw_fd()),
                    filter: self.filter.clone(),
                });
                let inside = Inside::of(room, &self.namespace).map_err(|error| {
                    let message = format!("cannot make a process in a room: {error}");
                    Failure::new(ErrorCode::Internal, message)
                })?;
                Some(inside)
            }
        };
        let started = self.stack.start(&plan, tree.cgroup());
        drop(inside);
        let pid = started.map_err(|(step, errno)| describe(request, &known, step, errno))?;
        tree.started(pid);
        Ok((pid, streams))
    }
}

/// Who the request asks for; none if it is the agent's own user.
pub(crate) fn user(request: &Spawn) -> Result<Option<User>, Failure> {
    if request.user.is_empty() {
        return Ok(None);
    }
    User::look_up(&request.user).map(Some)
}

/// The agent's own user: root, but for tests.
pub(crate) fn me() -> User {
    match Uid::effective() {
        uid if uid.is_root() => User::root(),
        uid => User::look_up(uid.to_string().as_bytes()).unwrap_or_else(|_| User::root()),
    }
}

fn string(bytes: Vec<u8>) -> Result<CString, Failure> {
    // `Spawn::validate` has refused zero bytes with a better message.
    CString::new(bytes).map_err(|error| Failure::new(ErrorCode::InvalidRequest, error.to_string()))
}

fn strings(all: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<CString>, Failure> {
    all.into_iter().map(string).collect()
}

fn pipes(stdin: bool) -> Result<(Streams, Ends), Errno> {
    let stdin = match stdin {
        true => Some(pipe2(OFlag::O_CLOEXEC)?),
        false => None,
    };
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let (error_read, error_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (stdin_read, stdin_write) = stdin.unzip();
    for fd in [Some(&read), Some(&error_read), stdin_write.as_ref()]
        .into_iter()
        .flatten()
    {
        // Only this end: the command's is for programs that expect to wait.
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let streams = Streams {
        stdin: stdin_write,
        stdout: read,
        stderr: Some(error_read),
    };
    Ok((
        streams,
        Ends {
            stdin: stdin_read,
            stdout: write,
            stderr: Some(error_write),
        },
    ))
}

/// A terminal and the command's end of it, which belongs to the command's user.
fn terminal(size: PtySize, user: Option<&User>) -> Result<(Streams, Ends), Errno> {
    let pty = nix::pty::openpty(&sys::window_size(size), None)?;
    for fd in [&pty.master, &pty.slave] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    fcntl(
        &pty.master,
        FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
    )?;
    if let Some(user) = user {
        // The group stays the one that devpts gives: that of `mesg` and `write`.
        match fchown(&pty.slave, Some(Uid::from_raw(user.uid)), None::<Gid>) {
            // An agent that is not root will be told by setresuid(2), with a better message.
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    let input = dup(&pty.master)?;
    fcntl(&input, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let streams = Streams {
        stdin: Some(input),
        stdout: pty.master,
        stderr: None,
    };
    let again = dup(&pty.slave)?;
    fcntl(&again, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok((
        streams,
        Ends {
            stdin: Some(again),
            stdout: pty.slave,
            stderr: None,
        },
    ))
}

pub(crate) fn rlimits(request: &Spawn) -> Vec<(Resource, u64)> {
    let limits = request.all_limits();
    [
        (Resource::RLIMIT_AS, limits.address_space),
        (Resource::RLIMIT_NPROC, limits.user_processes),
        (Resource::RLIMIT_NOFILE, limits.open_files),
        (Resource::RLIMIT_FSIZE, limits.file_size),
        // Of each process, a second later than of all of it together: for what cgroups do not count.
        (
            Resource::RLIMIT_CPU,
            limits.cpu_time.map(|time| {
                time.as_secs()
                    .saturating_add(1 + u64::from(time.subsec_nanos() > 0))
            }),
        ),
    ]
    .into_iter()
    .filter_map(|(resource, limit)| Some((resource, limit?)))
    .collect()
}

fn failed(what: &str, errno: Errno) -> Failure {
    let code = match errno {
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN | Errno::ENOSPC => {
            ErrorCode::OutOfResources
        }
        _ => ErrorCode::Internal,
    };
    Failure::new(code, format!("cannot {what}: {}", errno.desc()))
}

/// What a step that failed means to who asked.
fn describe(request: &Spawn, user: &User, step: Step, errno: Errno) -> Failure {
    let reason = errno.desc();
    let lossy = |bytes: &[u8]| {
        let shown = bytes.get(..256).unwrap_or(bytes);
        String::from_utf8_lossy(shown).into_owned()
    };
    let program = lossy(&request.argv[0]);
    let name = lossy(&user.name);
    match step {
        Step::Clone => failed("make a process", errno),
        Step::Session | Step::Terminal | Step::Streams | Step::Signals => {
            failed("prepare the process", errno)
        }
        Step::Room => failed("confine the process", errno),
        Step::Limit => Failure::new(
            ErrorCode::InvalidRequest,
            format!("cannot set the limits {:?}: {reason}", request.limits),
        ),
        Step::User => {
            let code = match errno {
                Errno::EPERM => ErrorCode::PermissionDenied,
                Errno::EAGAIN => ErrorCode::OutOfResources,
                _ => ErrorCode::Internal,
            };
            Failure::new(code, format!("cannot become the user {name:?}: {reason}"))
        }
        Step::Directory => {
            let cwd = lossy(&request.cwd);
            let code = match errno {
                Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG => {
                    ErrorCode::NoSuchDirectory
                }
                Errno::EACCES => ErrorCode::PermissionDenied,
                _ => ErrorCode::Internal,
            };
            let message = format!("cannot start in the directory {cwd:?} as {name:?}: {reason}");
            Failure::new(code, message)
        }
        Step::Execute => match errno {
            Errno::ENOENT | Errno::ENOTDIR if request.argv[0].contains(&b'/') => {
                if std::path::Path::new(&program).is_file() {
                    return Failure::new(
                        ErrorCode::NotExecutable,
                        format!("{program:?} needs an interpreter or loader that is not there"),
                    );
                }
                Failure::new(
                    ErrorCode::NotFound,
                    format!("there is no program {program:?}"),
                )
            }
            Errno::ENOENT | Errno::ENOTDIR => Failure::new(
                ErrorCode::NotFound,
                format!("there is no program {program:?} in the PATH of the command"),
            ),
            Errno::EACCES | Errno::EPERM => Failure::new(
                ErrorCode::PermissionDenied,
                format!("{program:?} cannot be executed by the user {name:?}: {reason}"),
            ),
            Errno::ENOEXEC => Failure::new(
                ErrorCode::NotExecutable,
                format!(
                    "{program:?} is nothing that the kernel can run: \
                     neither a program of this architecture nor a script with a #! line"
                ),
            ),
            Errno::E2BIG => Failure::new(
                ErrorCode::ArgumentTooLong,
                format!(
                    "arguments and environment of {program:?} are more than the kernel takes: \
                     a quarter of the stack's limit (ARG_MAX)"
                ),
            ),
            Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE => {
                failed(&format!("execute {program:?}"), errno)
            }
            _ => Failure::new(
                ErrorCode::NotExecutable,
                format!("{program:?} cannot be executed: {reason}"),
            ),
        },
    }
}

impl Streams {
    /// Each with what it is.
    pub(crate) fn outputs(
        &self,
    ) -> impl Iterator<Item = (crate::protocol::Stream, BorrowedFd<'_>)> {
        use crate::protocol::Stream;
        let stderr = self.stderr.as_ref().map(|fd| (Stream::Stderr, fd.as_fd()));
        [Some((Stream::Stdout, self.stdout.as_fd())), stderr]
            .into_iter()
            .flatten()
    }
}
