//! Trees of processes as `/proc` shows them.
//!
//! A process belongs to a command if its parent does, or if its session is one that the command
//! has made. What has left both (a daemon whose parent has ended and that has a session of its
//! own) is adopted by the agent; it cannot be told whose it was, and is taken to belong to the
//! command that is asked about.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::rc::Rc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often the tree is looked at anew while it is being killed: it may fork meanwhile.
const ROUNDS: usize = 16;

/// The commands that there are, each by its first process, which leads its session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions(Rc<RefCell<BTreeSet<i32>>>);

impl Sessions {
    pub(super) fn create(&self) -> Session {
        Session {
            leader: None,
            all: self.clone(),
        }
    }
}

/// One command and what it has started.
#[derive(Debug)]
pub(crate) struct Session {
    leader: Option<i32>,
    all: Sessions,
}

impl Session {
    pub(super) fn started(&mut self, pid: i32) {
        self.leader = Some(pid);
        self.all.0.borrow_mut().insert(pid);
    }

    pub(super) fn kill(&self) {
        for _ in 0..ROUNDS {
            let members = self.members();
            if members.is_empty() {
                break;
            }
            for pid in members {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members().is_empty()
    }

    fn members(&self) -> BTreeSet<i32> {
        let Some(leader) = self.leader else {
            return BTreeSet::new();
        };
        let agent = i32::try_from(std::process::id()).unwrap_or(0);
        members(&processes(), agent, leader, &self.all.0.borrow())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            self.all.0.borrow_mut().remove(&leader);
        }
    }
}

/// A process, from `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    parent: i32,
    session: i32,
    ended: bool,
}

fn processes() -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, parse(&stat)?))
    })
    .collect()
}

/// `pid (name) state ppid pgrp session ...`, where the name may hold anything (proc(5)).
fn parse(stat: &[u8]) -> Option<Process> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let _group = fields.next()?;
    let session = fields.next()?.parse().ok()?;
    Some(Process {
        parent,
        session,
        ended: matches!(state, "Z" | "X"),
    })
}

/// Who of `all` belongs to the command of `leader`, and lives. `commands` are all leaders.
fn members(
    all: &BTreeMap<i32, Process>,
    agent: i32,
    leader: i32,
    commands: &BTreeSet<i32>,
) -> BTreeSet<i32> {
    let another = |pid: i32| pid != leader && commands.contains(&pid);
    let mut members = BTreeSet::new();
    let mut sessions = BTreeSet::from([leader]);
    loop {
        let before = members.len();
        for (&pid, process) in all {
            if another(pid) || another(process.session) {
                continue;
            }
            let related = pid == leader
                || sessions.contains(&process.session)
                || members.contains(&process.parent)
                || process.parent == agent;
            if related && members.insert(pid) {
                sessions.insert(process.session);
            }
        }
        if members.len() == before {
            break;
        }
    }
    members.retain(|pid| all.get(pid).is_some_and(|process| !process.ended));
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_fake_fields() {
        let stat = b"7 (x) Z 1 1 1 (y) S 3 4 5 0 -1 more";
        let process = parse(stat).unwrap();
        assert_eq!(
            process,
            Process {
                parent: 3,
                session: 5,
                ended: false
            }
        );
        assert!(parse(b"7 (x) Z 3 4 5").unwrap().ended);
        assert!(parse(b"").is_none());
        assert!(parse(b"7 (x) S 3").is_none());
        assert!(parse(b"7 (x) S 3 4 \xff").is_none());
    }

    #[test]
    fn who_belongs_to_a_command() {
        let process = |parent, session| Process {
            parent,
            session,
            ended: false,
        };
        let agent = 10;
        let all = BTreeMap::from([
            (1, process(0, 1)),
            (10, process(1, 1)),
            (11, process(10, 11)), // a command
            (12, process(11, 11)), // its child
            (13, process(12, 13)), // a grandchild with a session of its own
            (14, process(10, 13)), // an orphan in that session
            (15, process(14, 15)), // its child with another session
            (20, process(10, 20)), // another command
            (21, process(20, 20)),
            (22, process(10, 20)), // an orphan of that one
            (30, process(10, 30)), // a daemon, whoever started it
            (40, process(1, 40)),  // nothing of ours
            (
                41,
                Process {
                    ended: true,
                    ..process(11, 11)
                },
            ),
        ]);
        let commands = BTreeSet::from([11, 20]);
        let of = |leader| members(&all, agent, leader, &commands);
        assert_eq!(of(11), BTreeSet::from([11, 12, 13, 14, 15, 30]));
        // The orphans 14 and 30 cannot be told apart from its own.
        assert!(of(20).is_superset(&BTreeSet::from([20, 21, 22, 30])));
        assert!(of(20).is_disjoint(&BTreeSet::from([1, 10, 11, 12, 40])));
    }
}
