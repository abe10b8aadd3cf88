//! Workers without VMs: their processes, their protocol, their end.

use std::fs;
use std::time::{Duration, Instant};

use ember_vmm::ExitReason;

use super::link::Link;
use super::process::Program;
use super::*;
use crate::WORKER;
use crate::protocol::{RefusalKind, Request, VERSION};

const PATIENCE: Duration = Duration::from_secs(20);

/// A worker, heard by nobody.
fn start() -> Link {
    let (process, socket) = Program::new(WORKER).unwrap().start().unwrap();
    Link::new(process, socket)
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn field(id: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name));
    line.unwrap()[name.len()..].trim().to_owned()
}

/// The worker has done all that it does before it serves.
fn settled(link: &Link) {
    until("a worker settles", || {
        field(link.process().id(), "Name:") == "ember-worker"
            && fs::read_link(format!("/proc/{}/fd/0", link.process().id()))
                .is_ok_and(|target| target.ends_with("null"))
    });
}

#[test]
fn a_worker_has_nothing_of_its_parents() {
    // Neither of these is meant for it.
    let leaked =
        rustix::io::fcntl_dupfd_cloexec(fs::File::open("/proc/self/maps").unwrap(), 100).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let link = start();
    settled(&link);
    let id = link.process().id();
    let directory = format!("/proc/{id}");
    assert!(fs::read(format!("{directory}/environ")).unwrap().is_empty());
    assert_eq!(
        fs::read_link(format!("{directory}/cwd")).unwrap().to_str(),
        Some("/")
    );
    assert_eq!(
        fs::read(format!("{directory}/cmdline")).unwrap(),
        b"ember-worker\0"
    );
    let mut open: Vec<String> = fs::read_dir(format!("{directory}/fd"))
        .unwrap()
        .map(|entry| {
            let target = fs::read_link(entry.unwrap().path()).unwrap();
            target.to_string_lossy().into_owned()
        })
        .collect();
    open.sort();
    let [null, _, _, socket] = &open[..] else {
        panic!("{open:?}");
    };
    assert_eq!(null, "/dev/null");
    assert!(socket.starts_with("socket:"), "{open:?}");
    assert_eq!(field(id, "SigBlk:"), "0000000000000000");
    // But for SIGPIPE, whose place an error of the write takes, and those that are the C library's
    // (32 and 33), which it gives handlers when it uses them.
    let ignored = u64::from_str_radix(&field(id, "SigIgn:"), 16).unwrap();
    assert_eq!(ignored & !(0b11 << 31), 1 << 12);
    assert_eq!(field(id, "Threads:"), "1");
    // It is the leader of a session of its own: a terminal's signals do not reach it.
    let stat = fs::read_to_string(format!("{directory}/stat")).unwrap();
    let session: u32 = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(session, id);
    link.process().kill();
    assert_eq!(
        link.process().reap(),
        format!("the worker process {id} was killed by signal 9")
    );
}

#[test]
fn a_workers_memory_is_counted_from_outside_until_it_ends() {
    let link = start();
    settled(&link);
    let own = link.process().own_memory().unwrap();
    assert!((4096..4 << 20).contains(&own), "{own}");
    link.process().kill();
    link.process().reap();
    link.process().own_memory().unwrap_err();
}

#[test]
fn a_call_that_a_guest_keeps_waiting_is_given_up_and_the_worker_lives() {
    let workers = match has_kvm() {
        true => Workers::of(WORKER).unwrap(),
        false => return,
    };
    let worker = workers.take().unwrap();
    settled(&worker.0);
    let id = worker.0.process().id();
    let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let short = Duration::from_millis(50);
    let error = worker.0.call_guest(Request::Pause, &[], short).unwrap_err();
    assert_eq!(error.kind(), RefusalKind::Ended, "{error}");
    // What it says of it later is for nobody.
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let error = worker
        .0
        .call_guest(Request::Pause, &[], PATIENCE)
        .unwrap_err();
    assert_eq!(error.kind(), RefusalKind::Internal, "{error}");
    assert!(error.to_string().contains("no VM"), "{error}");
}

#[test]
fn a_worker_ends_with_its_owners_socket() {
    let (process, socket) = Program::new(WORKER).unwrap().start().unwrap();
    drop(socket);
    let id = process.id();
    assert_eq!(
        process.reap(),
        format!("the worker process {id} ended with status 0")
    );
}

#[test]
fn a_worker_ends_with_the_thread_that_started_it() {
    let link = std::thread::spawn(|| {
        let link = start();
        settled(&link);
        link
    });
    // The socket stays open.
    let link = link.join().unwrap();
    let id = link.process().id();
    assert_eq!(
        link.process().reap(),
        format!("the worker process {id} was killed by signal 9")
    );
}

fn has_kvm() -> bool {
    fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

#[test]
fn workers_are_started_ahead_and_all_are_gone_with_the_last_handle() {
    if !has_kvm() {
        return;
    }
    let workers = Workers::of(WORKER).unwrap();
    until("workers are ready", || workers.ready() >= 2);
    let taken: Vec<_> = (0..5).map(|_| workers.take().unwrap()).collect();
    let mut ids: Vec<u32> = taken.iter().map(|worker| worker.0.process().id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5);
    // One is killed: its owner is told, and nobody else.
    let killed = &taken[2].0;
    let (sender, ended) = std::sync::mpsc::channel();
    killed.on_exit(Box::new(move |reason| sender.send(reason.clone()).unwrap()));
    killed.process().kill();
    let reason = ended.recv_timeout(PATIENCE).unwrap();
    let id = killed.process().id();
    let what = format!("the worker process {id} was killed by signal 9");
    assert_eq!(reason, ExitReason::MonitorFailed { what });
    let error = killed.call(Request::Pause, &[], PATIENCE).unwrap_err();
    assert!(matches!(error, WorkerError::Ended(_)), "{error}");
    // The others are there: they say that they have no VM.
    for worker in [&taken[0], &taken[1], &taken[3], &taken[4]] {
        let error = worker.0.call(Request::Pause, &[], PATIENCE).unwrap_err();
        assert_eq!(error.kind(), RefusalKind::Internal, "{error}");
    }
    drop(taken);
    drop(workers);
    until("all processes are reaped", || {
        ids.iter()
            .all(|id| !fs::exists(format!("/proc/{id}")).unwrap())
    });
}

#[test]
fn a_worker_that_dies_with_calls_unread_died_of_what_killed_it() {
    if !has_kvm() {
        return;
    }
    let workers = Workers::of(WORKER).unwrap();
    let worker = workers.take().unwrap();
    settled(&worker.0);
    let id = worker.0.process().id();
    let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    until("the worker stops", || field(id, "State:").starts_with('T'));
    worker.0.post(Request::Balloon, &[]);
    worker.0.post(Request::Balloon, &[]);
    worker.0.process().kill();
    let error = worker.0.call(Request::Pause, &[], PATIENCE).unwrap_err();
    let expected = format!("the worker process {id} was killed by signal 9");
    assert!(error.to_string().contains(&expected), "{error}");
}

#[test]
fn what_is_no_program_is_said_to_be_none() {
    if !has_kvm() {
        return;
    }
    let workers = Workers::of(b"no program").unwrap();
    let error = workers.take().unwrap_err();
    assert!(matches!(error, WorkerError::Start(_)), "{error}");
    // A second attempt is made for whoever asks later.
    assert!(workers.take().is_err());
}

#[test]
fn a_worker_that_breaks_the_protocol_is_ended_with_its_reason() {
    let link = start();
    let error = link.take(&[VERSION, 99]).unwrap_err();
    link.broken(&error);
    let id = link.process().id();
    let (sender, ended) = std::sync::mpsc::channel();
    link.on_exit(Box::new(move |reason| sender.send(reason.clone()).unwrap()));
    let ExitReason::MonitorFailed { what } = ended.recv().unwrap() else {
        panic!("another reason");
    };
    assert!(
        what.starts_with(&format!("the worker process {id} failed: a frame is")),
        "{what}"
    );
    link.buried(link.process().reap());
    link.wait_gone();
}
