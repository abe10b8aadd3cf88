//! Programs for runners: who waits for whom, and what becomes of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use nix::sys::wait::{Id as Wait, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::Token;
use super::command::Command;
use super::freeze::Phase;
use super::runner::{self, Heard, NotThere, Place, Program, Runner, Spare, Stage};
use super::session::Session;
use super::{Agent, Id, MAX_LINGERING};
use crate::agent::spawn::{Purpose, Streams, environment, me, rlimits, user};
use crate::agent::sys;
use crate::agent::tree::Tree;
use crate::agent::users::User;
use crate::protocol::{ErrorCode, Failure, MAX_REQUESTS, Message, Spawn, Warm};

/// The most runners at a time.
const MAX_RUNNERS: usize = 16;

/// All runners of a connection, by numbers of the agent's own.
#[derive(Debug, Default)]
pub(super) struct Runners {
    pub(super) all: BTreeMap<u32, Runner>,
    last: u32,
}

impl Runners {
    fn numbers(&self) -> Vec<u32> {
        self.all.keys().copied().collect()
    }

    /// Whether a program with this request waits for its process.
    pub(super) fn is_waiting(&self, request: u32) -> bool {
        let mut waiting = self.all.values().flat_map(|runner| &runner.waiting);
        waiting.any(|program| program.request == request)
    }

    fn waiting(&self) -> usize {
        self.all.values().map(|runner| runner.waiting.len()).sum()
    }

    /// Has every runner that could have a process ready make one. Says whether any is missing.
    pub(super) fn stock_up(&mut self, agent: &mut Agent) -> bool {
        let mut missing = false;
        for runner in self.all.values_mut().filter(|it| it.lacks_spare()) {
            // If there is no place now, it is looked for again when a program needs one.
            missing |= ask(runner, agent).is_ok();
        }
        missing
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.all.values().filter_map(Runner::deadline).min()
    }

    /// What they were asked for is not wanted any more.
    pub(super) fn detach(&mut self) {
        for runner in self.all.values_mut() {
            runner.announce = None;
            runner.waiting.clear();
        }
    }

    /// The trees of the processes that were ready.
    pub(super) fn into_trees(self) -> impl Iterator<Item = Tree> {
        self.all
            .into_values()
            .filter_map(|mut runner| runner.lose())
    }
}

/// Has a runner make a process, if it has none and makes none.
fn ask(runner: &mut Runner, agent: &mut Agent) -> Result<(), Failure> {
    if !runner.is_to_be_asked() {
        return Ok(());
    }
    let confined = runner.confined;
    let tree = match confined {
        true => agent.trees.plant_room()?,
        false => agent.trees.plant_for_any()?,
    };
    let place = Place { tree, confined };
    runner.ask(place, &agent.spawner.filter(), Instant::now());
    Ok(())
}

impl Session<'_> {
    /// As many commands as there may be.
    pub(super) fn check_room(&self) -> Result<(), Failure> {
        let is_request = |id: &&Id| matches!(id, Id::Request(_));
        let running = self.commands.keys().filter(is_request).count();
        if running + self.runners.waiting() >= MAX_REQUESTS {
            let message = format!("{MAX_REQUESTS} commands are running, and no more may");
            return Err(Failure::new(ErrorCode::TooManyRequests, message));
        }
        if self.agent.lingering.len() >= MAX_LINGERING {
            let message = format!("{MAX_LINGERING} commands have left processes behind");
            return Err(Failure::new(ErrorCode::TooManyRequests, message));
        }
        Ok(())
    }

    /// Starts to watch a process as the command `id`.
    pub(super) fn register(
        &mut self,
        id: Id,
        pid: i32,
        tree: Tree,
        streams: Streams,
        since: Instant,
        request: &Spawn,
    ) -> Result<(), Failure> {
        self.settled = true;
        let watched = streams.outputs().try_for_each(|(stream, fd)| {
            self.agent
                .watch(fd, EpollFlags::EPOLLIN, Token::Stream(id, stream))
        });
        let mut command = Command::new(pid, tree, streams, since, request);
        if let Err(errno) = watched {
            command.kill();
            self.ended.push((command.tree, None));
            let message = format!("cannot watch the command's output: {}", errno.desc());
            return Err(Failure::new(ErrorCode::OutOfResources, message));
        }
        self.leaders.insert(pid, id);
        self.commands.insert(id, command);
        Ok(())
    }

    /// Starts a runner.
    pub(super) fn warm(&mut self, request: u32, warm: &Warm) -> Result<u32, Failure> {
        self.check_room()?;
        warm.validate_runner()?;
        let name = &warm.runner;
        if self.runners.all.values().any(|it| it.name == *name) {
            let message = format!("there is a runner {name:?} already");
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        if self.runners.all.len() >= MAX_RUNNERS {
            let message = format!("there are {MAX_RUNNERS} runners, and no more may be");
            return Err(Failure::new(ErrorCode::TooManyRequests, message));
        }
        let unusable = |error: &dyn std::fmt::Display| {
            let message = format!("cannot speak to the runner {name:?}: {error}");
            Failure::new(ErrorCode::OutOfResources, message)
        };
        let since = Instant::now();
        let user = user(&warm.command)?.unwrap_or_else(me);
        let (ours, theirs) = runner::control().map_err(|errno| unusable(&errno.desc()))?;
        let runners_own = Spawn {
            confined: false,
            ..warm.command.clone()
        };
        if warm.command.confined && !self.agent.trees.can_confine() {
            let message = "programs cannot be confined in this guest";
            return Err(Failure::new(ErrorCode::Unsupported, message));
        }
        let mut tree = self.agent.trees.plant(&runners_own)?;
        let (pid, streams) = self
            .agent
            .spawner
            .spawn(
                &warm.command,
                &mut tree,
                self.agent.identities.environment(),
                Purpose::Runner(theirs.as_fd()),
            )
            .inspect_err(|_| self.agent.trees.prepare())?;
        let id = Id::Request(request);
        self.register(id, pid, tree, streams, since, &runners_own)?;

        let confined = warm.command.confined;
        let runner = Runner::new(name.clone(), pid, user, confined, ours, request);
        self.runners.last = self.runners.last.wrapping_add(1);
        let number = self.runners.last;
        let token = Token::Runner(number);
        let watched = self
            .agent
            .watch(runner.control(), EpollFlags::EPOLLIN, token)
            .map_err(Into::into)
            .and_then(|()| runner.set_up(&warm.code));
        if let Err(error) = watched {
            if let Some(mut command) = self.commands.remove(&id) {
                command.kill();
                self.leaders.remove(&pid);
                self.ended.push((command.tree, None));
            }
            return Err(unusable(&error));
        }
        self.runners.all.insert(number, runner);
        // A process's number is positive.
        Ok(pid.unsigned_abs())
    }

    /// Runs a program, now or as soon as there is a process for it. The answer is sent in either
    /// case.
    pub(super) fn run_program(&mut self, request: u32, mut warm: Warm) {
        let since = Instant::now();
        let checked = self.check_program(&warm);
        match checked {
            Err(failure) => self.connection.send(request, &Message::Error(failure)),
            Ok(number) => {
                if let Some(runner) = self.runners.all.get_mut(&number) {
                    warm.command.confined = runner.confined;
                    runner.waiting.push_back(Program {
                        request,
                        warm,
                        since,
                    });
                }
                self.serve_runner(number);
            }
        }
    }

    fn check_program(&self, warm: &Warm) -> Result<u32, Failure> {
        self.check_room()?;
        warm.validate_program()?;
        let all = &self.runners.all;
        let Some((&number, _)) = all.iter().find(|(_, it)| it.name == warm.runner) else {
            let names: Vec<_> = all.values().map(|runner| &*runner.name).collect();
            let there = match names.is_empty() {
                true => "none".to_owned(),
                false => names.join(", "),
            };
            let message = format!("there is no runner {:?}; there is {there}", warm.runner);
            return Err(Failure::new(ErrorCode::NotFound, message));
        };
        if warm.command.confined && !self.runners.all[&number].confined {
            let message = format!("the runner {:?} does not confine its programs", warm.runner);
            return Err(Failure::new(ErrorCode::InvalidRequest, message));
        }
        let cwd = &warm.command.cwd[..];
        let directory = Path::new(std::ffi::OsStr::from_bytes(cwd));
        if !cwd.is_empty() && !fs::metadata(directory).is_ok_and(|it| it.is_dir()) {
            let message = format!("cannot start in {directory:?}, which is no directory");
            return Err(Failure::new(ErrorCode::NoSuchDirectory, message));
        }
        Ok(number)
    }

    /// Something has come from a runner or its newborn process.
    pub(super) fn hear_runner(&mut self, number: u32) {
        loop {
            let Some(runner) = self.runners.all.get_mut(&number) else {
                return;
            };
            if self.phase == Phase::Frozen {
                runner.unheard = true;
                return;
            }
            match runner.hear() {
                Ok(Heard::Nothing) => break,
                Ok(Heard::Warm) => {
                    if let Err(failure) = ask(runner, self.agent) {
                        self.break_runner(number, &failure);
                    }
                }
                Ok(Heard::Born) => {
                    let token = Token::Runner(number);
                    if let Some(socket) = runner.newborn()
                        && self
                            .agent
                            .watch(socket, EpollFlags::EPOLLIN, token)
                            .is_err()
                    {
                        self.break_runner(number, &"its process cannot be watched");
                    }
                }
                Ok(Heard::Waiting(pid)) => self.welcome(number, pid),
                Ok(Heard::Stillborn) => self.mourn(number),
                Err(broken) => self.break_runner(number, &broken),
            }
        }
        self.serve_runner(number);
    }

    /// A process says that it waits. Whether it may is for the kernel to say.
    fn welcome(&mut self, number: u32, pid: i32) {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let known =
            self.leaders.contains_key(&pid) || self.runners.all.values().any(|it| it.spare_is(pid));
        let of_ours = !known && waitid(Wait::Pid(Pid::from_raw(pid)), look).is_ok();
        let Some(runner) = self.runners.all.get_mut(&number) else {
            return;
        };
        if !of_ours {
            // Or it has ended, and has been buried.
            self.mourn(number);
            return;
        }
        if let Err(NotThere { mut tree, inside }) = runner.adopt(pid) {
            tree.kill();
            self.ended.push((tree, None));
            if inside {
                self.mourn(number);
            } else {
                let why = "it does not confine its programs, as it has to";
                self.break_runner(number, &why);
            }
        }
        // Trees that could not tell this process from their own now can.
        self.agent.tend_lingering(Instant::now());
    }

    /// A process that was to run a program is not there. The next is asked for if somebody waits,
    /// but for the one who has waited since before it was: that one would wait for ever for processes
    /// that end at once.
    fn mourn(&mut self, number: u32) {
        let Some(runner) = self.runners.all.get_mut(&number) else {
            return;
        };
        let asked = runner.asked();
        if let Some(mut tree) = runner.lose() {
            tree.kill();
            self.ended.push((tree, None));
        }
        if runner.announce.is_some() {
            // Nobody was told that it is warm, and nothing says that the next one would do better.
            self.break_runner(number, &"its first process has ended before it waited");
            return;
        }
        let waited = |program: &mut Program| asked.is_none_or(|asked| program.since <= asked);
        if let Some(program) = runner.waiting.pop_front_if(waited) {
            let message = "the process that was to run the program has ended";
            let failure = Failure::new(ErrorCode::Internal, message);
            self.connection
                .send(program.request, &Message::Error(failure));
        }
    }

    /// Hands out what a runner has ready, and tells who waits for that.
    fn serve_runner(&mut self, number: u32) {
        while self.phase == Phase::Running
            && let Some(runner) = self.runners.all.get_mut(&number)
        {
            if let Stage::Waiting(_) = runner.stage
                && let Some(request) = runner.announce.take()
            {
                self.connection.send(request, &Message::Warmed);
            }
            if runner.waiting.is_empty() {
                return;
            }
            let Some(spare) = runner.take_spare() else {
                let Err(failure) = ask(runner, self.agent) else {
                    return;
                };
                // There is no place for it, and nothing is left to wait for.
                if let Some(program) = runner.waiting.pop_front() {
                    self.connection
                        .send(program.request, &Message::Error(failure));
                }
                continue;
            };
            let Some(program) = runner.waiting.pop_front() else {
                return;
            };
            let owner = runner.user.clone();
            let answer = match self.start_program(&owner, spare, &program) {
                Ok(pid) => Message::Started { pid },
                Err(failure) => Message::Error(failure),
            };
            self.connection.send(program.request, &answer);
        }
    }

    fn start_program(
        &mut self,
        owner: &User,
        mut spare: Spare,
        program: &Program,
    ) -> Result<u32, Failure> {
        let pid = spare.pid;
        let prepared = self.prepare_program(owner, &mut spare, program);
        let streams = match prepared {
            Ok(streams) => streams,
            Err(failure) => {
                spare.tree.kill();
                self.ended.push((spare.tree, None));
                return Err(failure);
            }
        };
        let Program {
            request,
            warm,
            since,
        } = program;
        let id = Id::Request(*request);
        self.register(id, pid, spare.tree, streams, *since, &warm.command)?;
        Ok(pid.unsigned_abs())
    }

    fn prepare_program(
        &mut self,
        owner: &User,
        spare: &mut Spare,
        program: &Program,
    ) -> Result<Streams, Failure> {
        let Program { warm, .. } = program;
        let command = &warm.command;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            let message = format!("cannot {what} the program: {error}");
            Failure::new(ErrorCode::OutOfResources, message)
        };
        let limits = command.all_limits();
        if limits.need_controllers() {
            self.agent.trees.check(&limits)?;
            spare.tree.limit(&limits)?;
        }
        for (resource, limit) in rlimits(command) {
            sys::limit_process(spare.pid, resource, limit)
                .map_err(|error| failed("limit", &error))?;
        }
        let (streams, ends) = self.agent.spawner.streams(command, owner)?;
        let given = self.agent.identities.environment();
        let environment = environment::build(command, owner, given.iter());
        let numbers = self.agent.spawner.numbers(&ends);
        spare
            .run(warm, &environment, numbers)
            .map_err(|error| failed("hand over", &error))?;
        Ok(streams)
    }

    /// Gives a program up that has not been started.
    pub(super) fn forget_program(&mut self, request: u32) {
        for runner in self.runners.all.values_mut() {
            let before = runner.waiting.len();
            runner.waiting.retain(|program| program.request != request);
            if runner.waiting.len() < before {
                let message = "the program was ended before it began";
                let failure = Failure::new(ErrorCode::InvalidRequest, message);
                self.connection.send(request, &Message::Error(failure));
            }
        }
    }

    /// Takes note of the end of a process that may have been a runner's, or its spare.
    pub(super) fn runner_process_ended(&mut self, pid: i32) {
        for number in self.runners.numbers() {
            let Some(runner) = self.runners.all.get_mut(&number) else {
                continue;
            };
            if runner.leader == pid {
                self.remove_runner(number, &"it has ended");
            } else if runner.spare_is(pid) {
                self.mourn(number);
                self.serve_runner(number);
            }
        }
    }

    /// Ends a runner that does not do what it should.
    fn break_runner(&mut self, number: u32, why: &dyn std::fmt::Display) {
        let Some(runner) = self.runners.all.get(&number) else {
            return;
        };
        crate::agent::complain(&format_args!("runner {}: {why}", runner.name));
        if let Some(id) = self.leaders.get(&runner.leader)
            && let Some(command) = self.commands.get_mut(id)
        {
            command.kill();
        }
        self.remove_runner(number, why);
    }

    fn remove_runner(&mut self, number: u32, why: &dyn std::fmt::Display) {
        let Some(mut runner) = self.runners.all.remove(&number) else {
            return;
        };
        if let Some(mut tree) = runner.lose() {
            tree.kill();
            self.ended.push((tree, None));
        }
        for program in runner.waiting {
            let message = format!("the runner {:?} cannot run it: {why}", runner.name);
            let failure = Failure::new(ErrorCode::NotFound, message);
            self.connection
                .send(program.request, &Message::Error(failure));
        }
    }

    /// Ends runners that take too long.
    pub(super) fn expire_runners(&mut self, now: Instant) {
        for number in self.runners.numbers() {
            let runner = self.runners.all.get(&number);
            if runner
                .and_then(Runner::deadline)
                .is_some_and(|it| it <= now)
            {
                self.break_runner(number, &"it takes too long to make a process");
            }
        }
    }

    /// Hears what has come while nobody could listen, and hands out what waits.
    pub(super) fn resume_runners(&mut self) {
        for number in self.runners.numbers() {
            let Some(runner) = self.runners.all.get_mut(&number) else {
                continue;
            };
            match std::mem::take(&mut runner.unheard) {
                true => self.hear_runner(number),
                false => self.serve_runner(number),
            }
        }
    }
}
