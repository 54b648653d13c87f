//! Counts, rates and shares.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use super::{Quantity, QuantityError, as_text, parse_with, text_schema, write_with};

/// How many: `10000`, `"10k"`, `"1M"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count(pub u64);

impl Quantity for Count {
    const WHAT: &'static str = "a count";
    const UNITS: &'static str = "no unit, k or M";
    const EXAMPLE: &'static str = "10k";
    const PATTERN: &'static str = r"^[0-9][0-9_]*(\.[0-9]+)?\s*(k|M)?$";

    fn from_integer(number: i64) -> Result<Self, QuantityError> {
        u64::try_from(number)
            .map(Self)
            .map_err(|_| QuantityError(format!("{number} is negative; a count starts at 0")))
    }
}

impl FromStr for Count {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse_with::<Self>(text, &[("M", 1_000_000), ("k", 1000), ("", 1)]).map(Self)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

as_text!(Count);

impl Count {
    fn text_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": Self::PATTERN, "examples": [Self::EXAMPLE] },
            ],
            "description": "a count: takes no unit, k or M",
        })
    }
}

/// How often something happens: `"1000/s"`, `"90/m"`. Stored an hour, which divides a minute and a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u64);

const RATES: [(&str, u64); 3] = [("/s", 3600), ("/m", 60), ("/h", 1)];

impl Rate {
    /// Events a second.
    #[must_use]
    pub fn per_second(self) -> f64 {
        self.0 as f64 / 3600.0
    }

    /// When the `n`-th event of an even stream happens, counted from 0.
    #[must_use]
    pub fn nth(self, n: u64) -> Duration {
        let micros = u128::from(n) * 3_600_000_000 / u128::from(self.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

impl Quantity for Rate {
    const WHAT: &'static str = "a rate";
    const UNITS: &'static str = "/s, /m or /h";
    const EXAMPLE: &'static str = "1000/s";
    const PATTERN: &'static str = r"^[0-9][0-9_]*(\.[0-9]+)?\s*(k|M)?\s*/(s|m|h)$";
}

impl FromStr for Rate {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let value = match text.split_once('/') {
            Some((count, per)) if count.trim().ends_with(['k', 'M']) => {
                let count: Count = count.parse()?;
                parse_with::<Self>(&format!("{}/{per}", count.0), &RATES)?
            }
            _ => parse_with::<Self>(text, &RATES)?,
        };
        if value == 0 {
            return Err(QuantityError("a rate of 0 never gets anywhere".to_owned()));
        }
        Ok(Self(value))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with(f, self.0, &RATES)
    }
}

as_text!(Rate);
text_schema!(Rate);

/// A part of a whole, 0 % to 100 %, in millionths: `"99.9%"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u32);

impl Percent {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All.
    pub const FULL: Self = Self(1_000_000);

    /// From millionths.
    ///
    /// # Panics
    /// If that is more than the whole.
    #[must_use]
    pub const fn from_millionths(millionths: u32) -> Self {
        assert!(millionths <= 1_000_000, "a share is at most the whole");
        Self(millionths)
    }

    /// In millionths.
    #[must_use]
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// From 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    /// That share of `whole`, rounded to the nearest, half up.
    #[must_use]
    pub const fn of(self, whole: u64) -> u64 {
        ((whole as u128 * self.0 as u128 + 500_000) / 1_000_000) as u64
    }
}

impl Quantity for Percent {
    const WHAT: &'static str = "a percentage";
    const UNITS: &'static str = "%";
    const EXAMPLE: &'static str = "99.9%";
    const PATTERN: &'static str = r"^[0-9]+(\.[0-9]+)?\s*%$";
}

impl FromStr for Percent {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let millionths = parse_with::<Self>(text, &[("%", 10_000)])?;
        match u32::try_from(millionths) {
            Ok(millionths) if millionths <= 1_000_000 => Ok(Self(millionths)),
            _ => Err(QuantityError(format!("\"{text}\" is more than the whole; a percentage ends at 100%"))),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 10_000, self.0 % 10_000);
        if fraction == 0 {
            write!(f, "{whole}%")
        } else {
            write!(f, "{whole}.{}%", format!("{fraction:04}").trim_end_matches('0'))
        }
    }
}

as_text!(Percent);
text_schema!(Percent);
