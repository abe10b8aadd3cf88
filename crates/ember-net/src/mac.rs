//! Hardware addresses.

use std::fmt;
use std::io;

/// The hardware address of a network card.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address with these bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// A random address out of those that nobody administers: 46 bits of it are random.
    pub fn random_local() -> io::Result<Self> {
        let mut bytes = [0; 6];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        // The lowest bit of the first byte is for groups, the next one says "locally
        // administered" (IEEE 802, section 8).
        bytes[0] = bytes[0] & !0b01 | 0b10;
        Ok(Self(bytes))
    }

    /// The address's bytes.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<MacAddress> for [u8; 6] {
    fn from(address: MacAddress) -> Self {
        address.0
    }
}
