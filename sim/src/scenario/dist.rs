//! Spans of time that vary from device to device or from draw to draw.

use core::fmt;
use core::str::FromStr;
use core::time::Duration;
use std::borrow::Cow;

use fleetwave_protocol::CounterRng;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use super::quantity::{Quantity, QuantityError, Span};

/// The 99 % point of the standard normal distribution.
const Z99: f64 = 2.326_347_874_040_841;
/// Where the long side of a log-normal ends: about one draw in 10,000 would lie beyond.
const Z_MAX: f64 = 3.719;

/// A distribution of spans: `"50ms"`, `"20ms..80ms"` or `{ median = "40ms", p99 = "400ms" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dist {
    /// Always the same.
    Fixed(Span),
    /// Every span from `low` to `high` alike.
    Uniform {
        /// The shortest.
        low: Span,
        /// The longest.
        high: Span,
    },
    /// A log-normal, cut at its 1 % point below and its 99.99 % point above, so that it has a shortest span.
    LogNormal {
        /// Half of the draws lie below.
        median: Span,
        /// 1 % of the draws lie above.
        p99: Span,
    },
}

/// The table form.
#[derive(Serialize, DeriveDeserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LogNormal {
    median: Span,
    p99: Span,
}

impl Dist {
    /// Always `span`.
    #[must_use]
    pub const fn fixed(span: Span) -> Self {
        Self::Fixed(span)
    }

    /// From `low` to `high` milliseconds.
    #[must_use]
    pub const fn millis(low: u64, high: u64) -> Self {
        Self::Uniform { low: Span::from_millis(low), high: Span::from_millis(high) }
    }

    fn sigma(median: Span, p99: Span) -> f64 {
        (p99.as_micros() as f64 / median.as_micros() as f64).ln() / Z99
    }

    /// The shortest span that [`sample`](Self::sample) returns.
    #[must_use]
    pub fn min(&self) -> Duration {
        match *self {
            Self::Fixed(span) => span.duration(),
            Self::Uniform { low, .. } => low.duration(),
            Self::LogNormal { median, p99 } => {
                let micros = u128::from(median.as_micros()).pow(2) / u128::from(p99.as_micros());
                Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
            }
        }
    }

    /// The longest span that [`sample`](Self::sample) returns.
    #[must_use]
    pub fn max(&self) -> Duration {
        match *self {
            Self::Fixed(span) => span.duration(),
            Self::Uniform { high, .. } => high.duration(),
            Self::LogNormal { median, p99 } => at(median, Self::sigma(median, p99) * Z_MAX),
        }
    }

    /// The span that half of the draws do not exceed.
    #[must_use]
    pub fn median(&self) -> Duration {
        match *self {
            Self::Fixed(span) => span.duration(),
            Self::Uniform { low, high } => Duration::from_micros(low.as_micros().midpoint(high.as_micros())),
            Self::LogNormal { median, .. } => median.duration(),
        }
    }

    /// Draws one span. Takes the same number of draws from `rng` whatever comes out.
    #[must_use]
    pub fn sample(&self, rng: &mut CounterRng) -> Duration {
        match *self {
            Self::Fixed(span) => span.duration(),
            Self::Uniform { low, high } => {
                Duration::from_micros(rng.between(low.as_micros(), high.as_micros()))
            }
            Self::LogNormal { median, p99 } => {
                // Box-Muller; `1 - unit` is never 0, so that the logarithm is finite.
                let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
                let z = radius * (core::f64::consts::TAU * rng.unit()).cos();
                at(median, Self::sigma(median, p99) * z.min(Z_MAX)).max(self.min())
            }
        }
    }
}

/// `median` · e^`exponent`, in whole microseconds.
fn at(median: Span, exponent: f64) -> Duration {
    // The cast saturates.
    Duration::from_micros((median.as_micros() as f64 * exponent.exp()) as u64)
}

impl FromStr for Dist {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let Some((low, high)) = text.split_once("..") else {
            return text.parse().map(Self::Fixed);
        };
        let high = high.parse::<Span>()?;
        // "1..3s" means what it looks like: the unit of the end holds for both.
        let unit = text.trim().trim_start_matches(|c: char| !c.is_ascii_alphabetic());
        let low = low.trim();
        let low = if low.ends_with(|c: char| c.is_ascii_digit()) && unit.chars().all(char::is_alphabetic) {
            format!("{low}{unit}").parse::<Span>()?
        } else {
            low.parse::<Span>()?
        };
        if low > high {
            return Err(QuantityError::new(format!(
                "\"{text}\" ends before it starts; write \"{high}..{low}\""
            )));
        }
        Ok(Self::Uniform { low, high })
    }
}

impl fmt::Display for Dist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(span) => span.fmt(f),
            Self::Uniform { low, high } => write!(f, "{low}..{high}"),
            Self::LogNormal { median, p99 } => write!(f, "median {median}, p99 {p99}"),
        }
    }
}

impl TryFrom<LogNormal> for Dist {
    type Error = QuantityError;

    fn try_from(LogNormal { median, p99 }: LogNormal) -> Result<Self, QuantityError> {
        if median == Span::ZERO || p99 <= median {
            return Err(QuantityError::new(format!(
                "p99 = \"{p99}\" must be above median = \"{median}\", and both above 0; for one value write \
                 \"{median}\""
            )));
        }
        Ok(Self::LogNormal { median, p99 })
    }
}

impl<'de> Deserialize<'de> for Dist {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Dist;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a span such as \"50ms\", a range such as \"20ms..80ms\", or a table of median and p99",
                )
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Dist, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Dist, E> {
                Span::from_integer(number).map(Dist::Fixed).map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Dist, A::Error> {
                let parts = LogNormal::deserialize(MapAccessDeserializer::new(map))?;
                parts.try_into().map_err(serde::de::Error::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Serialize for Dist {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::LogNormal { median, p99 } => LogNormal { median, p99 }.serialize(serializer),
            _ => serializer.collect_str(self),
        }
    }
}

impl JsonSchema for Dist {
    fn schema_name() -> Cow<'static, str> {
        "Dist".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({
            "type": "string",
            "examples": ["50ms", "20ms..80ms"],
        });
        let table = generator.subschema_for::<LogNormal>();
        json_schema!({
            "anyOf": [text, table],
            "description": "a distribution of spans: one value, a uniform range, or a log-normal by its median \
                            and 99 % point",
        })
    }
}
