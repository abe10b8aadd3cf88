//! Calls come in, answers go out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::vec;

use super::machine::Machine;
use crate::protocol::{
    Answer, Call, FrameError, Message, Refusal, RefusalKind, Request, UNANSWERED,
};
use crate::wire;

/// The one that the worker works for. A clone is another handle.
#[derive(Clone, Debug)]
pub(super) struct Owner(Arc<OwnedFd>);

/// Why the worker stops to serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the socket cannot be used: {0}")]
    Socket(#[from] io::Error),
}

impl Owner {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(Arc::new(socket))
    }

    /// Tells it something. If it is gone, so is this process in a moment.
    pub(super) fn tell(&self, message: &Message) {
        if let Ok(frame) = message.encode() {
            let _ = wire::send(self.0.as_fd(), &frame, &[], true);
        }
    }

    /// Answers the call `id`, if anybody waits for that.
    pub(super) fn answer(&self, id: u32, outcome: Result<Answer, Refusal>) {
        if id != UNANSWERED {
            self.tell(&Message::Answer { id, outcome });
        }
    }
}

/// The descriptors of a call: as many as it takes.
#[derive(Debug)]
pub(super) struct Files(vec::IntoIter<OwnedFd>);

impl Files {
    /// The next one.
    pub(super) fn next(&mut self) -> Result<OwnedFd, Refusal> {
        self.0
            .next()
            .ok_or_else(|| Refusal::new(RefusalKind::Internal, "a descriptor is missing"))
    }

    /// The next one, as a file.
    pub(super) fn file(&mut self) -> Result<File, Refusal> {
        self.next().map(File::from)
    }
}

/// Does what the owner asks for until it is gone.
pub(super) fn serve(owner: &Owner) -> Result<(), ServeError> {
    let mut machine = None;
    loop {
        let received = wire::receive(owner.0.as_fd(), true, true)?;
        if received.frame.is_empty() {
            return Ok(());
        }
        if received.is_cut_off {
            let call = Call::decode_alone(&received.frame)?;
            drop(received);
            let text = "the worker has not descriptors enough for what it was handed";
            owner.answer(call.id, Err(Refusal::new(RefusalKind::NoRoom, text)));
            continue;
        }
        let call = Call::decode(&received.frame, received.descriptors.len())?;
        let files = Files(received.descriptors.into_iter());
        if let Some(outcome) = handle(owner, &mut machine, call.id, &call.request, files) {
            owner.answer(call.id, outcome);
        }
    }
}

/// Does what is asked for. `None`: the answer comes later.
fn handle(
    owner: &Owner,
    machine: &mut Option<Machine>,
    id: u32,
    request: &Request,
    files: Files,
) -> Option<Result<Answer, Refusal>> {
    let made = match (request, &machine) {
        (Request::Boot(_) | Request::Restore(_), Some(_)) => {
            let text = "this worker has its VM already";
            return Some(Err(Refusal::new(RefusalKind::Internal, text)));
        }
        (Request::Boot(boot), None) => Machine::boot(owner.clone(), boot, files),
        (Request::Restore(restore), None) => Machine::restore(owner.clone(), restore, files),
        (_, None) => {
            let text = "this worker has no VM yet";
            return Some(Err(Refusal::new(RefusalKind::Internal, text)));
        }
        (_, Some(_)) => return machine.as_mut()?.handle(id, request, files).transpose(),
    };
    Some(made.map(|made| {
        *machine = Some(made);
        Answer::Done
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a worker without a VM says to this frame; `None` if that is its end.
    fn said(frame: &[u8]) -> (Option<Message>, Result<(), ServeError>) {
        let (ours, theirs) = wire::pair().unwrap();
        wire::send(ours.as_fd(), frame, &[], true).unwrap();
        let worker = std::thread::spawn(|| serve(&Owner::new(theirs)));
        let received = loop {
            match wire::receive(ours.as_fd(), false, false) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && !worker.is_finished() =>
                {
                    std::thread::yield_now();
                }
                other => break other,
            }
        };
        drop(ours);
        let message = received
            .ok()
            .and_then(|received| Message::decode(&received.frame).ok());
        (message, worker.join().unwrap())
    }

    #[test]
    fn without_a_vm_there_is_nothing_to_do() {
        let call = Call {
            id: 5,
            request: Request::Pause,
        };
        let (message, end) = said(&call.encode().unwrap());
        let Some(Message::Answer { id: 5, outcome }) = message else {
            panic!("{message:?}");
        };
        assert_eq!(outcome.unwrap_err().kind, RefusalKind::Internal);
        // Then its owner was gone.
        end.unwrap();
    }

    #[test]
    fn who_does_not_keep_to_the_protocol_is_not_served() {
        for frame in [&b"x"[..], &[1, 200, 200], &[1; 100]] {
            let (message, end) = said(frame);
            assert_eq!(message, None);
            assert!(matches!(end, Err(ServeError::Frame(_))), "{end:?}");
        }
    }
}
