//! Trees of processes as `/proc` shows them.
//!
//! A process belongs to a command if its parent does, or if its session is one that the command
//! has made. What has left both (a daemon whose parent has ended and that has a session of its
//! own) is adopted by the agent; it cannot be told whose it was, and is taken to belong to the
//! command that is asked about.
//!
//! A process that a runner has just made looks the same until it says who it is. While one is
//! expected, nobody ends such a process; commands that were ended meanwhile are ended again later.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::rc::Rc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often the tree is looked at anew while it is being killed: it may fork meanwhile.
const ROUNDS: usize = 16;

/// The commands that there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions(Rc<All>);

#[derive(Debug, Default)]
struct All {
    /// Each by its first process, which leads its session.
    leaders: RefCell<BTreeSet<i32>>,
    /// How many have no first process yet.
    expected: Cell<usize>,
}

impl Sessions {
    pub(super) fn create(&self) -> Session {
        self.0.expected.update(|count| count + 1);
        Session {
            leader: None,
            killed: false,
            all: self.clone(),
        }
    }
}

/// One command and what it has started.
#[derive(Debug)]
pub(crate) struct Session {
    leader: Option<i32>,
    killed: bool,
    all: Sessions,
}

/// Whether processes that nobody can tell whose they are count as the command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Orphans {
    Count,
    LetBe,
}

impl Session {
    pub(super) fn started(&mut self, pid: i32) {
        self.forget_leader();
        self.leader = Some(pid);
        self.all.0.leaders.borrow_mut().insert(pid);
    }

    pub(super) fn kill(&mut self) {
        self.killed = true;
        for _ in 0..ROUNDS {
            let members = self.members(self.known_orphans());
            if members.is_empty() {
                break;
            }
            for pid in members {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }

    /// Whether none of it is left that is known to be its own.
    pub(super) fn is_empty(&self) -> bool {
        self.members(self.known_orphans()).is_empty()
    }

    /// Whether none of it can be left. What was let be when it was ended is ended now.
    pub(super) fn clear(&mut self) -> bool {
        if self.killed {
            self.kill();
        }
        self.members(Orphans::Count).is_empty()
    }

    /// An orphan may be a process that is expected.
    fn known_orphans(&self) -> Orphans {
        match self.all.0.expected.get() {
            0 => Orphans::Count,
            _ => Orphans::LetBe,
        }
    }

    fn members(&self, orphans: Orphans) -> BTreeSet<i32> {
        let Some(leader) = self.leader else {
            return BTreeSet::new();
        };
        let agent = i32::try_from(std::process::id()).unwrap_or(0);
        let adopts = (orphans == Orphans::Count).then_some(agent);
        members(&processes(), adopts, leader, &self.all.0.leaders.borrow())
    }

    fn forget_leader(&mut self) {
        match self.leader.take() {
            Some(leader) => {
                self.all.0.leaders.borrow_mut().remove(&leader);
            }
            // One was added for it when it was made.
            None => self.all.0.expected.update(|count| count.saturating_sub(1)),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.forget_leader();
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

/// Who of `all` belongs to the command of `leader`, and lives. `commands` are all leaders; children
/// of `adopts` may be anybody's.
fn members(
    all: &BTreeMap<i32, Process>,
    adopts: Option<i32>,
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
                || adopts == Some(process.parent);
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
    fn processes_are_expected_until_they_are_there_or_given_up() {
        let sessions = Sessions::default();
        let expected = || sessions.0.expected.get();
        let mut first = sessions.create();
        let second = sessions.create();
        assert_eq!(expected(), 2);
        first.started(i32::MAX);
        assert_eq!((expected(), first.known_orphans()), (1, Orphans::LetBe));
        first.started(i32::MAX - 1);
        assert_eq!(expected(), 1);
        drop(second);
        assert_eq!((expected(), first.known_orphans()), (0, Orphans::Count));
        drop(first);
        assert_eq!(expected(), 0);
        assert!(sessions.0.leaders.borrow().is_empty());
    }

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
        let of = |leader| members(&all, Some(agent), leader, &commands);
        assert_eq!(of(11), BTreeSet::from([11, 12, 13, 14, 15, 30]));
        // The orphans 14 and 30 cannot be told apart from its own.
        assert!(of(20).is_superset(&BTreeSet::from([20, 21, 22, 30])));
        assert!(of(20).is_disjoint(&BTreeSet::from([1, 10, 11, 12, 40])));
        // Where one of the orphans may be somebody else, only what is related counts.
        let related = |leader| members(&all, None, leader, &commands);
        assert_eq!(related(11), BTreeSet::from([11, 12, 13, 14, 15]));
        assert_eq!(related(20), BTreeSet::from([20, 21, 22]));
    }
}
