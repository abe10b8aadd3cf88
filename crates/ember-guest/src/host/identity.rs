//! Who a guest is to be.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, SystemTime};

use crate::protocol::{self, ENTROPY};

/// An identity for [`Agent::identify`](super::Agent::identify).
///
/// `Debug` shows neither entropy nor the values of secrets.
#[derive(Clone)]
pub struct Identity {
    wire: protocol::Identity,
    realtime: Option<SystemTime>,
}

impl Identity {
    /// One that is like no other: entropy, machine id and boot id are drawn from this host's
    /// random numbers. The wall clock will be this host's, the host name stays.
    pub fn random() -> io::Result<Self> {
        let mut wire = protocol::Identity {
            entropy: [0; ENTROPY],
            realtime: Duration::ZERO,
            hostname: Vec::new(),
            machine_id: [0; 16],
            boot_id: [0; 16],
            env: Vec::new(),
            secrets: Vec::new(),
        };
        for bytes in [
            &mut wire.entropy[..],
            &mut wire.machine_id,
            &mut wire.boot_id,
        ] {
            getrandom::fill(bytes).map_err(io::Error::from)?;
        }
        for id in [&mut wire.machine_id, &mut wire.boot_id] {
            // The kernel's are random UUIDs (RFC 9562, section 5.4), and machine-id(5) asks for
            // the same.
            id[6] = id[6] & 0x0f | 0x40;
            id[8] = id[8] & 0x3f | 0x80;
        }
        Ok(Self {
            wire,
            realtime: None,
        })
    }

    /// Random bytes for the guest's kernel. Nobody else may know them, and no two guests may get
    /// the same.
    #[must_use]
    pub fn entropy(mut self, entropy: [u8; ENTROPY]) -> Self {
        self.wire.entropy = entropy;
        self
    }

    /// Sets the guest's wall clock to this, in place of this host's time when it is sent.
    #[must_use]
    pub fn realtime(mut self, realtime: SystemTime) -> Self {
        self.realtime = Some(realtime);
        self
    }

    /// The guest's host name.
    #[must_use]
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.wire.hostname = name.into().into_bytes();
        self
    }

    /// The guest's machine id (machine-id(5)).
    #[must_use]
    pub fn machine_id(mut self, id: [u8; 16]) -> Self {
        self.wire.machine_id = id;
        self
    }

    /// The guest's boot id.
    #[must_use]
    pub fn boot_id(mut self, id: [u8; 16]) -> Self {
        self.wire.boot_id = id;
        self
    }

    /// Sets a variable in the environment of everything that is started from now on. All variables
    /// of an earlier identity are gone with it.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let pair = (name.into().into_vec(), value.into().into_vec());
        self.wire.env.push(pair);
        self
    }

    /// The same, of a variable whose value is shown to nobody but the programs.
    #[must_use]
    pub fn secret(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let pair = (name.into().into_vec(), value.into().into_vec());
        self.wire.secrets.push(pair);
        self
    }

    /// As it is to be sent now.
    pub(super) fn into_wire(mut self) -> protocol::Identity {
        let realtime = self.realtime.unwrap_or_else(SystemTime::now);
        // A clock before 1970 is one that nobody has set.
        self.wire.realtime = realtime
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.wire
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Identity").field(&self.wire).finish()
    }
}
