//! A new process between clone and exec.
//!
//! It shares the agent's memory, and the agent stands still until it executes its program or
//! exits (`CLONE_VM | CLONE_VFORK`, as vfork(2) and posix_spawn(3)): nothing is copied that exec
//! would throw away. In return it may do nothing but system calls, on memory that was prepared
//! for it (`Plan`), and its only trace in that memory is why it failed.
//!
//! It is born into its cgroup (`CLONE_INTO_CGROUP`). Moving a process into one later takes a lock
//! whose writers wait for an RCU grace period, tens of milliseconds (`cgroup_threadgroup_rwsem`).
#![allow(
    unsafe_code,
    reason = "raw system calls, the only thing allowed between clone and exec"
)]

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::Resource;

use super::arch::clone_onto;
use crate::agent::room::rights;
use crate::agent::sys;

/// From `linux/sched.h`; the C library's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Many times what the child's few calls take; `tests` keeps watch over that.
const STACK_SIZE: usize = 32 * 1024;

/// What can fail on the way to a running program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Clone,
    Session,
    Terminal,
    Streams,
    Limit,
    Room,
    User,
    Directory,
    Signals,
    Execute,
}

/// Who the program runs as.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// What the program may do.
#[derive(Debug)]
pub(super) enum Rights {
    /// What its user may.
    Users,
    /// What its user may without any capability, within these namespaces and this filter.
    Confined {
        namespaces: [RawFd; 2],
        filter: Vec<libc::sock_filter>,
    },
    /// What it takes to confine others.
    Runners,
}

/// Everything the child needs, ready to be passed to the kernel.
#[derive(Debug)]
pub(super) struct Plan {
    candidates: Vec<CString>,
    /// Pointers into `_strings`, ended by a null pointer, as execve(2) takes them.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    _strings: [Vec<CString>; 2],
    cwd: CString,
    streams: [RawFd; 3],
    terminal: bool,
    credentials: Option<Credentials>,
    limits: Vec<(Resource, u64)>,
    rights: Rights,
    /// What the program gets as descriptor 3.
    inherited: Option<RawFd>,
    /// The program's file, if it is not looked for.
    program: Option<RawFd>,
    /// Written by the child.
    failure: Cell<Option<(Step, i32)>>,
}

impl Plan {
    #[expect(
        clippy::too_many_arguments,
        reason = "made in one place, from values of many types"
    )]
    pub(super) fn new(
        candidates: Vec<CString>,
        argv: Vec<CString>,
        environment: Vec<CString>,
        cwd: CString,
        streams: [RawFd; 3],
        terminal: bool,
        credentials: Option<Credentials>,
        limits: Vec<(Resource, u64)>,
    ) -> Self {
        // A `CString` keeps its bytes in place when it is moved.
        let pointers = |strings: &[CString]| {
            strings
                .iter()
                .map(|it| it.as_ptr())
                .chain([ptr::null()])
                .collect()
        };
        Self {
            candidates,
            argv: pointers(&argv),
            envp: pointers(&environment),
            _strings: [argv, environment],
            cwd,
            streams,
            terminal,
            credentials,
            limits,
            rights: Rights::Users,
            inherited: None,
            program: None,
            failure: Cell::new(None),
        }
    }
}

impl Plan {
    /// What it may do.
    pub(super) fn allow(&mut self, rights: Rights) {
        self.rights = rights;
    }

    /// The program gets this descriptor as number 3, which lives until it has been started.
    pub(super) fn inherit(&mut self, fd: RawFd) {
        self.inherited = Some(fd);
    }

    /// The program is what this descriptor is open for, which lives until it has been started.
    pub(super) fn execute_file(&mut self, fd: RawFd) {
        self.program = Some(fd);
    }
}

/// The stack that each child runs on in turn: the agent waits until one is done with it.
#[derive(Debug)]
pub(super) struct Stack(Box<[StackLine]>);

/// Sixteen bytes, so that the stack's ends are aligned as the ABI wants them.
#[repr(align(16))]
#[derive(Clone, Copy, Debug)]
struct StackLine(#[allow(dead_code, reason = "written by the child, read by a test")] [u8; 16]);

impl Stack {
    pub(super) fn new() -> Self {
        Self(vec![StackLine([0; 16]); STACK_SIZE / size_of::<StackLine>()].into())
    }

    /// Makes a process in `cgroup` and has it do what `plan` says. When this returns, the program
    /// runs, or there is no process.
    pub(super) fn start(
        &mut self,
        plan: &Plan,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<i32, (Step, Errno)> {
        let mut flags = libc::CLONE_VM as u64 | libc::CLONE_VFORK as u64;
        if cgroup.is_some() {
            flags |= CLONE_INTO_CGROUP;
        }
        let arguments = libc::clone_args {
            flags,
            pidfd: 0,
            child_tid: 0,
            parent_tid: 0,
            exit_signal: libc::SIGCHLD as u64,
            stack: self.0.as_mut_ptr().expose_provenance() as u64,
            stack_size: size_of_val(&*self.0) as u64,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        };
        // SAFETY: the stack is this value's, which is borrowed mutably until the child is done
        // with it; the agent is one thread and waits for that (CLONE_VFORK); `run` takes a plan,
        // which is borrowed for as long.
        let result = unsafe { clone_onto(&arguments, run, ptr::from_ref(plan).cast()) };
        let Ok(pid) = i32::try_from(result) else {
            return Err((Step::Clone, Errno::EINVAL));
        };
        if pid < 0 {
            return Err((Step::Clone, Errno::from_raw(-pid)));
        }
        match plan.failure.take() {
            None => Ok(pid),
            Some((step, errno)) => {
                // It has exited, and must not be taken for a command that has.
                sys::reap_child(pid);
                Err((step, Errno::from_raw(errno)))
            }
        }
    }
}

/// The child. Ends in a program, or in an exit and a note of why.
extern "C" fn run(plan: *const c_void) -> ! {
    // SAFETY: `start` passes a plan that lives until this process is done with it, and does not
    // touch it meanwhile.
    let plan = unsafe { &*plan.cast::<Plan>() };
    let (step, errno) = prepare(plan).map_or_else(|failure| failure, |()| execute(plan));
    plan.failure.set(Some((step, errno)));
    // SAFETY: ends this process without running anything of the agent's, whose memory it shares.
    unsafe { libc::_exit(127) }
}

/// Turns the result of a system call into the step that failed.
fn check(step: Step, result: impl Into<i64>) -> Result<(), (Step, i32)> {
    if result.into() < 0 {
        Err((step, Errno::last_raw()))
    } else {
        Ok(())
    }
}

fn prepare(plan: &Plan) -> Result<(), (Step, i32)> {
    // SAFETY: no pointers.
    check(Step::Session, unsafe { libc::setsid() })?;
    let [stdin, stdout, stderr] = plan.streams;
    if plan.terminal {
        // After setsid(2): only the leader of a session without a terminal gets one.
        // SAFETY: TIOCSCTTY takes a number.
        check(Step::Terminal, unsafe {
            libc::ioctl(stdin, libc::TIOCSCTTY, 0)
        })?;
    }
    for (from, to) in [(stdin, 0), (stdout, 1), (stderr, 2)] {
        // The agent's own descriptors 0 to 2 are taken, so none of these is one of them.
        // SAFETY: no pointers.
        check(Step::Streams, unsafe { libc::dup2(from, to) })?;
    }
    if let Some(fd) = plan.inherited {
        // After the streams, one of which may have had this number.
        // SAFETY: no pointers.
        check(Step::Streams, unsafe { libc::dup2(fd, INHERITED) })?;
        // It keeps the mark of a descriptor that is closed, if it is the same one.
        // SAFETY: no pointers.
        check(Step::Streams, unsafe {
            libc::fcntl(INHERITED, libc::F_SETFD, 0)
        })?;
    }
    // Before the user changes: raising a limit takes root.
    for &(resource, limit) in &plan.limits {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        // SAFETY: reads an `rlimit`, which lives across the call.
        let result = unsafe { libc::setrlimit(resource as _, &raw const limit) };
        check(Step::Limit, result)?;
    }
    if let Rights::Confined { namespaces, .. } = &plan.rights {
        for &namespace in namespaces {
            // SAFETY: no pointers.
            check(Step::Room, unsafe { libc::setns(namespace, 0) })?;
        }
    }
    become_user(plan)?;
    // After the user has changed: it must be one's own to enter.
    // SAFETY: reads a string that the plan owns.
    check(Step::Directory, unsafe { libc::chdir(plan.cwd.as_ptr()) })?;
    // The agent blocks all signals (it reads them); programs expect none to be.
    // SAFETY: zeroes are the empty set, in the kernel's form of eight bytes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const NO_SIGNALS,
            ptr::null::<u64>(),
            size_of_val(&NO_SIGNALS),
        )
    };
    check(Step::Signals, result)?;
    if let Rights::Confined { filter, .. } = &plan.rights {
        // The last thing: what is above it denies.
        let program = libc::sock_fprog {
            // Far fewer than the kernel takes.
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: reads a program of that length, which the plan owns.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        check(Step::Room, result)?;
    }
    Ok(())
}

/// The first number behind the standard streams.
const INHERITED: RawFd = 3;

static NO_SIGNALS: u64 = 0;

/// Groups first, the user last: after that there is no right left to change any, but for those that
/// are kept on purpose.
fn become_user(plan: &Plan) -> Result<(), (Step, i32)> {
    let step = |errno: Errno| (Step::Room, errno as i32);
    match plan.rights {
        Rights::Users => {}
        // Bounding takes a right that the user does not have.
        Rights::Confined { .. } => rights::bound(&[]).map_err(step)?,
        Rights::Runners => rights::bound_to_runner().map_err(step)?,
    }
    if let Some(credentials) = &plan.credentials {
        set_ids(credentials)?;
    }
    match plan.rights {
        Rights::Users => Ok(()),
        Rights::Confined { .. } => rights::clear().map_err(step),
        Rights::Runners => rights::pass_to_runner().map_err(step),
    }
}

/// Raw system calls, because the C library's functions would change all threads of the memory's
/// owner.
fn set_ids(credentials: &Credentials) -> Result<(), (Step, i32)> {
    let Credentials {
        uid,
        gid,
        ref groups,
    } = *credentials;
    // SAFETY: reads `len` numbers from a list of that length.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    check(Step::User, result)?;
    // SAFETY: no pointers.
    check(Step::User, unsafe {
        libc::syscall(libc::SYS_setresgid, gid, gid, gid)
    })?;
    // SAFETY: no pointers.
    check(Step::User, unsafe {
        libc::syscall(libc::SYS_setresuid, uid, uid, uid)
    })
}

/// Tries the candidates as execvp(3) does: what is not there is passed over, what may not be
/// executed is remembered. Returns only to say why none could be executed.
fn execute(plan: &Plan) -> (Step, i32) {
    if let Some(fd) = plan.program {
        // SAFETY: an empty string and two lists of strings that end in null, all of which live
        // across the call.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                fd,
                c"".as_ptr(),
                plan.argv.as_ptr(),
                plan.envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        return (Step::Execute, Errno::last_raw());
    }
    let mut errno = libc::ENOENT;
    let search = plan.candidates.len() > 1;
    for candidate in &plan.candidates {
        if search {
            // A look is far cheaper than an exec that fails, which has made and thrown away an
            // address space by the time it knows.
            // SAFETY: reads a string that the plan owns.
            let found = unsafe { libc::access(candidate.as_ptr(), libc::X_OK) };
            if found < 0 {
                if Errno::last_raw() == libc::EACCES {
                    errno = libc::EACCES;
                }
                continue;
            }
        }
        // SAFETY: a string, and two lists of strings that end in null, all owned by the plan.
        unsafe { libc::execve(candidate.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
        match Errno::last_raw() {
            libc::ENOENT | libc::ENOTDIR if search => {}
            // A directory in the PATH, which has the execute bit too.
            libc::EACCES if search => errno = libc::EACCES,
            other => return (Step::Execute, other),
        }
    }
    (Step::Execute, errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Stack {
        /// How far down anything was ever written.
        fn used(&self) -> usize {
            let untouched = self.0.iter().take_while(|line| line.0 == [0; 16]).count();
            STACK_SIZE - untouched * size_of::<StackLine>()
        }
    }

    /// A child that takes every step there is and fails at the last, which goes the deepest. The
    /// steps that need root are taken as far as they go.
    #[test]
    fn the_stack_is_large_enough() {
        let text = |text: &str| CString::new(text).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut stack = Stack::new();
        for credentials in [
            None,
            Some(Credentials {
                uid: 1,
                gid: 1,
                groups: vec![1; 100],
            }),
        ] {
            let plan = Plan::new(
                vec![text("/no/such"), text("/dev/null"), text("/")],
                vec![text("x"); 100],
                vec![text("A=B"); 100],
                text("/"),
                [null.as_raw_fd(); 3],
                false,
                credentials,
                vec![(Resource::RLIMIT_NOFILE, 100), (Resource::RLIMIT_CPU, 100)],
            );
            stack.start(&plan, None).unwrap_err();
        }
        let used = stack.used();
        assert!(
            used > 0 && used < STACK_SIZE / 4,
            "{used} of {STACK_SIZE} bytes"
        );
    }
}
