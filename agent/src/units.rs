//! Quantities as operators write them: `"200 MiB"`, `"500 KiB/s"`, `"30 days"`. None is zero: what is to be without
//! a limit is left out.

use std::fmt;
use std::time::Duration;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

const BYTES: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
];

const RATES: [(&str, u64); 6] = [
    ("B/s", 1),
    ("kB/s", 1000),
    ("KiB/s", 1 << 10),
    ("MB/s", 1_000_000),
    ("MiB/s", 1 << 20),
    ("GiB/s", 1 << 30),
];

const SPANS: [(&str, u64); 11] = [
    ("s", 1),
    ("second", 1),
    ("seconds", 1),
    ("min", 60),
    ("minute", 60),
    ("minutes", 60),
    ("h", 3600),
    ("hour", 3600),
    ("hours", 3600),
    ("day", 86_400),
    ("days", 86_400),
];

/// Its text, before it is known what it measures.
struct Quantity(String);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text with a unit: \"30 s\", \"200 MiB\", \"500 KiB/s\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// A number of bytes: `"200 MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Quantity")]
pub struct Bytes(pub u64);

/// Bytes a second: `"500 KiB/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Quantity")]
pub struct Rate(pub u64);

/// Whole seconds: `"30 s"`, `"6 hours"`, `"30 days"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Quantity")]
pub struct Span(pub u64);

impl Span {
    /// As the clock measures it.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl TryFrom<Quantity> for Bytes {
    type Error = String;

    fn try_from(Quantity(text): Quantity) -> Result<Self, String> {
        parse(&text, &BYTES).map(Self).ok_or_else(|| {
            format!("{text:?} is not a size: a whole number and B, kB, KiB, MB, MiB, GB, GiB, TB or TiB")
        })
    }
}

impl TryFrom<Quantity> for Rate {
    type Error = String;

    fn try_from(Quantity(text): Quantity) -> Result<Self, String> {
        parse(&text, &RATES).map(Self).ok_or_else(|| {
            format!("{text:?} is not a rate: a whole number and B/s, kB/s, KiB/s, MB/s, MiB/s or GiB/s")
        })
    }
}

impl TryFrom<Quantity> for Span {
    type Error = String;

    fn try_from(Quantity(text): Quantity) -> Result<Self, String> {
        parse(&text, &SPANS)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a time: a whole number and s, min, h or days"))
    }
}

impl fmt::Display for Bytes {
    /// The way people read sizes: at most four digits and a unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
            .into_iter()
            .find(|(_, size)| self.0 >= *size)
            .unwrap_or(("B", 1));
        if size == 1 {
            write!(f, "{} B", self.0)
        } else {
            write!(f, "{:.1} {unit}", self.0 as f64 / size as f64)
        }
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let (_, size) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*size).filter(|quantity| *quantity > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_and_without_a_space_and_shown_as_people_read_them() {
        assert_eq!(Bytes::try_from(Quantity("200 MiB".to_owned())), Ok(Bytes(200 << 20)));
        assert_eq!(Bytes::try_from(Quantity("1GB".to_owned())), Ok(Bytes(1_000_000_000)));
        assert_eq!(Rate::try_from(Quantity("500 KiB/s".to_owned())), Ok(Rate(500 << 10)));
        assert_eq!(Span::try_from(Quantity("30 days".to_owned())), Ok(Span(30 * 86_400)));
        assert_eq!(Bytes(1_610_612_736).to_string(), "1.5 GiB");
        assert_eq!(Bytes(17).to_string(), "17 B");
    }

    #[test]
    fn what_is_no_quantity_is_told_with_the_units_that_there_are() {
        for text in ["", "MiB", "5", "0 B", "-1 B", "1.5 GiB", "5 parsecs", "99999999999 TiB"] {
            let error = Bytes::try_from(Quantity(text.to_owned())).expect_err(text);
            assert!(error.contains("KiB"), "{error}");
        }
        assert!(Rate::try_from(Quantity("5 MiB".to_owned())).is_err());
        assert!(Span::try_from(Quantity("5 weeks".to_owned())).is_err());
    }
}
