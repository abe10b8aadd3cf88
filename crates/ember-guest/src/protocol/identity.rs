//! Freezing, and the identity that a clone of a frozen guest is given.

use std::fmt;
use std::time::Duration;

use super::codec::{Reader, put_string};
use super::spawn::{check_variables, read_count, shorten};
use super::{ErrorCode, Kind, MAX_HOSTNAME, MAX_IDENTIFY, Malformed, SpawnError};

/// Environment variables: names and values.
pub type Variables = Vec<(Vec<u8>, Vec<u8>)>;

/// What makes a guest somebody else than the one that it was cloned from, as it goes over the wire.
///
/// `Debug` shows neither entropy nor secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Fresh random bytes for the kernel's generator, known to nobody else.
    pub entropy: [u8; ENTROPY],
    /// The wall clock: the time since 1970-01-01 00:00 UTC.
    pub realtime: Duration,
    /// The host name; empty leaves the one that there is.
    pub hostname: Vec<u8>,
    /// For `/etc/machine-id` (machine-id(5)).
    pub machine_id: [u8; 16],
    /// For `/proc/sys/kernel/random/boot_id`.
    pub boot_id: [u8; 16],
    /// Variables of everything that is started from now on. They take the place of those that an
    /// earlier identity brought.
    pub env: Variables,
    /// The same, of variables whose values are nobody's business.
    pub secrets: Variables,
}

/// The bytes of entropy of an [`Identity`]: twice what the kernel's generator takes as its key
/// (`BLAKE2S_HASH_SIZE` in Linux `drivers/char/random.c`).
pub const ENTROPY: usize = 64;

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self
            .secrets
            .iter()
            .map(|(name, _)| String::from_utf8_lossy(name))
            .collect();
        formatter
            .debug_struct("Identity")
            .field("realtime", &self.realtime)
            .field("hostname", &String::from_utf8_lossy(&self.hostname))
            .field("machine_id", &hex(&self.machine_id))
            .field("boot_id", &hex(&self.boot_id))
            .field("env", &self.env)
            .field("secrets", &names)
            .finish_non_exhaustive()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why an identity is none. The same check is made on both ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// All zeroes, which nobody's is.
    #[error("the {what} of an identity is all zeroes: it has to be drawn at random")]
    Zeroes {
        /// Which field.
        what: &'static str,
    },
    /// A time that Linux cannot set its clock to.
    #[error("the wall clock cannot be set to {seconds} s after 1970: Linux counts to 2262")]
    Realtime {
        /// The seconds asked for.
        seconds: u64,
    },
    /// Not a host name.
    #[error(
        "{name:?} cannot be a host name: it takes 1 to {MAX_HOSTNAME} letters, digits, dots, \
         hyphens and underscores"
    )]
    Hostname {
        /// The name, shortened.
        name: String,
    },
    /// A variable that cannot be.
    #[error(transparent)]
    Variable(#[from] SpawnError),
    /// All together is more than the protocol carries.
    #[error(
        "the variables of an identity have {length} bytes together, the limit is {MAX_IDENTIFY}"
    )]
    TooLong {
        /// The length of the whole frame.
        length: usize,
    },
}

impl IdentityError {
    /// The code of an `Error` frame that says this.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Variable(error) => error.code(),
            Self::TooLong { .. } => ErrorCode::ArgumentTooLong,
            _ => ErrorCode::InvalidRequest,
        }
    }
}

impl Identity {
    /// Checks everything that can be known without the guest.
    pub fn validate(&self) -> Result<(), IdentityError> {
        // A field that somebody forgot to fill would make every clone the same.
        for (what, bytes) in [
            ("entropy", &self.entropy[..]),
            ("machine id", &self.machine_id),
            ("boot id", &self.boot_id),
        ] {
            if bytes.iter().all(|&byte| byte == 0) {
                return Err(IdentityError::Zeroes { what });
            }
        }
        if nanoseconds(self.realtime).is_none() {
            let seconds = self.realtime.as_secs();
            return Err(IdentityError::Realtime { seconds });
        }
        let letter = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_".contains(byte);
        if self.hostname.len() > MAX_HOSTNAME || !self.hostname.iter().all(letter) {
            let name = shorten(&self.hostname);
            return Err(IdentityError::Hostname { name });
        }
        check_variables(&self.env)?;
        check_variables(&self.secrets)?;
        let length = self.encoded_len();
        if length > MAX_IDENTIFY {
            return Err(IdentityError::TooLong { length });
        }
        Ok(())
    }

    /// The length of its payload.
    fn encoded_len(&self) -> usize {
        let variables = self
            .env
            .iter()
            .chain(&self.secrets)
            .map(|(name, value)| 8 + name.len() + value.len())
            .sum::<usize>();
        ENTROPY + 8 + 16 + 16 + 4 + self.hostname.len() + 4 + 4 + variables
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<(), IdentityError> {
        self.validate()?;
        out.extend_from_slice(&self.entropy);
        let realtime = nanoseconds(self.realtime).unwrap_or(0);
        out.extend_from_slice(&realtime.to_le_bytes());
        out.extend_from_slice(&self.machine_id);
        out.extend_from_slice(&self.boot_id);
        put_string(out, &self.hostname);
        for variables in [&self.env, &self.secrets] {
            out.extend_from_slice(&(variables.len() as u32).to_le_bytes());
            for (name, value) in variables {
                put_string(out, name);
                put_string(out, value);
            }
        }
        Ok(())
    }

    /// Reads one. [`Self::validate`] is still to be called.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(Kind::Identify, payload);
        let entropy = reader.array("entropy")?;
        let realtime = Duration::from_nanos(reader.u64("wall clock")?);
        let machine_id = reader.array("machine id")?;
        let boot_id = reader.array("boot id")?;
        let hostname = reader.string(MAX_HOSTNAME, "host name")?.to_vec();
        let env = variables(&mut reader, "environment")?;
        let secrets = variables(&mut reader, "secrets")?;
        reader.end()?;
        Ok(Self {
            entropy,
            realtime,
            hostname,
            machine_id,
            boot_id,
            env,
            secrets,
        })
    }
}

fn variables(reader: &mut Reader<'_>, field: &'static str) -> Result<Variables, Malformed> {
    let count = read_count(reader, field)?;
    let mut variables = Variables::new();
    for _ in 0..count {
        let name = reader.string(MAX_IDENTIFY, field)?.to_vec();
        let value = reader.string(MAX_IDENTIFY, field)?.to_vec();
        variables.push((name, value));
    }
    Ok(variables)
}

/// As the kernel counts time (`ktime_t`), which ends in 2262.
fn nanoseconds(time: Duration) -> Option<u64> {
    i64::try_from(time.as_nanos()).ok().map(i64::unsigned_abs)
}
