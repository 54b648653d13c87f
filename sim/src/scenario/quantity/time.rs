//! Spans of time, and times of the day.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use super::{Quantity, QuantityError, as_text, not_a, parse_with, text_schema, write_with};

/// A span of time, in whole microseconds: `"250ms"`, `"20s"`, `"1.5h"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

pub(super) const SPANS: [(&str, u64); 6] = [
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
