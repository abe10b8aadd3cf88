//! Digests of content, as registries name it.

use std::fmt;
use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256, Sha512};

/// What names content: an algorithm and a value (OCI image specification, `descriptor.md`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Digest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl Digest {
    /// Reads `sha256:…` or `sha512:…`, which are all that are registered and in use.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, hex) = text.split_once(':')?;
        let (algorithm, length) = match name {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return None,
        };
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (hex.len() == length && hex.bytes().all(is_hex)).then(|| Self {
            algorithm,
            hex: hex.to_owned(),
        })
    }

    /// That of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            algorithm: Algorithm::Sha256,
            hex: hex(&Sha256::digest(bytes)),
        }
    }

    /// Whether it is that of `bytes`.
    pub(super) fn names(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish() == *self
    }

    pub(super) fn hex(&self) -> &str {
        &self.hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> Digest {
        let (algorithm, hex) = match self {
            Self::Sha256(hash) => (Algorithm::Sha256, hex(&hash.finalize())),
            Self::Sha512(hash) => (Algorithm::Sha512, hex(&hash.finalize())),
        };
        Digest { algorithm, hex }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why content is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    #[error("it has more than the {0} bytes that its manifest states")]
    Longer(u64),
    #[error("it has more than {0} bytes, which is the most that it may have")]
    TooLong(u64),
    #[error("it ended after {found} of {stated} bytes")]
    Shorter { stated: u64, found: u64 },
    #[error("its digest is {found}, and {wanted} was asked for")]
    Digest { wanted: String, found: String },
    #[error("it could not be read: {0}")]
    Read(#[source] io::Error),
    #[error("it could not be kept: {0}")]
    Write(#[source] io::Error),
}

/// Copies content of `size` bytes and this digest, which is known to be so when this returns.
pub(super) fn copy(
    from: &mut dyn Read,
    to: &mut dyn Write,
    digest: &Digest,
    size: u64,
) -> Result<(), ContentError> {
    let (found, is) = hashed(from, to, digest.algorithm, size)?;
    if found < size {
        return Err(ContentError::Shorter {
            stated: size,
            found,
        });
    }
    check(&is, digest)
}

/// The same of content whose size nobody has said.
pub(super) fn copy_at_most(
    from: &mut dyn Read,
    to: &mut dyn Write,
    digest: &Digest,
    limit: u64,
) -> Result<(), ContentError> {
    match hashed(from, to, digest.algorithm, limit) {
        Ok((_, is)) => check(&is, digest),
        Err(ContentError::Longer(limit)) => Err(ContentError::TooLong(limit)),
        Err(error) => Err(error),
    }
}

fn check(is: &Digest, wanted: &Digest) -> Result<(), ContentError> {
    match is == wanted {
        true => Ok(()),
        false => Err(ContentError::Digest {
            wanted: wanted.to_string(),
            found: is.to_string(),
        }),
    }
}

/// Copies at most `limit` bytes, and says how many there were and their digest.
fn hashed(
    from: &mut dyn Read,
    to: &mut dyn Write,
    algorithm: Algorithm,
    limit: u64,
) -> Result<(u64, Digest), ContentError> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 128 * 1024];
    let mut found = 0_u64;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ContentError::Read(error)),
        };
        found += count as u64;
        if found > limit {
            return Err(ContentError::Longer(limit));
        }
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])
            .map_err(ContentError::Write)?;
    }
    Ok((found, hasher.finish()))
}
