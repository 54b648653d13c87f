//! Where a reader of events begins: the filter of its link.
//!
//! Source: what the Event Hubs SDKs send: `amqp.annotation.x-opt-offset > '-1'` and the like, a described string in the
//! source's filter set.

use fleetwave_protocol::WallTime;

use super::value::Value;
use crate::events::Start;

/// The name of the filter, in the set and as descriptor.
pub(crate) const SELECTOR: &str = "apache.org:selector-filter:string";

/// A selector that is not of the known form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the selector {0:?} is unknown: amqp.annotation.x-opt-offset, x-opt-sequence-number or x-opt-enqueued-time was \
     expected, with > or >= and a quoted value"
)]
pub(crate) struct UnknownSelector(String);

/// Where a source's filter set begins; with the oldest event if it has no selector.
pub(crate) fn start(filter: &Value) -> Result<Start, UnknownSelector> {
    let Some(selector) = filter.get(SELECTOR) else { return Ok(Start::Oldest) };
    let text = match selector {
        Value::Described(described) => described.1.text(),
        value => value.text(),
    }
    .unwrap_or_default();
    parse(text).ok_or_else(|| UnknownSelector(text.to_owned()))
}

fn parse(text: &str) -> Option<Start> {
    let rest = text.trim().strip_prefix("amqp.annotation.")?;
    let (field, condition) = rest.split_once('>')?;
    let (inclusive, value) = match condition.strip_prefix('=') {
        Some(value) => (true, value),
        None => (false, condition),
    };
    let value = value.trim();
    let value = value.strip_prefix('\'').map_or(Some(value), |quoted| quoted.strip_suffix('\''))?.trim();
    match field.trim() {
        "x-opt-offset" => Some(match value {
            "@latest" => Start::Latest,
            "-1" => Start::Oldest,
            _ => Start::Offset { offset: value.parse().ok()?, inclusive },
        }),
        "x-opt-sequence-number" => Some(match value {
            "-1" => Start::Oldest,
            _ => Start::Sequence { number: value.parse().ok()?, inclusive },
        }),
        "x-opt-enqueued-time" | "x-opt-enqueuedtimeutc" => {
            let millis: i64 = value.parse().ok()?;
            let time = WallTime::from_unix_millis(u64::try_from(millis).unwrap_or(0));
            Some(Start::Enqueued { time, inclusive })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Start, UnknownSelector> {
        let described = Value::Described(Box::new((Value::symbol(SELECTOR), Value::string(text))));
        start(&Value::Map(vec![(Value::symbol(SELECTOR), described)]))
    }

    #[test]
    fn each_selector_of_the_sdks_is_a_start() {
        for (text, expected) in [
            ("amqp.annotation.x-opt-offset > '-1'", Start::Oldest),
            ("amqp.annotation.x-opt-offset > '@latest'", Start::Latest),
            ("amqp.annotation.x-opt-offset >= '77'", Start::Offset { offset: 77, inclusive: true }),
            ("amqp.annotation.x-opt-sequence-number > '5'", Start::Sequence { number: 5, inclusive: false }),
            (
                "amqp.annotation.x-opt-enqueued-time > '1600000000000'",
                Start::Enqueued { time: WallTime::from_unix_millis(1_600_000_000_000), inclusive: false },
            ),
        ] {
            assert_eq!(of(text), Ok(expected));
        }
        assert_eq!(start(&Value::Null), Ok(Start::Oldest));
    }

    #[test]
    fn other_selectors_are_refused_by_name() {
        for text in [
            "",
            "amqp.annotation.x-opt-offset < '5'",
            "amqp.annotation.x-opt-offset > 'x'",
            "amqp.annotation.x-opt-partition-key > '1'",
            "color = 'red'",
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }
}
