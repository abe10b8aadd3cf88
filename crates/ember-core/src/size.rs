//! Amounts of memory.

use std::fmt;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn bytes(count: u64) -> Self {
        Self(count)
    }

    /// So many times 1024 bytes. What is beyond 2^64 bytes counts as that.
    pub const fn kib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 10))
    }

    /// So many times 1024² bytes. What is beyond 2^64 bytes counts as that.
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// So many times 1024³ bytes. What is beyond 2^64 bytes counts as that.
    pub const fn gib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 30))
    }

    /// As a number.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that says it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_largest_unit_that_is_exact() {
        for (size, text) in [
            (ByteSize::gib(2), "2 GiB"),
            (ByteSize::mib(256), "256 MiB"),
            (ByteSize::mib(1536), "1536 MiB"),
            (ByteSize::bytes(4097), "4097 bytes"),
            (ByteSize::bytes(0), "0 bytes"),
        ] {
            assert_eq!(size.to_string(), text);
        }
        assert_eq!(ByteSize::gib(u64::MAX).as_bytes(), u64::MAX);
    }
}
