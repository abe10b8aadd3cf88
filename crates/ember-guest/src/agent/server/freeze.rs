//! Silence for a snapshot, and what comes after it: the same life, or that of a clone.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use super::hooks::{self, Identifying};
use super::session::{Last, Session, Step, refuse};
use super::{Id, Token};
use crate::protocol::{ErrorCode, Failure, Identity, Malformed, Message, Spawn, Stream};

/// How long a freeze waits for runners to have a process ready.
const STOCKING: Duration = Duration::from_secs(1);

/// How far a freeze has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not at all.
    Running,
    /// Nothing new is said; what has been said is on its way.
    Freezing { request: u32, since: Instant },
    /// The host has the next word.
    Frozen,
}

impl Session<'_> {
    /// Ends a freeze that waited for the last frame to be written. Says whether there is an answer
    /// to be written now.
    pub(super) fn freeze_if_flushed(&mut self) -> bool {
        let Phase::Freezing { request, since } = self.phase else {
            return false;
        };
        if !self.connection.is_flushed() {
            return false;
        }
        // Each clone would have to make its own. One that does not come is no reason not to freeze.
        if self.runners.stock_up(self.agent) && since.elapsed() < STOCKING {
            return false;
        }
        let answer = match self.freeze() {
            Ok(()) => {
                self.phase = Phase::Frozen;
                Message::Frozen
            }
            Err(failure) => {
                self.go_on();
                Message::Error(failure)
            }
        };
        self.connection.send(request, &answer);
        true
    }

    /// How long the freeze can wait for something but the host.
    pub(super) fn freeze_patience(&self) -> Option<Duration> {
        match self.phase {
            Phase::Freezing { since, .. } if self.connection.is_flushed() => {
                Some(STOCKING.saturating_sub(since.elapsed()))
            }
            _ => None,
        }
    }

    /// Leaves as little as possible to be done by each clone.
    fn freeze(&mut self) -> Result<(), Failure> {
        self.tidy();
        self.agent.identities.prepare()?;
        self.agent.hooks.prepare();
        Ok(())
    }

    /// What the host may say to an agent that is frozen.
    pub(super) fn receive_frozen(&mut self, request: u32, message: Message<'_>) -> Step {
        let kind = message.kind();
        if self.phase != Phase::Frozen {
            // Before it has its answer, it may not say anything.
            return refuse(&Malformed::Unexpected { kind });
        }
        match message {
            Message::Ping => self.connection.send(request, &Message::Pong),
            Message::PowerOff => {
                self.connection.send(request, &Message::PoweringOff);
                return ControlFlow::Break(Last::PowerOff);
            }
            Message::Error(_) if request == 0 => return ControlFlow::Break(Last::Gone),
            Message::Thaw => {
                self.connection.send(request, &Message::Thawed);
                self.go_on();
            }
            Message::Identify(identity) => self.identify(request, identity.into_owned()),
            Message::Spawn(_) | Message::Warm(_) | Message::Run(_) => {
                let message = "the agent is frozen: it has to be thawed or identified first";
                let failure = Failure::new(ErrorCode::Frozen, message);
                self.connection.send(request, &Message::Error(failure));
            }
            _ => return refuse(&Malformed::Unexpected { kind }),
        }
        ControlFlow::Continue(())
    }

    /// Applies an identity, and has everybody told who has to know.
    pub(super) fn identify(&mut self, request: u32, identity: Identity) {
        let applied = match self.identifying {
            None => self.agent.identities.apply(identity),
            Some(_) => {
                let message = "another identity is being applied";
                Err(Failure::new(ErrorCode::InvalidRequest, message))
            }
        };
        if let Err(failure) = applied {
            self.connection.send(request, &Message::Error(failure));
            return;
        }
        if self.phase == Phase::Frozen {
            self.detach();
        } else {
            // A guest that was never frozen.
            self.agent.hooks.prepare();
        }
        self.identifying = Some(Identifying {
            request,
            deadline: Instant::now() + hooks::PATIENCE,
        });
        for program in self.agent.hooks.begin() {
            match self.start_hook(&program) {
                Ok(pid) => self.agent.hooks.started(pid, program),
                Err(failure) => self.agent.hooks.refused(&program, &failure),
            }
        }
        self.finish_identity();
    }

    /// Runs a program as root, of which nothing is heard but how it ends.
    fn start_hook(&mut self, program: &Path) -> Result<i32, Failure> {
        let spawn = Spawn {
            argv: vec![program.as_os_str().as_bytes().to_vec()],
            ..Spawn::default()
        };
        let id = self.detached_id();
        let pid = self.spawn(id, &spawn)?;
        i32::try_from(pid).map_err(|error| Failure::new(ErrorCode::Internal, error.to_string()))
    }

    /// Ends an identity whose hooks have all been heard of, or whose time is up.
    pub(super) fn finish_identity(&mut self) {
        let Some(identifying) = &self.identifying else {
            return;
        };
        let request = identifying.request;
        let result = match self.agent.hooks.result() {
            Some(result) => result,
            None if identifying.deadline <= Instant::now() => Err(self.agent.hooks.overdue()),
            None => return,
        };
        self.identifying = None;
        match result {
            Ok(()) => {
                self.connection.send(request, &Message::Identified);
                if self.phase == Phase::Frozen {
                    self.go_on();
                }
            }
            Err(failure) => {
                for pid in self.agent.hooks.running() {
                    if let Some(id) = self.leaders.get(&pid)
                        && let Some(command) = self.commands.get_mut(id)
                    {
                        command.kill();
                    }
                }
                self.connection.send(request, &Message::Error(failure));
            }
        }
    }

    fn detached_id(&mut self) -> Id {
        // Four thousand million commands are not started within one connection.
        self.last_detached = self.last_detached.wrapping_add(1);
        Id::Detached(self.last_detached)
    }

    /// Sees to everything that was let be while the agent was frozen.
    fn go_on(&mut self) {
        self.phase = Phase::Running;
        // The change of the signals' descriptor may have been told already.
        self.agent.read_signals();
        self.reap();
        let waiting: Vec<Id> = self
            .commands
            .iter()
            .filter(|(_, command)| command.input.watched)
            .map(|(&id, _)| id)
            .collect();
        for id in waiting {
            self.resume_input(id);
        }
        self.resume_runners();
        self.expire();
    }

    /// Gives every command a number of the agent's own, under which the host does not hear of it.
    fn detach(&mut self) {
        let commands = std::mem::take(&mut self.commands);
        for (id, command) in commands {
            let Id::Request(_) = id else {
                // Of a machine before that one.
                self.commands.insert(id, command);
                continue;
            };
            let id = self.detached_id();
            if let Some(leader) = self.leaders.get_mut(&command.leader) {
                *leader = id;
            }
            // Fails for what is not watched: a file cannot be, and needs not.
            for (stream, fd) in command.outputs() {
                let token = Token::Stream(id, stream);
                let _ = self.agent.rename(fd, EpollFlags::EPOLLIN, token);
            }
            if command.input.watched
                && let Some(fd) = command.input.fd()
            {
                let token = Token::Stream(id, Stream::Stdin);
                let _ = self.agent.rename(fd, EpollFlags::EPOLLOUT, token);
            }
            self.commands.insert(id, command);
        }
        self.runners.detach();
        // Each output is looked at once under its new name, however it was queued under the old.
        self.ready.clear();
        let outputs: Vec<(Id, Stream)> = self
            .commands
            .iter()
            .flat_map(|(&id, command)| command.outputs().map(move |(stream, _)| (id, stream)))
            .collect();
        for (id, stream) in outputs {
            if let Some(command) = self.commands.get_mut(&id)
                && let Some(output) = command.output(stream)
            {
                output.queued = false;
            }
            self.look_at(id, stream);
        }
    }
}
