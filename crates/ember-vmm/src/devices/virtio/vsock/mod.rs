//! The virtio socket device (specification section 5.10): streams between the guest's `AF_VSOCK`
//! sockets and the host, with the monitor itself as the host's end.
//!
//! Both sides can open streams. The guest reaches host ports (context id 2) that were given to
//! [`VsockHandle::listen`]; the host reaches guest ports by [`VsockHandle::connect`]. Either way
//! the host's end is one half of a UNIX socket pair, an ordinary [`UnixStream`]: it can be read and
//! written, shut down one way, polled, or handed to an async runtime, and closing it closes the
//! stream. Data goes between guest memory and that socket without being copied in between.

mod connection;
mod device;
mod given;
mod mailbox;
mod packet;
mod receive;
mod returns;
mod stream;
mod streams;
#[cfg(test)]
mod tests;
mod timer;
mod transfer;

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

pub use given::GivenEnds;
use mailbox::Mailbox;

#[cfg_attr(
    not(test),
    allow(unused_imports, reason = "built together with the VM")
)]
pub(crate) use device::VsockDevice;

/// The smallest context id a guest can have; those below have fixed meanings.
pub const MIN_GUEST_CID: u32 = 3;

/// Configuration of the socket device.
#[derive(Clone, Debug)]
pub struct VsockConfig {
    /// The guest's context id, at least [`MIN_GUEST_CID`]. Only this VM ever sees it, so all VMs
    /// can have the same.
    pub guest_cid: u32,
    /// How many streams there can be at once. Further ones are refused.
    pub max_streams: usize,
    /// How many bytes of the guest's are kept for a stream whose host end is not read; the guest
    /// has to wait when they are used up. Memory is taken only while the host's end is not read.
    pub buffer_bytes: u32,
    /// How long the guest may take to answer [`VsockHandle::connect`].
    pub connect_timeout: Duration,
    /// How long the guest may take to confirm the end of a stream before it is forgotten.
    pub close_timeout: Duration,
    /// In a restored VM: the host's ports whose open streams go on, with new host's ends that
    /// [`VsockHandle::take_carried`] gives. All other streams of the guest's are reset.
    pub carried_ports: Vec<u32>,
    /// The device's ends of streams whose host's ends somebody has already.
    pub given: GivenEnds,
}

impl VsockConfig {
    /// The usual limits for a guest with the context id `guest_cid`.
    pub fn new(guest_cid: u32) -> Self {
        Self {
            guest_cid,
            max_streams: 1024,
            buffer_bytes: 256 * 1024,
            connect_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(8),
            carried_ports: Vec::new(),
            given: GivenEnds::default(),
        }
    }
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self::new(MIN_GUEST_CID)
    }
}

/// Who has asked for a stream.
enum Caller {
    /// Is called with the host's end, or with why there is none.
    Wants(Box<dyn FnOnce(Result<UnixStream, ConnectError>) + Send>),
    /// Has the host's end already, and has given the device's.
    Gives(UnixStream, Box<dyn FnOnce(Result<(), ConnectError>) + Send>),
}

impl Caller {
    /// There is no stream.
    fn refuse(self, why: ConnectError) {
        match self {
            Self::Wants(done) => done(Err(why)),
            Self::Gives(_, done) => done(Err(why)),
        }
    }
}

/// What is called with the host's end of each stream that the guest opened.
type Accept = Box<dyn FnMut(UnixStream) + Send>;

/// The host's side of the socket device. A clone is another handle on the same device. When the
/// device is gone, every call says so, and the host's ends of all streams are at their end.
///
/// Functions that are handed to a handle run on the VM's device thread, which serves all devices
/// of the guest: they should be short and must not wait for anything the guest does.
#[derive(Clone)]
pub struct VsockHandle {
    mailbox: Arc<Mailbox>,
}

impl fmt::Debug for VsockHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockHandle").finish_non_exhaustive()
    }
}

impl VsockHandle {
    fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }

    /// Asks for a stream to `port` in the guest. `done` is called on the device thread, with the
    /// host's end when the guest has accepted, or else with the reason. It is called exactly once,
    /// unless this returns an error; when thousands of calls wait already it is called right here,
    /// with [`ConnectError::TooManyStreams`].
    pub fn connect(
        &self,
        port: u32,
        done: Box<dyn FnOnce(Result<UnixStream, ConnectError>) + Send>,
    ) -> Result<(), VsockClosed> {
        self.mailbox.connect(port, Caller::Wants(done))
    }

    /// [`connect`](Self::connect) with a socket pair that was made elsewhere: `ours` becomes the
    /// device's end, and the other half is with whoever speaks with the guest, maybe in another
    /// process. Nothing that is written there before `done` is called is lost.
    pub fn connect_given(
        &self,
        port: u32,
        ours: UnixStream,
        done: Box<dyn FnOnce(Result<(), ConnectError>) + Send>,
    ) -> Result<(), VsockClosed> {
        self.mailbox.connect(port, Caller::Gives(ours, done))
    }

    /// Opens a stream to `port` in the guest and waits for it. Not to be called on the device
    /// thread, which would wait for itself.
    pub fn connect_blocking(
        &self,
        port: u32,
        timeout: Duration,
    ) -> Result<UnixStream, ConnectError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.connect(
            port,
            // If nobody waits any more, the stream is dropped, and so closed, right here.
            Box::new(move |result| drop(sender.send(result))),
        )
        .map_err(|VsockClosed| ConnectError::Closed)?;
        match receiver.recv_timeout(timeout) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(ConnectError::TimedOut { port }),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(ConnectError::Closed),
        }
    }

    /// Accepts the guest's connections to host port `port`: `accept` is called with the host's end
    /// of each, on the device thread. Lasts until [`unlisten`](Self::unlisten), also across a
    /// reboot of the guest.
    pub fn listen(
        &self,
        port: u32,
        accept: Box<dyn FnMut(UnixStream) + Send>,
    ) -> Result<(), ListenError> {
        self.mailbox.listen(port, accept)
    }

    /// The host's end of a stream that the guest had open to the host's `port` when it was saved,
    /// if that port is among [`VsockConfig::carried_ports`]; each one is given once.
    pub fn take_carried(&self, port: u32) -> Option<UnixStream> {
        self.mailbox.take_carried(port)
    }

    /// Stops accepting connections to `port`. Streams that are open stay open.
    pub fn unlisten(&self, port: u32) {
        self.mailbox.unlisten(port);
    }
}

/// The device is gone, and with it its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the VM that this socket device belongs to is gone")]
pub struct VsockClosed;

/// Why there is no stream to the guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The VM is gone.
    #[error("the VM that was to be connected to is gone")]
    Closed,
    /// The guest's driver has not started the device yet.
    #[error("cannot connect to vsock port {port}: the guest's vsock driver is not running (yet)")]
    NotReady {
        /// The guest's port.
        port: u32,
    },
    /// Nothing in the guest listens on the port.
    #[error(
        "cannot connect to vsock port {port}: the guest refused; is something listening on it?"
    )]
    Refused {
        /// The guest's port.
        port: u32,
    },
    /// The guest did not answer in time.
    #[error("cannot connect to vsock port {port}: the guest did not answer in time")]
    TimedOut {
        /// The guest's port.
        port: u32,
    },
    /// The guest's driver was reset meanwhile, as by a reboot.
    #[error("cannot connect to vsock port {port}: the guest reset its vsock driver")]
    Reset {
        /// The guest's port.
        port: u32,
    },
    /// As many streams are open, or being opened, as the configuration allows.
    #[error(
        "cannot connect to vsock port {port}: too many streams; close some or raise `max_streams`"
    )]
    TooManyStreams {
        /// The guest's port.
        port: u32,
    },
    /// A host call failed.
    #[error("cannot make a socket pair for the stream to vsock port {port}")]
    Host {
        /// The guest's port.
        port: u32,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// Why a port cannot be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The VM is gone.
    #[error("the VM that was to be listened to is gone")]
    Closed,
    /// The port is listened on already.
    #[error("vsock port {0} is listened on already; `unlisten` it first")]
    InUse(u32),
}
