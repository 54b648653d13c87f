//! Sizes, and how fast they pass.

use core::fmt;
use core::str::FromStr;

use super::{Quantity, QuantityError, as_text, parse_with, text_schema, write_with};

/// A number of bytes: `"64KiB"`, `"1.5MB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

pub(super) const BYTES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1000),
    ("B", 1),
];

impl ByteSize {
    /// A number of bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl Quantity for ByteSize {
    const WHAT: &'static str = "a size";
    const UNITS: &'static str = "B, kB, MB, GB, TB, KiB, MiB, GiB or TiB";
    const EXAMPLE: &'static str = "64KiB";
    const PATTERN: &'static str = r"^[0-9][0-9_]*(\.[0-9]+)?\s*(k|M|G|T|Ki|Mi|Gi|Ti)?B$";
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse_with::<Self>(text, &BYTES).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with(f, self.0, &BYTES)
    }
}

as_text!(ByteSize);
text_schema!(ByteSize);

/// How much passes a link in a second, in bits: `"10Gbit/s"`, `"5MB/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bandwidth(u64);

pub(super) const BITS: [(&str, u64); 10] = [
    ("GB/s", 8_000_000_000),
    ("Gbit/s", 1_000_000_000),
    ("MiB/s", 8 << 20),
    ("MB/s", 8_000_000),
    ("Mbit/s", 1_000_000),
    ("KiB/s", 8 << 10),
    ("kB/s", 8000),
    ("kbit/s", 1000),
    ("B/s", 8),
    ("bit/s", 1),
];

impl Bandwidth {
    /// From bits a second.
    #[must_use]
    pub const fn from_bits_per_second(bits: u64) -> Self {
        Self(bits)
    }

    /// Bits a second.
    #[must_use]
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }

    /// Bytes a second.
    #[must_use]
    pub fn bytes_per_second(self) -> f64 {
        self.0 as f64 / 8.0
    }
}

impl Quantity for Bandwidth {
    const WHAT: &'static str = "a bandwidth";
    const UNITS: &'static str = "bit/s, kbit/s, Mbit/s, Gbit/s, B/s, kB/s, MB/s, GB/s, KiB/s or MiB/s";
    const EXAMPLE: &'static str = "10Mbit/s";
    const PATTERN: &'static str = r"^[0-9][0-9_]*(\.[0-9]+)?\s*((k|M|G)?bit/s|(k|M|G|Ki|Mi)?B/s)$";
}

impl FromStr for Bandwidth {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let bits = parse_with::<Self>(text, &BITS)?;
        if bits == 0 {
            return Err(QuantityError(
                "a bandwidth of 0 lets nothing pass; use a `link_down` fault".to_owned(),
            ));
        }
        Ok(Self(bits))
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Always in bits, as lines are sold: "256kbit/s" and not "32kB/s".
        let bits: [_; 4] = [BITS[1], BITS[4], BITS[7], BITS[9]];
        write_with(f, self.0, &bits)
    }
}

as_text!(Bandwidth);
text_schema!(Bandwidth);
