//! Quantities as a scenario writes them: text with a unit, never a bare number whose unit one has to guess.
//!
//! Each type parses from its text, prints text that parses back to the same value, and says on a wrong unit
//! what would have been right.

use core::fmt;
use core::str::FromStr;

mod bytes;
mod number;
mod time;

pub use bytes::{Bandwidth, ByteSize};
pub use number::{Count, Percent, Rate};
pub use time::{Span, TimeOfDay};

use bytes::{BITS, BYTES};
use time::SPANS;

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
        "%" => Some("shares"),
        _ if SPANS.iter().any(|(name, _)| *name == unit) => Some("time"),
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
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                        write!(f, "{} such as \"{}\"", $type::WHAT, $type::EXAMPLE)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$type, E> {
                        $type::from_integer(number).map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                $type::text_schema(generator)
            }
        }
    };
}

/// The schema of a quantity that is always text.
macro_rules! text_schema {
    ($type:ident) => {
        impl $type {
            fn text_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": Self::PATTERN,
                    "examples": [Self::EXAMPLE],
                    "description": format!("{}: takes {}", Self::WHAT, Self::UNITS),
                })
            }
        }
    };
}

pub(super) use {as_text, text_schema};
