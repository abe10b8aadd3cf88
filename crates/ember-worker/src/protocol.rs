//! What goes between a worker and its owner: calls and messages, each in a frame of its own.
//!
//! A frame is the version and then [postcard](https://postcard.jamesmunns.com/wire-format); the
//! socket keeps frames apart. What is large goes in files that the owner made and hands over beside
//! the frame. Descriptors only ever go to the worker: what it could send would have to be treated as
//! hostile in ways that are easily forgotten (a stream that is made blocking from the other side, a
//! file whose reads never end).
//!
//! Nothing here does I/O. Each side takes the other's frames for hostile: the worker has been exposed
//! to its guest, and what is decoded allocates in proportion to the frame.

use ember_vmm::ExitReason;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Raise it with every change to what is in a frame. Both sides come from one build, so that it only
/// ever differs by mistake.
pub const VERSION: u8 = 2;

/// The longest frame in bytes.
pub const MAX_FRAME: usize = 64 << 10;

/// The most disks that a VM can be given.
pub const MAX_DISKS: usize = 16;

/// The most descriptors beside a frame: those of [`Boot`] or [`Restore`] with all disks.
pub const MAX_DESCRIPTORS: usize = 4 + MAX_DISKS;

/// The most of a console in one frame, and all that is kept of it.
pub const CONSOLE_BYTES: usize = 16 << 10;

/// The most of a state, or of a set of pages, that is read from a file: far more than any has.
pub const MAX_STATE: u64 = 64 << 20;

/// The longest text that explains something.
pub const MAX_TEXT: usize = 4 << 10;

/// The number of a call that nobody waits for.
pub const UNANSWERED: u32 = 0;

/// A vsock port: of the host's, that whose stream is the channel that the owner hands over, which is
/// that of the guest's agent.
pub type Port = u32;

/// Something for the worker to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// What its answer refers to, or [`UNANSWERED`].
    pub id: u32,
    /// What to do.
    pub request: Request,
}

/// What a worker can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make a VM that boots a kernel. Once, as the first call.
    Boot(Boot),
    /// Make a VM that goes on from a saved state. Once, as the first call.
    Restore(Restore),
    /// Let the VM run for the first time, with this generation id if it is to have a new one.
    Start {
        /// See [`ember_vmm::Vm::generation_id`].
        generation_id: Option<[u8; 16]>,
    },
    /// Tell the guest that it has another generation id than before.
    Announce,
    /// Hold the VM still.
    Pause,
    /// Let it go on.
    Resume,
    /// Bring in what will be touched. Beside it: a file with the encoded working set.
    Prefetch,
    /// Ask the guest for so much of its memory.
    SetBalloon {
        /// How much, in bytes.
        bytes: u64,
    },
    /// Say how much memory is in the balloon: [`Answer::Bytes`].
    Balloon,
    /// Take the VM's state while it goes on: [`Answer::Saved`]. Beside it: the file that its memory
    /// is copied to, and an empty one for the rest.
    Save,
    /// Wait until all memory is copied that the [`Save`](Self::Save) with this number began to.
    FinishCopy {
        /// Its number.
        save: u32,
    },
    /// Give such a copy up.
    DropCopy {
        /// Its number.
        save: u32,
    },
    /// Say which pages the guest has changed: [`Answer::Pages`]. Beside it: an empty file for them.
    CopiedPages,
    /// Say which pages were brought in: [`Answer::Pages`], of 0 bytes if that is not known. Beside
    /// it: an empty file for them.
    PagedIn,
    /// Open a stream to this port of the guest. Beside it: the device's end of it. The answer comes
    /// when the guest has accepted or refused.
    Connect {
        /// The guest's.
        port: Port,
    },
}

/// A VM that boots. Beside it: KVM, the kernel, the initramfs, the device's end of the channel, and
/// the disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// See [`ember_vmm::VmConfig`].
    pub vcpus: u8,
    /// In bytes.
    pub memory_bytes: u64,
    /// The kernel's.
    pub command_line: String,
    /// `/dev/vda` first.
    pub disks: Vec<Disk>,
    /// Whether there is a balloon, and it reports free memory.
    pub balloon: bool,
    /// The first one, if it has such a device.
    pub generation_id: Option<[u8; 16]>,
    /// The port that the guest's agent calls.
    pub port: Port,
}

/// A VM that goes on. Beside it: KVM, the encoded state, the memory, the device's end of the channel,
/// and the disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// In the order that they had.
    pub disks: Vec<Disk>,
    /// The port that the guest's agent had called.
    pub port: Port,
    /// If memory is to be brought in page by page when it is touched: so many pages at a time.
    pub window_pages: Option<u64>,
    /// See [`ember_vmm::RestoreConfig::mergeable`].
    pub mergeable: bool,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Whether the guest may only read.
    pub read_only: bool,
    /// At most 20 bytes.
    pub serial: String,
}

/// Something that the owner is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// A call is done, or is not.
    Answer {
        /// The call's number.
        id: u32,
        /// What came of it.
        outcome: Result<Answer, Refusal>,
    },
    /// The guest wrote this on its console.
    Console(ByteBuf),
    /// The VM has ended.
    Ended {
        /// Why.
        reason: ExitReason,
        /// The console's last output, all that is kept of it.
        console: ByteBuf,
    },
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is done, and this is the number that was asked for.
    Bytes(u64),
    /// The state was taken.
    Saved {
        /// How many bytes of it are in the file.
        state_bytes: u64,
        /// Whether memory is still being copied.
        copying: bool,
        /// For how many nanoseconds the VM stood still.
        paused: u64,
    },
    /// The pages are in the file.
    Pages {
        /// So many bytes of them.
        bytes: u64,
    },
}

/// Why a call is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What sort of reason.
    pub kind: RefusalKind,
    /// The reason.
    pub text: String,
}

/// What sort of reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// What was asked for cannot be.
    Invalid,
    /// The host cannot do it.
    Host,
    /// There is no room for what was to be kept.
    NoRoom,
    /// The VM has ended.
    Ended,
    /// A mistake of ours.
    Internal,
    /// There is no such thing in the guest.
    Absent,
}

/// Bytes that are no frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Too many of them.
    #[error("a frame of {0} bytes is longer than the {MAX_FRAME} there can be")]
    TooLong(usize),
    /// Another version.
    #[error("a frame of version {0:?} is not of version {VERSION}")]
    Version(Option<u8>),
    /// Not what such a frame consists of.
    #[error("a frame is damaged")]
    Damaged(#[source] postcard::Error),
    /// There is more than one frame has.
    #[error("something follows a frame")]
    Excess,
    /// Something in it is more than there can be.
    #[error("a frame has more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there can be.
        limit: usize,
    },
    /// The descriptors beside it are not those that belong to it.
    #[error("a frame came with {found} descriptors and takes {expected}")]
    Descriptors {
        /// How many it takes.
        expected: usize,
        /// How many came.
        found: usize,
    },
}

impl Request {
    /// How many descriptors go beside it.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Boot(boot) => 4 + boot.disks.len(),
            Self::Restore(restore) => 4 + restore.disks.len(),
            Self::Save => 2,
            Self::Prefetch | Self::CopiedPages | Self::PagedIn | Self::Connect { .. } => 1,
            _ => 0,
        }
    }

    fn disks(&self) -> &[Disk] {
        match self {
            Self::Boot(boot) => &boot.disks,
            Self::Restore(restore) => &restore.disks,
            _ => &[],
        }
    }
}

impl Call {
    /// Writes it as a frame.
    ///
    /// # Errors
    /// If it is more than a frame holds.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        at_most("disks", MAX_DISKS, self.request.disks().len())?;
        encode(self)
    }

    /// Reads one that came with `descriptors` of them.
    ///
    /// # Errors
    /// If these bytes are no frame of a call, or it takes other descriptors.
    pub fn decode(frame: &[u8], descriptors: usize) -> Result<Self, FrameError> {
        let call = Self::decode_alone(frame)?;
        let expected = call.request.descriptors();
        if expected != descriptors {
            return Err(FrameError::Descriptors {
                expected,
                found: descriptors,
            });
        }
        Ok(call)
    }

    /// Reads one whose descriptors were lost on the way.
    ///
    /// # Errors
    /// If these bytes are no frame of a call.
    pub fn decode_alone(frame: &[u8]) -> Result<Self, FrameError> {
        let call: Self = decode(frame)?;
        at_most("disks", MAX_DISKS, call.request.disks().len())?;
        Ok(call)
    }
}

impl Message {
    /// Writes it as a frame.
    ///
    /// # Errors
    /// If it is more than a frame holds.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        encode(self)
    }

    /// Reads one.
    ///
    /// # Errors
    /// If these bytes are no frame of a message.
    pub fn decode(frame: &[u8]) -> Result<Self, FrameError> {
        let message: Self = decode(frame)?;
        if let Self::Console(bytes) | Self::Ended { console: bytes, .. } = &message {
            at_most("bytes of a console", CONSOLE_BYTES, bytes.len())?;
        }
        Ok(message)
    }
}

impl Refusal {
    /// A reason that fits into a frame.
    pub fn new(kind: RefusalKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: shortened(text.into()),
        }
    }
}

/// `text`, or its beginning if it is longer than a text can be.
pub fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

fn at_most(what: &'static str, limit: usize, found: usize) -> Result<(), FrameError> {
    if found > limit {
        return Err(FrameError::Limit { what, limit });
    }
    Ok(())
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let frame = postcard::to_extend(value, vec![VERSION]).map_err(FrameError::Damaged)?;
    if frame.len() > MAX_FRAME {
        return Err(FrameError::TooLong(frame.len()));
    }
    Ok(frame)
}

fn decode<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T, FrameError> {
    if frame.len() > MAX_FRAME {
        return Err(FrameError::TooLong(frame.len()));
    }
    let (version, rest) = match frame.split_first() {
        Some((&VERSION, rest)) => (VERSION, rest),
        other => return Err(FrameError::Version(other.map(|(version, _)| *version))),
    };
    debug_assert_eq!(version, VERSION);
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(FrameError::Excess),
        Err(error) => Err(FrameError::Damaged(error)),
    }
}

#[cfg(test)]
mod tests;
