//! One connection: its requests and the commands they started.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::unistd::read;

use super::command::{Command, Fed};
use super::connection::{Connection, Read};
use super::freeze::Phase;
use super::hooks::Identifying;
use super::running::Runners;
use super::{Agent, EVENTS, End, Id, Token};
use crate::agent::spawn::Purpose;
use crate::agent::sys;
use crate::agent::tree::Tree;
use crate::protocol::{
    ErrorCode, FEATURE_CGROUP, FEATURE_CLOCK, FEATURE_CONFINE, FEATURE_FILES, FEATURE_FREEZE,
    FEATURE_PTY, FEATURE_SESSIONS, FEATURE_USAGE, FEATURE_WARM, Failure, Hello, Kind, LimitHit,
    MAX_DATA, Malformed, Message, Spawn, Stream, WINDOW,
};

/// How long nothing has to happen before what can wait is done.
const QUIET: Duration = Duration::from_millis(5);
/// More than this many ended commands are not kept for a quiet moment.
const MAX_ENDED: usize = 16;
/// How long a last word may take to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a session ends.
#[derive(Debug)]
pub(super) enum Last {
    /// The host has gone.
    Gone,
    /// The host is told why before the connection is closed.
    Refuse(Failure),
    /// The agent's work is done.
    PowerOff,
}

pub(super) type Step<T = ()> = ControlFlow<Last, T>;

pub(super) struct Session<'a> {
    pub(super) agent: &'a mut Agent,
    pub(super) connection: Connection,
    greeted: bool,
    /// Whether there has been a quiet moment, or a command. What can be made ahead waits for the
    /// first, since the host waits for the agent's first word, and may have a request ready that
    /// needs none of it.
    pub(super) settled: bool,
    pub(super) phase: Phase,
    /// An identity whose hooks are waited for.
    pub(super) identifying: Option<Identifying>,
    pub(super) commands: BTreeMap<Id, Command>,
    /// Commands by the process that leads them.
    pub(super) leaders: BTreeMap<i32, Id>,
    /// Outputs that may have something to read, each at most once, in turn.
    pub(super) ready: VecDeque<(Id, Stream)>,
    /// What is left of commands that are over, to be looked at in a quiet moment.
    pub(super) ended: Vec<(Tree, Option<Instant>)>,
    pub(super) runners: Runners,
    /// The last command that was detached.
    pub(super) last_detached: u32,
}

impl<'a> Session<'a> {
    pub(super) fn new(agent: &'a mut Agent, stream: OwnedFd) -> io::Result<Self> {
        let connection = Connection::new(stream)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        agent.watch(connection.stream(), flags, Token::Connection)?;
        Ok(Self {
            agent,
            connection,
            greeted: false,
            settled: false,
            phase: Phase::Running,
            identifying: None,
            commands: BTreeMap::new(),
            leaders: BTreeMap::new(),
            ready: VecDeque::new(),
            ended: Vec::new(),
            runners: Runners::default(),
            last_detached: 0,
        })
    }

    /// Serves the connection until it ends. Whatever it leaves is the agent's to end.
    pub(super) fn run(mut self) -> io::Result<Option<End>> {
        let mut features = FEATURE_PTY | FEATURE_FREEZE | FEATURE_WARM | FEATURE_FILES;
        features |= FEATURE_SESSIONS | FEATURE_CLOCK | FEATURE_USAGE;
        if self.agent.trees.has_cgroups() {
            features |= FEATURE_CGROUP;
        }
        if self.agent.trees.has_rooms() {
            features |= FEATURE_CONFINE;
        }
        self.connection
            .send(0, &Message::Hello(Hello::ours(features)));

        let mut events = [EpollEvent::empty(); EVENTS];
        let last = loop {
            match self.turn(&mut events) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(last)) => break Ok(last),
                Err(error) => break Err(error),
            }
        };
        self.ended.extend(
            std::mem::take(&mut self.commands)
                .into_values()
                .map(|command| (command.tree, command.deadline)),
        );
        let spares = std::mem::take(&mut self.runners).into_trees();
        self.ended.extend(spares.map(|tree| (tree, None)));
        self.agent.lingering.append(&mut self.ended);
        match last? {
            Last::Gone => Ok(None),
            Last::Refuse(failure) => {
                self.connection.send(0, &Message::Error(failure));
                self.connection.finish(PATIENCE);
                Ok(None)
            }
            Last::PowerOff => {
                self.connection
                    .finish_taken(PATIENCE, &mut self.agent.scratch);
                Ok(Some(End::PowerOff))
            }
        }
    }

    /// One turn of the loop: what has happened, what follows from it, then the wait.
    fn turn(&mut self, events: &mut [EpollEvent]) -> io::Result<Step> {
        if self.connection.wants_read()
            && let last @ ControlFlow::Break(_) = self.read()
        {
            return Ok(last);
        }
        let running = self.is_awake();
        if running {
            self.pump();
        }
        if self.connection.flush().is_err() {
            // What the host said before it went still counts, but nobody is there to hear more.
            return Ok(ControlFlow::Break(Last::Gone));
        }
        if self.freeze_if_flushed() {
            // The last word has to be written.
            return Ok(ControlFlow::Continue(()));
        }

        let busy = self.connection.wants_read()
            || running && !self.ready.is_empty() && self.connection.has_room();
        let timeout = if !running {
            // Nothing is due until the host speaks: a frozen guest has no timers of its agent's.
            match busy {
                true => Some(Duration::ZERO),
                false => self.freeze_patience(),
            }
        } else if busy {
            Some(Duration::ZERO)
        } else {
            if self.commands.is_empty() && self.settled {
                // Not while a command runs, which may be waiting for this very processor.
                self.agent.settle();
                self.agent.trees.prepare();
            }
            let untidy = !self.ended.is_empty() || !self.settled && self.commands.is_empty();
            let quiet = untidy.then_some(QUIET);
            let next = self
                .next_deadline()
                .map(|next| next.saturating_duration_since(Instant::now()));
            next.into_iter().chain(quiet).min()
        };
        let count = self.agent.wait(events, timeout)?;
        if running && (count == 0 && !busy || self.ended.len() > MAX_ENDED) {
            self.tidy();
        }
        let mut signals = false;
        for event in &events[..count] {
            signals |= self.notice(*event);
        }
        if signals {
            self.agent.read_signals();
        }
        if self.agent.told_to_end {
            return Ok(ControlFlow::Break(Last::PowerOff));
        }
        // While it is frozen nothing is seen to, so that nothing is to be said of it.
        if self.is_awake() {
            if signals {
                self.reap();
            }
            self.expire();
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether anything is seen to but the host. A clone whose hooks run has only commands of which
    /// the host does not hear.
    fn is_awake(&self) -> bool {
        self.phase == Phase::Running || self.identifying.is_some()
    }

    /// Takes note of an event. Says whether it is about signals.
    fn notice(&mut self, event: EpollEvent) -> bool {
        let flags = event.events();
        match Token::unpack(event.data()) {
            Token::Signals => return true,
            // Accepted after this connection.
            Token::Source => {}
            Token::Connection => {
                let gone = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                self.connection.notice(
                    flags.contains(EpollFlags::EPOLLIN),
                    flags.contains(EpollFlags::EPOLLOUT),
                    flags.intersects(gone),
                );
            }
            Token::Hooks => {
                while let Some((number, stream)) = self.agent.hooks.accept() {
                    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
                    let event = EpollEvent::new(flags, Token::Hook(number).pack());
                    // Without a watch it is never heard, and an identity says so.
                    let _ = self.agent.epoll.add(stream, event);
                }
            }
            Token::Hook(number) => {
                self.agent.hooks.hear(number);
                self.finish_identity();
            }
            Token::Runner(number) => self.hear_runner(number),
            Token::Stream(id, Stream::Stdin) => self.resume_input(id),
            Token::Stream(id, stream) => self.look_at(id, stream),
        }
        false
    }

    /// Passes on what waits for a command to make room.
    pub(super) fn resume_input(&mut self, id: Id) {
        if self.phase == Phase::Running
            && let Some(command) = self.commands.get_mut(&id)
        {
            let fed = command.input.resume();
            self.fed(id, &fed);
        }
    }

    /// Puts an output on the list of those to be read.
    pub(super) fn look_at(&mut self, id: Id, stream: Stream) {
        if let Some(command) = self.commands.get_mut(&id)
            && let Some(output) = command.output(stream)
            && !std::mem::replace(&mut output.queued, true)
        {
            self.ready.push_back((id, stream));
        }
    }

    /// Tells the host about a command, if it knows of it.
    fn tell(&mut self, id: Id, message: &Message<'_>) {
        if let Id::Request(request) = id {
            self.connection.send(request, message);
        }
    }

    /// Reads commands' output into frames, in turn, while there is room.
    fn pump(&mut self) {
        while self.connection.has_room()
            && let Some((id, stream)) = self.ready.pop_front()
        {
            let Some(command) = self.commands.get_mut(&id) else {
                continue;
            };
            let over = command.is_over();
            let left = command.watch.output_left();
            let Some(output) = command.output(stream) else {
                continue;
            };
            output.queued = false;
            let left = match id {
                Id::Request(_) => left,
                Id::Detached(_) => u64::MAX,
            };
            let scratch = &mut self.agent.scratch;
            let result = match id {
                Id::Request(_) if output.window == 0 => {
                    // Looked at again when the host opens the window.
                    continue;
                }
                // Whether there is more than may be passed on.
                Id::Request(_) if left == 0 => match read(output.fd(), &mut scratch[..1]) {
                    Ok(1..) => {
                        self.overflow(id);
                        continue;
                    }
                    end => end,
                },
                Id::Request(request) => {
                    let limit = MAX_DATA.min(output.window as usize);
                    let limit = limit.min(usize::try_from(left).unwrap_or(usize::MAX));
                    let scratch = &mut scratch[..limit];
                    self.connection
                        .send_from(output.fd(), request, stream, scratch)
                        .inspect(|&count| output.window -= count as u32)
                }
                Id::Detached(_) => read(output.fd(), scratch),
            };
            match result {
                Ok(0) => self.end_output(id, stream),
                Ok(count) => {
                    output.queued = true;
                    command.watch.passed_on(count);
                    self.ready.push_back((id, stream));
                }
                Err(Errno::EINTR) => self.look_at(id, stream),
                // The pipe is empty. It may be held by a process that does not belong to the
                // command and was not ended with it.
                Err(Errno::EAGAIN) if over => self.end_output(id, stream),
                Err(Errno::EAGAIN) => {}
                // A terminal says EIO when the last of its users has closed it (pty(7)).
                Err(_) => self.end_output(id, stream),
            }
        }
    }

    /// A command has written more than it may: it is ended, and what is over is dropped.
    fn overflow(&mut self, id: Id) {
        let Some(command) = self.commands.get_mut(&id) else {
            return;
        };
        command.watch.hit(LimitHit::Output);
        command.kill();
        self.end_output(id, Stream::Stdout);
        self.end_output(id, Stream::Stderr);
    }

    /// An output has come to its end, or nobody wants the rest.
    fn end_output(&mut self, id: Id, stream: Stream) {
        let Some(command) = self.commands.get_mut(&id) else {
            return;
        };
        let terminal = command.terminal().is_some();
        let Some(output) = command.output(stream).take() else {
            return;
        };
        if terminal {
            // The kernel stops watching when the last duplicate is closed, and a terminal's
            // descriptor is duplicated (epoll(7), question 6).
            let _ = self.agent.epoll.delete(output.fd());
        }
        self.tell(
            id,
            &Message::Data {
                stream,
                bytes: &[],
                end: true,
            },
        );
        self.settle(id);
    }

    /// Reports a command whose outcome is due, and lets go of one of which nothing is left to say.
    fn settle(&mut self, id: Id) {
        let Some(command) = self.commands.get_mut(&id) else {
            return;
        };
        if !command.reported
            && let Some(outcome) = command.outcome()
        {
            command.reported = true;
            if command.confined {
                // Nothing of it lives on.
                command.tree.kill();
            }
            self.close_input(id);
            self.tell(id, &Message::Exited(outcome));
        }
        if let Some(command) = self.commands.get(&id)
            && command.reported
            && command.outputs_closed()
            && let Some(command) = self.commands.remove(&id)
        {
            self.ended.push((command.tree, command.deadline));
        }
    }

    fn close_input(&mut self, id: Id) {
        let Some(command) = self.commands.get_mut(&id) else {
            return;
        };
        if command.input.watched
            && let Some(fd) = command.input.fd()
        {
            let _ = self.agent.epoll.delete(fd);
        }
        command.input.close();
    }

    /// What follows when standard input has moved.
    fn fed(&mut self, id: Id, fed: &Fed) {
        let stream = Stream::Stdin;
        if let Some(bytes) = fed.window {
            self.tell(id, &Message::Window { stream, bytes });
        }
        if fed.broken {
            self.tell(id, &Message::Reset { stream });
        }
        let Some(command) = self.commands.get_mut(&id) else {
            return;
        };
        let input = &mut command.input;
        if fed.full
            && !input.watched
            && let Some(fd) = input.fd()
        {
            // Only now: most commands take what they are given.
            let token = Token::Stream(id, stream);
            input.watched = self.agent.watch(fd, EpollFlags::EPOLLOUT, token).is_ok();
        }
    }

    /// Takes leave of every process that has ended. As PID 1 that includes all orphans.
    pub(super) fn reap(&mut self) {
        let mut orphans = false;
        while let Some(reaped) = sys::reap() {
            if self.identifying.is_some() {
                self.agent.hooks.ended(&reaped);
            }
            if !self.runners.all.is_empty() {
                self.runner_process_ended(reaped.pid);
            }
            let Some(id) = self.leaders.remove(&reaped.pid) else {
                orphans = true;
                continue;
            };
            let Some(command) = self.commands.get_mut(&id) else {
                continue;
            };
            command.exited(reaped);
            if command.is_over() {
                self.drain(id);
            }
            self.settle(id);
        }
        self.finish_identity();
        if orphans {
            // One of them may have been the last of something.
            self.agent.tend_lingering(Instant::now());
        }
    }

    /// Looks at the outputs of a command that is over for the last time.
    fn drain(&mut self, id: Id) {
        self.look_at(id, Stream::Stdout);
        self.look_at(id, Stream::Stderr);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let commands = self
            .commands
            .values()
            .flat_map(|command| [command.deadline, command.watch.next]);
        let left = self.ended.iter().chain(&self.agent.lingering);
        commands
            .chain(left.map(|(_, deadline)| *deadline))
            .flatten()
            .chain(self.runners.next_deadline())
            .chain(self.identifying.as_ref().map(|it| it.deadline))
            .min()
    }

    /// Ends what has lived as long as it may.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        if self.next_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let mut ended = Vec::new();
        for (&id, command) in &mut self.commands {
            if command.deadline.is_some_and(|deadline| deadline <= now) {
                command.time_out();
                ended.push(id);
            } else if command.look(now) {
                ended.push(id);
            }
        }
        for id in ended {
            self.drain(id);
            self.settle(id);
        }
        self.expire_runners(now);
        self.finish_identity();
        self.tidy();
        self.agent.tend_lingering(now);
    }

    /// Does what has to be done at some time.
    pub(super) fn tidy(&mut self) {
        for (mut tree, deadline) in self.ended.drain(..) {
            if !tree.clear() {
                self.agent.lingering.push((tree, deadline));
            }
        }
        self.agent.trees.prepare();
        self.settled = true;
        self.runners.stock_up(self.agent);
    }

    /// Reads once from the host and does what it says.
    fn read(&mut self) -> Step {
        let count = match self.connection.read(&mut self.agent.scratch) {
            Read::End => return ControlFlow::Break(Last::Gone),
            Read::Nothing => return ControlFlow::Continue(()),
            Read::Bytes(count) => count,
        };
        let mut decoder = std::mem::take(&mut self.connection.decoder);
        let mut secret = false;
        loop {
            match decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => match Message::decode(frame) {
                    Ok(message) => {
                        secret |= message.kind() == Kind::Identify;
                        self.receive(frame.request, message)?;
                    }
                    Err(malformed) => return refuse(&malformed),
                },
                Err(malformed) => return refuse(&malformed),
            }
        }
        if secret {
            decoder.wipe();
            self.agent.scratch[..count].fill(0);
        }
        self.connection.decoder = decoder;
        ControlFlow::Continue(())
    }

    fn receive(&mut self, request: u32, message: Message<'_>) -> Step {
        let kind = message.kind();
        if !self.greeted {
            let Message::Hello(hello) = message else {
                return refuse(&Malformed::Unexpected { kind });
            };
            if let Err(mismatch) = hello.agree() {
                let failure = Failure::new(ErrorCode::Version, mismatch.to_string());
                return ControlFlow::Break(Last::Refuse(failure));
            }
            self.greeted = true;
            return ControlFlow::Continue(());
        }
        if self.phase != Phase::Running {
            return self.receive_frozen(request, message);
        }
        if !matches!(message, Message::Ping | Message::Clock { .. }) {
            self.agent.settle();
        }
        let id = Id::Request(request);
        match message {
            Message::Freeze => {
                let since = Instant::now();
                self.phase = Phase::Freezing { request, since };
            }
            Message::Identify(identity) => self.identify(request, identity.into_owned()),
            Message::Clock { nanoseconds } => {
                let time = Duration::from_nanos(nanoseconds);
                let answer = match self.agent.identities.set_clock(time) {
                    Ok(()) => Message::ClockSet,
                    Err(failure) => Message::Error(failure),
                };
                self.connection.send(request, &answer);
            }
            Message::Ping => self.connection.send(request, &Message::Pong),
            Message::PowerOff => {
                self.connection.send(request, &Message::PoweringOff);
                return ControlFlow::Break(Last::PowerOff);
            }
            Message::Error(_) if request == 0 => return ControlFlow::Break(Last::Gone),
            Message::Spawn(_) | Message::Warm(_) | Message::Run(_)
                if self.commands.contains_key(&id) || self.runners.is_waiting(request) =>
            {
                return refuse(&Malformed::Duplicate { request });
            }
            Message::Warm(warm) => {
                let answer = match self.warm(request, &warm) {
                    Ok(pid) => Message::Started { pid },
                    Err(failure) => Message::Error(failure),
                };
                self.connection.send(request, &answer);
            }
            Message::Run(warm) => self.run_program(request, warm.into_owned()),
            Message::Spawn(spawn) => {
                let answer = match self.spawn(id, &spawn) {
                    Ok(pid) => Message::Started { pid },
                    Err(failure) => Message::Error(failure),
                };
                self.connection.send(request, &answer);
            }
            Message::Data {
                stream: Stream::Stdin,
                bytes,
                end,
            } => {
                // It may have been on its way while its command ended. So below.
                let Some(command) = self.commands.get_mut(&id) else {
                    return ControlFlow::Continue(());
                };
                match command.input.receive(bytes, end) {
                    Ok(fed) => self.fed(id, &fed),
                    Err(_) => {
                        return refuse(&Malformed::Window {
                            request,
                            stream: Stream::Stdin,
                        });
                    }
                }
            }
            Message::Window {
                stream: stream @ (Stream::Stdout | Stream::Stderr),
                bytes,
            } => {
                if let Some(command) = self.commands.get_mut(&id)
                    && let Some(output) = command.output(stream)
                {
                    let window = output.window.checked_add(bytes).filter(|&it| it <= WINDOW);
                    let Some(window) = window else {
                        return refuse(&Malformed::Window { request, stream });
                    };
                    output.window = window;
                    self.look_at(id, stream);
                }
            }
            Message::Reset {
                stream: stream @ (Stream::Stdout | Stream::Stderr),
            } => {
                self.end_output(id, stream);
            }
            Message::Signal { number } => {
                if let Some(command) = self.commands.get(&id) {
                    sys::signal_group(command.leader, number);
                }
            }
            Message::Resize(size) => {
                if let Some(command) = self.commands.get(&id)
                    && let Some(terminal) = command.terminal()
                {
                    // A terminal takes any size.
                    let _ = sys::set_terminal_size(terminal, size);
                }
            }
            Message::Measure => {
                // Its end, if that was first, is the answer.
                if let Some(command) = self.commands.get(&id).filter(|it| !it.reported) {
                    let usage = Message::Measured(command.usage());
                    self.connection.send(request, &usage);
                }
            }
            Message::Kill => {
                if let Some(command) = self.commands.get_mut(&id) {
                    command.kill();
                    self.drain(id);
                    self.settle(id);
                } else {
                    self.forget_program(request);
                }
            }
            _ => return refuse(&Malformed::Unexpected { kind }),
        }
        ControlFlow::Continue(())
    }

    /// Starts a command.
    pub(super) fn spawn(&mut self, id: Id, spawn: &Spawn) -> Result<u32, Failure> {
        self.check_room()?;
        // Before anything is made for a command that cannot be.
        spawn.validate()?;
        let start = Instant::now();
        let mut tree = self.agent.trees.plant(spawn)?;
        let (pid, streams) = self
            .agent
            .spawner
            .spawn(
                spawn,
                &mut tree,
                self.agent.identities.environment(),
                Purpose::Command,
            )
            .inspect_err(|_| {
                self.agent.trees.prepare();
            })?;
        self.register(id, pid, tree, streams, start, spawn)?;
        // A process's number is positive.
        Ok(pid.unsigned_abs())
    }
}

pub(super) fn refuse(malformed: &Malformed) -> Step {
    let failure = Failure::new(ErrorCode::Malformed, malformed.to_string());
    ControlFlow::Break(Last::Refuse(failure))
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Session")
            .field("commands", &self.commands)
            .finish_non_exhaustive()
    }
}
