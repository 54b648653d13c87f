//! Holds `docs/run-record.md` to what the record really is.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::metric::{METRICS, Unit};

const PAGE: &str = include_str!("../../docs/run-record.md");

/// Every property that the schema knows, at any depth.
fn properties(schema: &Value, into: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Object(fields)) = object.get("properties") {
                into.extend(fields.keys().cloned());
            }
            object.values().for_each(|value| properties(value, into));
        }
        Value::Array(values) => values.iter().for_each(|value| properties(value, into)),
        _ => {}
    }
}

#[test]
fn the_page_names_every_field_of_the_record() {
    let mut fields = BTreeSet::new();
    properties(&crate::schema(), &mut fields);
    let missing: Vec<_> = fields.iter().filter(|field| !PAGE.contains(&format!("`{field}`"))).collect();
    assert!(missing.is_empty(), "docs/run-record.md does not name {missing:?}");
}

#[test]
fn the_page_lists_every_metric_with_its_unit_and_meaning() {
    let unit = |unit| match unit {
        Unit::Seconds => "seconds",
        Unit::Count => "count",
        Unit::Bytes => "bytes",
        Unit::BytesPerSecond => "bytes a second",
        Unit::PerSecond => "a second",
        Unit::PerDevice => "a device",
        Unit::BytesPerDevice => "bytes a device",
        Unit::Fraction => "fraction",
    };
    let rows: String = METRICS
        .iter()
        .map(|metric| format!("| `{}` | {} | {} |\n", metric.name, unit(metric.unit), metric.doc))
        .collect();
    assert!(PAGE.contains(&rows), "docs/run-record.md has to have these rows:\n{rows}");
}
