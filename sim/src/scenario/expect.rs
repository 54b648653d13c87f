//! What is expected at the end of a run: conditions on the run's metrics, in the metrics' own units.

use core::fmt;
use core::str::FromStr;
use std::borrow::Cow;

use fleetwave_report::metric::{self, METRICS, Metric, MetricValue, Unit};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::compare::Comparison;
use super::near;
use super::quantity::{Bandwidth, ByteSize, Count, Percent, QuantityError, Rate, Span};

/// One condition on one metric.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// The metric.
    pub metric: &'static Metric,
    /// How it has to compare.
    pub comparison: Comparison,
    /// To what, in the metric's unit.
    pub bound: f64,
    /// The condition as the file has it, for instance `<= 500ms`.
    pub want: String,
}

impl Expectation {
    /// Whether `value` is as expected. Infinite is above every bound.
    #[must_use]
    pub fn accepts(&self, value: MetricValue) -> bool {
        self.comparison.accepts(value.compare(self.bound))
    }

    fn parse(metric: &'static Metric, text: &str) -> Result<Self, QuantityError> {
        let example = format!("\"<= {}\"", example(metric.unit));
        let Some(("", comparison, bound)) = Comparison::split(text) else {
            return Err(QuantityError::new(format!(
                "\"{text}\" is not a condition; start with <, <=, =, >= or >, for instance {example}"
            )));
        };
        let bound = in_unit(metric.unit, bound).map_err(|error| {
            QuantityError::new(format!("`{}` is {}: {error}", metric.name, described(metric.unit)))
        })?;
        Ok(Self {
            metric,
            comparison,
            bound,
            want: format!("{comparison} {}", text.trim_start_matches(['<', '>', '=', ' ']).trim_end()),
        })
    }
}

impl PartialEq for Expectation {
    fn eq(&self, other: &Self) -> bool {
        self.metric.name == other.metric.name && self.want == other.want
    }
}

/// What a unit is called in a message.
const fn described(unit: Unit) -> &'static str {
    match unit {
        Unit::Seconds => "a span of time",
        Unit::Count => "a count",
        Unit::Bytes => "a size",
        Unit::BytesPerSecond => "a bandwidth",
        Unit::PerSecond => "a rate",
        Unit::PerDevice => "a number for each device",
        Unit::BytesPerDevice => "a size for each device",
        Unit::Fraction => "a percentage",
    }
}

/// A bound in that unit, as an example.
pub(super) const fn example(unit: Unit) -> &'static str {
    match unit {
        Unit::Seconds => "500ms",
        Unit::Count => "0",
        Unit::Bytes => "10MB",
        Unit::BytesPerSecond => "50MB/s",
        Unit::PerSecond => "1000/s",
        Unit::PerDevice => "30",
        Unit::BytesPerDevice => "8KiB",
        Unit::Fraction => "99.9%",
    }
}

/// The bound's number in the metric's unit.
fn in_unit(unit: Unit, text: &str) -> Result<f64, QuantityError> {
    if text.starts_with('-') {
        return Err(QuantityError::new(format!("{text} is negative, and no metric ever is")));
    }
    Ok(match unit {
        Unit::Seconds => text.parse::<Span>()?.as_secs_f64(),
        Unit::Count => text.parse::<Count>()?.0 as f64,
        Unit::Bytes | Unit::BytesPerDevice => text.parse::<ByteSize>()?.bytes() as f64,
        Unit::BytesPerSecond => text.parse::<Bandwidth>()?.bytes_per_second(),
        Unit::PerSecond => text.parse::<Rate>()?.per_second(),
        Unit::PerDevice => plain(text)?,
        Unit::Fraction => text.parse::<Percent>()?.fraction(),
    })
}

fn plain(text: &str) -> Result<f64, QuantityError> {
    f64::from_str(text).ok().filter(|number| number.is_finite()).ok_or_else(|| {
        QuantityError::new(format!("\"{text}\" is not a plain number; write one such as \"30\" or \"12.5\""))
    })
}

/// All expectations, in the file's order. A metric may have several conditions, as an array.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expectations(pub Vec<Expectation>);

impl<'de> Deserialize<'de> for Expectations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = Expectations;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of metrics and conditions")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Expectations, A::Error> {
                let mut all = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    map.next_value_seed(Conditions { name: &name, into: &mut all })?;
                }
                Ok(Expectations(all))
            }
        }
        deserializer.deserialize_map(Table)
    }
}

/// The condition or conditions on the metric `name`.
struct Conditions<'a> {
    name: &'a str,
    into: &'a mut Vec<Expectation>,
}

impl Conditions<'_> {
    fn add<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        let metric = metric::find(self.name).ok_or_else(|| {
            let names = METRICS.iter().map(|metric| metric.name);
            E::custom(format!("`{}` is not a metric{}", self.name, near::did_you_mean(self.name, names)))
        })?;
        self.into.push(Expectation::parse(metric, text).map_err(E::custom)?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Conditions<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Conditions<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a condition such as \"<= 500ms\", or an array of them")
    }

    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> Result<(), E> {
        self.add(text)
    }

    fn visit_i64<E: serde::de::Error>(mut self, number: i64) -> Result<(), E> {
        self.add(&format!("= {number}"))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(text) = seq.next_element::<String>()? {
            self.add(&text)?;
        }
        Ok(())
    }
}

impl Serialize for Expectations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut seen: Vec<&str> = Vec::new();
        for Expectation { metric, .. } in &self.0 {
            if !seen.contains(&metric.name) {
                seen.push(metric.name);
                let wants: Vec<&str> = self
                    .0
                    .iter()
                    .filter(|other| other.metric.name == metric.name)
                    .map(|other| other.want.as_str())
                    .collect();
                map.serialize_entry(metric.name, &wants)?;
            }
        }
        map.end()
    }
}

impl JsonSchema for Expectations {
    fn schema_name() -> Cow<'static, str> {
        "Expectations".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let properties: serde_json::Map<String, serde_json::Value> = METRICS
            .iter()
            .map(|metric| {
                let condition = json_schema!({
                    "anyOf": [
                        { "type": "string", "pattern": r"^\s*(<=|>=|<|>|=|==)\s*[0-9]" },
                        { "type": "integer", "minimum": 0 },
                        { "type": "array", "items": { "type": "string" } },
                    ],
                    "description": metric.doc,
                    "examples": [format!("<= {}", example(metric.unit))],
                });
                (metric.name.to_owned(), condition.to_value())
            })
            .collect();
        json_schema!({ "type": "object", "properties": properties, "additionalProperties": false })
    }
}
