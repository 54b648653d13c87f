//! Quantities as a scenario writes them: text with a unit, never a bare number whose unit one has to guess.
//!
//! Each type parses from its text, prints text that parses back to the same value, and says on a wrong unit
//! what would have been right.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// Why a text is not the quantity that was wanted: what is wrong with it, and what would have been right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QuantityError(String);

impl QuantityError {
    pub(crate) const fn new(message: String) -> Self {
        Self(message)
    }
}

/// What all quantities have in common.
pub(crate) trait Quantity: FromStr<Err = QuantityError> + fmt::Display {
    /// What it is called, with its article.
    const WHAT: &'static str;
    /// The units that it takes.
    const UNITS: &'static str;
    /// What one looks like.
    const EXAMPLE: &'static str;
    /// A regular expression for the schema.
    const PATTERN: &'static str;

    /// A number that stands in the file without quotes, where that is unambiguous.
    fn from_integer(number: i64) -> Result<Self, QuantityError> {
        Err(QuantityError(format!(
            "`{number}` has no unit; {} takes {}, for instance \"{}\"",
            Self::WHAT,
            Self::UNITS,
            Self::EXAMPLE
        )))
    }
}

/// A decimal number, exact: `digits` · 10^-`decimals`.
#[derive(Clone, Copy)]
struct Decimal {
    digits: u64,
    decimals: u32,
}

impl Decimal {
    /// Splits `text` into its number and what follows it.
    fn split(text: &str) -> Option<(Self, &str)> {
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
        let (number, rest) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
            return None;
        }
        let mut digits = 0u64;
        for c in whole.chars().chain(fraction.chars()).filter(|c| *c != '_') {
            digits = digits.checked_mul(10)?.checked_add(u64::from(c.to_digit(10)?))?;
        }
        let decimals = u32::try_from(fraction.chars().filter(|c| *c != '_').count()).ok()?;
        Some((Self { digits, decimals }, rest.trim()))
    }

    /// The number times `unit`, if that is whole and fits.
    fn times(self, unit: u64) -> Option<u64> {
        let scaled = u128::from(self.digits) * u128::from(unit);
        let divisor = 10u128.checked_pow(self.decimals)?;
        if !scaled.is_multiple_of(divisor) {
            return None;
        }
        u64::try_from(scaled / divisor).ok()
    }
}

/// What a unit that is unknown here measures elsewhere, so that the message can say so.
fn measures(unit: &str) -> Option<&'static str> {
    match unit {
        "us" | "ms" | "s" | "m" | "h" | "d" => Some("time"),
        "%" => Some("shares"),
        _ if BYTES.iter().any(|(name, _)| *name == unit) => Some("size"),
        _ if BITS.iter().any(|(name, _)| *name == unit) => Some("bandwidth"),
        "/s" | "/m" | "/h" => Some("events over time"),
        _ => None,
    }
}

/// Parses a number and one of `units`; the value counts the smallest of them.
fn parse_with<Q: Quantity>(text: &str, units: &[(&str, u64)]) -> Result<u64, QuantityError> {
    let Some((number, unit)) = Decimal::split(text) else {
        return Err(not_a::<Q>(text));
    };
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let problem = if unit.is_empty() {
            format!("\"{text}\" has no unit")
        } else if let Some(what) = measures(unit) {
            format!("`{unit}` in \"{text}\" is a unit of {what}")
        } else {
            format!("`{unit}` in \"{text}\" is not a unit")
        };
        let near = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let example = near.map_or_else(
            || Q::EXAMPLE.to_owned(),
            |(name, _)| format!("{}{name}", text.trim().trim_end_matches(unit)),
        );
        return Err(QuantityError(format!(
            "{problem}; {} takes {}, for instance \"{example}\"",
            Q::WHAT,
            Q::UNITS
        )));
    };
    number.times(*factor).ok_or_else(|| {
        QuantityError(format!("\"{text}\" is too large or too fine; {} is stored in whole units", Q::WHAT))
    })
}

fn not_a<Q: Quantity>(text: &str) -> QuantityError {
    QuantityError(format!(
        "\"{text}\" is not {}; it takes {}, for instance \"{}\"",
        Q::WHAT,
        Q::UNITS,
        Q::EXAMPLE
    ))
}

/// Writes `value` in the largest of `units` (largest first) that divides it.
fn write_with(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let (unit, factor) = units
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
        .or(units.last())
        .expect("every quantity has a unit");
    write!(f, "{}{unit}", value / factor)
}

/// Serde and schema of a quantity, all by way of its text.
macro_rules! as_text {
    ($type:ident) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{}, for instance \"{}\"", $type::WHAT, $type::EXAMPLE)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$type, E> {
                        $type::from_integer(number).map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$type, E> {
                        $type::from_integer(i64::try_from(number).map_err(E::custom)?).map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $type::text_schema()
            }
        }
    };
}

macro_rules! text_schema {
    ($type:ident) => {
        impl $type {
            fn text_schema() -> Schema {
                json_schema!({
                    "type": "string",
                    "pattern": Self::PATTERN,
                    "examples": [Self::EXAMPLE],
                    "description": format!("{}: takes {}", Self::WHAT, Self::UNITS),
                })
            }
        }
    };
}

/// A span of time, in whole microseconds: `"250ms"`, `"20s"`, `"1.5h"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

const SPANS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1000),
    ("us", 1),
];

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// A span of whole microseconds.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// A span of whole milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1000)
    }

    /// A span of whole seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * 1_000_000)
    }

    /// In whole microseconds.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// In seconds.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// As the standard library has it.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_micros(self.0)
    }
}

impl Quantity for Span {
    const WHAT: &'static str = "a span of time";
    const UNITS: &'static str = "us, ms, s, m, h or d";
    const EXAMPLE: &'static str = "250ms";
    const PATTERN: &'static str = r"^[0-9][0-9_]*(\.[0-9]+)?\s*(us|ms|s|m|h|d)$";
}

impl FromStr for Span {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse_with::<Self>(text, &SPANS).map(Self)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { f.write_str("0s") } else { write_with(f, self.0, &SPANS) }
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.duration()
    }
}

as_text!(Span);
text_schema!(Span);

/// A number of bytes: `"64KiB"`, `"1.5MB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

const BYTES: [(&str, u64); 9] = [
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

const BITS: [(&str, u64); 10] = [
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
        write_with(f, self.0, &BITS)
    }
}

as_text!(Bandwidth);
text_schema!(Bandwidth);

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

/// How many: `10000`, `"10k"`, `"1M"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count(pub u64);

impl Quantity for Count {
    const WHAT: &'static str = "a count";
    const UNITS: &'static str = "nothing, k or M";
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
    fn text_schema() -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": Self::PATTERN, "examples": [Self::EXAMPLE] },
            ],
            "description": "a count: takes nothing, k or M",
        })
    }
}

/// A time of the day, UTC, to the minute: `"02:00"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    /// Milliseconds since midnight.
    #[must_use]
    pub fn millis(self) -> u64 {
        u64::from(self.0) * 60_000
    }
}

impl Quantity for TimeOfDay {
    const WHAT: &'static str = "a time of the day";
    const UNITS: &'static str = "hours and minutes, UTC";
    const EXAMPLE: &'static str = "02:00";
    const PATTERN: &'static str = "^([01][0-9]|2[0-3]):[0-5][0-9]$";
}

impl FromStr for TimeOfDay {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let part = |digits: &str, end: u16| -> Option<u16> {
            (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()))
                .then(|| digits.parse().ok().filter(|n| *n < end))
                .flatten()
        };
        text.split_once(':')
            .and_then(|(hours, minutes)| Some(part(hours, 24)? * 60 + part(minutes, 60)?))
            .map(Self)
            .ok_or_else(|| not_a::<Self>(text))
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

as_text!(TimeOfDay);
text_schema!(TimeOfDay);
