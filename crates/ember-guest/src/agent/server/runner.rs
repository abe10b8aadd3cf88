//! Runners: interpreters that are warm, and the processes that they have ready.
//!
//! What a runner and the agent say to each other is written down in `packs/runners/python.py`. A
//! runner runs with the rights of the programs that it runs, so nothing that it says is believed:
//! who a spare is says the kernel, and that it is a child of the agent's is checked.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    UnixCredentials, recvmsg, sendmsg, socketpair,
};

use crate::agent::room::Room;
use crate::agent::sys;
use crate::agent::tree::Tree;
use crate::agent::users::User;
use crate::protocol::Warm;

/// How long a runner may take to make a spare. It only has to fork.
pub(super) const BIRTH: Duration = Duration::from_secs(10);

mod kind {
    pub(super) const SETUP: u8 = 1;
    pub(super) const READY: u8 = 2;
    pub(super) const FORK: u8 = 3;
    pub(super) const SPARE: u8 = 4;
    pub(super) const WAITING: u8 = 5;
    pub(super) const RUN: u8 = 6;
}

const HEADER: usize = 8;
/// The payload is in a file that comes along.
const IN_FILE: u8 = 1;
/// A longer payload goes into a file: this much a socket takes at once, however small the kernel's
/// usual buffer.
const MAX_INLINE: usize = 64 * 1024;
/// The most descriptors that the kernel lets a message carry (`SCM_MAX_FD`). With room for less,
/// those that find room would be lost track of.
const MAX_FDS: usize = 253;
/// The program's streams are a terminal.
const TERMINAL: u8 = 1;

/// A runner, from its start to its end.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) name: String,
    /// Its process.
    pub(super) leader: i32,
    pub(super) user: User,
    /// Its programs are confined.
    pub(super) confined: bool,
    control: OwnedFd,
    /// The request to be told when it is warm. None if that was told, or the request is another
    /// machine's.
    pub(super) announce: Option<u32>,
    warm: bool,
    pub(super) stage: Stage,
    /// Programs that wait for a spare, with their requests.
    pub(super) waiting: VecDeque<Program>,
    /// Something has come from it while nobody could listen.
    pub(super) unheard: bool,
}

/// How far the next process is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Not asked for.
    None,
    /// Asked for, and due at that time.
    Asked(Place, Instant),
    /// It has a socket, but has not said that it waits.
    Born(OwnedFd, Place, Instant),
    /// It waits.
    Waiting(Spare),
}

/// Where a process is to be.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) tree: Tree,
    /// It has to be in the tree's room.
    pub(super) confined: bool,
}

/// A process that waits for a program.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) pid: i32,
    socket: OwnedFd,
    pub(super) tree: Tree,
}

/// A program that is to be run.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) request: u32,
    pub(super) warm: Warm,
    pub(super) since: Instant,
}

/// What a runner did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    /// It is warm: a spare can be asked for.
    Warm,
    /// A spare has a socket, which has to be listened to.
    Born,
    /// That process says that it waits.
    Waiting(i32),
    /// That process has ended.
    Stillborn,
}

/// A process that cannot be a spare.
#[derive(Debug)]
pub(super) struct NotThere {
    pub(super) tree: Tree,
    /// It was in its room, and has ended.
    pub(super) inside: bool,
}

/// A runner that does not do what a runner does.
#[derive(Debug, thiserror::Error)]
#[error("the runner is broken: {0}")]
pub(super) struct Broken(&'static str);

/// A socket for a runner, and the agent's end of it.
pub(super) fn control() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .and_then(|(ours, theirs)| {
        // Only this end: a runner waits.
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&theirs, FcntlArg::F_SETFL(OFlag::O_RDWR))?;
        Ok((ours, theirs))
    })
}

impl Runner {
    pub(super) fn new(
        name: String,
        leader: i32,
        user: User,
        confined: bool,
        control: OwnedFd,
        request: u32,
    ) -> Self {
        Self {
            name,
            leader,
            user,
            confined,
            control,
            announce: Some(request),
            warm: false,
            stage: Stage::None,
            waiting: VecDeque::new(),
            unheard: false,
        }
    }

    pub(super) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Has it run code first.
    pub(super) fn set_up(&self, code: &[u8]) -> io::Result<()> {
        send(self.control.as_fd(), kind::SETUP, code, &[])
    }

    /// Whether there is no spare and none is on its way.
    pub(super) fn is_to_be_asked(&self) -> bool {
        self.warm && matches!(self.stage, Stage::None)
    }

    /// Asks for a spare in this place. If it is confined there, it has to hand the filter to the
    /// kernel.
    pub(super) fn ask(&mut self, place: Place, filter: &[u8], now: Instant) {
        let room = place.tree.room().filter(|_| place.confined);
        let fds: Vec<RawFd> = room
            .into_iter()
            .flat_map(Room::all)
            .map(|fd| fd.as_raw_fd())
            .collect();
        let filter = if fds.is_empty() { &[][..] } else { filter };
        // If it cannot take that, it has ended, which is noticed.
        let _ = send(self.control.as_fd(), kind::FORK, filter, &fds);
        self.stage = Stage::Asked(place, now + BIRTH);
    }

    /// When a spare is overdue.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Asked(_, due) | Stage::Born(_, _, due) => Some(due),
            _ => None,
        }
    }

    /// When the spare was asked for that is on its way.
    pub(super) fn asked(&self) -> Option<Instant> {
        self.deadline().and_then(|due| due.checked_sub(BIRTH))
    }

    /// It could make a spare and has none.
    pub(super) fn lacks_spare(&self) -> bool {
        self.warm && !matches!(self.stage, Stage::Waiting(_))
    }

    /// The socket of a spare that has not said anything.
    pub(super) fn newborn(&self) -> Option<BorrowedFd<'_>> {
        match &self.stage {
            Stage::Born(socket, ..) => Some(socket.as_fd()),
            _ => None,
        }
    }

    /// Listens to the runner and to its newborn spare once each.
    pub(super) fn hear(&mut self) -> Result<Heard, Broken> {
        match receive(self.control.as_fd())?.message() {
            Some(Message {
                kind: kind::READY, ..
            }) if !self.warm => {
                self.warm = true;
                return Ok(Heard::Warm);
            }
            Some(Message {
                kind: kind::SPARE,
                fd: Some(socket),
                ..
            }) => {
                return match std::mem::replace(&mut self.stage, Stage::None) {
                    Stage::Asked(place, due) => {
                        self.stage = Stage::Born(socket, place, due);
                        Ok(Heard::Born)
                    }
                    other => {
                        self.stage = other;
                        Err(Broken("it made a process that nobody asked for"))
                    }
                };
            }
            Some(_) => return Err(Broken("it sent what no runner sends")),
            None => {}
        }
        let Some(socket) = self.newborn() else {
            return Ok(Heard::Nothing);
        };
        match receive(socket)? {
            Received::Message(Message {
                kind: kind::WAITING,
                pid: Some(pid),
                ..
            }) => Ok(Heard::Waiting(pid)),
            Received::Message(_) => Err(Broken("its process sent what none sends")),
            Received::Nothing => Ok(Heard::Nothing),
            Received::End => Ok(Heard::Stillborn),
        }
    }

    /// Makes the newborn, which is this process, a spare, if it is where it has to be. Else it is
    /// none.
    pub(super) fn adopt(&mut self, pid: i32) -> Result<(), NotThere> {
        let Stage::Born(..) = self.stage else {
            return Ok(());
        };
        let Stage::Born(socket, mut place, _) = std::mem::replace(&mut self.stage, Stage::None)
        else {
            return Ok(());
        };
        let inside = !place.confined || place.tree.room().is_some_and(|room| room.holds(pid));
        if inside && place.tree.adopt(pid).is_ok() {
            let tree = place.tree;
            self.stage = Stage::Waiting(Spare { pid, socket, tree });
            return Ok(());
        }
        Err(NotThere {
            tree: place.tree,
            inside,
        })
    }

    /// Takes the spare, if one waits.
    pub(super) fn take_spare(&mut self) -> Option<Spare> {
        match std::mem::replace(&mut self.stage, Stage::None) {
            Stage::Waiting(spare) => Some(spare),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Forgets the process that there is or is to be. Its tree is the caller's to end.
    pub(super) fn lose(&mut self) -> Option<Tree> {
        match std::mem::replace(&mut self.stage, Stage::None) {
            Stage::None => None,
            Stage::Asked(place, _) | Stage::Born(_, place, _) => Some(place.tree),
            Stage::Waiting(spare) => Some(spare.tree),
        }
    }

    /// The spare is this process.
    pub(super) fn spare_is(&self, pid: i32) -> bool {
        matches!(&self.stage, Stage::Waiting(spare) if spare.pid == pid)
    }
}

impl Spare {
    /// Gives it a program. It needs no more of the agent after that.
    pub(super) fn run(
        &self,
        warm: &Warm,
        environment: &[Vec<u8>],
        streams: [RawFd; 3],
    ) -> io::Result<()> {
        let command = &warm.command;
        let options = if command.pty.is_some() { TERMINAL } else { 0 };
        let cwd = match &command.cwd[..] {
            b"" => b"/",
            cwd => cwd,
        };
        // Each is validated to have no zero byte.
        let ended = |list: &[Vec<u8>]| {
            let mut all = Vec::with_capacity(list.iter().map(|item| item.len() + 1).sum());
            for item in list {
                all.extend_from_slice(item);
                all.push(0);
            }
            all
        };
        let mut payload = vec![options];
        for field in [cwd, &warm.code, &ended(&command.argv), &ended(environment)] {
            // Validated to be far shorter than 4 GiB.
            payload.extend_from_slice(&(field.len() as u32).to_le_bytes());
            payload.extend_from_slice(field);
        }
        send(self.socket.as_fd(), kind::RUN, &payload, &streams)
    }
}

/// Sends a message as a whole. A socket that does not take it belongs to a process that does not
/// read, since each gets one message at a time.
fn send(socket: BorrowedFd<'_>, kind: u8, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let mut fds = fds.to_vec();
    let file = match payload.len() {
        0..=MAX_INLINE => None,
        _ => {
            let file = File::from(memfd_create(c"ember-program", MFdFlags::MFD_CLOEXEC)?);
            file.write_all_at(payload, 0)?;
            fds.push(file.as_raw_fd());
            Some(file)
        }
    };
    let flags = if file.is_some() { IN_FILE } else { 0 };
    // At most `MAX_CODE` and `MAX_SPAWN`, and their lengths.
    let length = (payload.len() as u32).to_le_bytes();
    let header = [
        kind, flags, 0, 0, length[0], length[1], length[2], length[3],
    ];
    let inline = if file.is_some() { &[][..] } else { payload };
    let parts = [IoSlice::new(&header), IoSlice::new(inline)];
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags, None)?;
    match sent == HEADER + inline.len() {
        true => Ok(()),
        false => Err(Errno::EAGAIN.into()),
    }
}

/// What a runner or a spare has sent.
struct Message {
    kind: u8,
    fd: Option<OwnedFd>,
    pid: Option<i32>,
}

/// What a read brought.
enum Received {
    Message(Message),
    Nothing,
    End,
}

impl Received {
    /// Of a runner, whose end is noticed as that of a process.
    fn message(self) -> Option<Message> {
        match self {
            Self::Message(message) => Some(message),
            Self::Nothing | Self::End => None,
        }
    }
}

/// Reads one message, all of which are of the header's length.
fn receive(socket: BorrowedFd<'_>) -> Result<Received, Broken> {
    let mut header = [0; HEADER];
    let mut parts = [IoSliceMut::new(&mut header)];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS], UnixCredentials);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let (count, fds, pid) = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Ok(received) => {
                let mut fds = Vec::new();
                let mut pid = None;
                for message in received.cmsgs().into_iter().flatten() {
                    match message {
                        ControlMessageOwned::ScmRights(raw) => {
                            fds.extend(raw.into_iter().map(sys::received));
                        }
                        ControlMessageOwned::ScmCredentials(sender) => pid = Some(sender.pid()),
                        _ => {}
                    }
                }
                break (received.bytes, fds, pid);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Received::Nothing),
            // It ended with something unread.
            Err(Errno::ECONNRESET) => return Ok(Received::End),
            Err(_) => return Err(Broken("its socket cannot be read")),
        }
    };
    match count {
        0 => Ok(Received::End),
        HEADER if header[1..] == [0; HEADER - 1] && fds.len() <= 1 => {
            Ok(Received::Message(Message {
                kind: header[0],
                fd: fds.into_iter().next(),
                pid,
            }))
        }
        _ => Err(Broken("it sent half a message")),
    }
}
