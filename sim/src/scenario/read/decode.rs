//! From a tree of TOML to the scenario's types, piece by piece, so that one mistake does not hide the others.

use serde::de::{DeserializeOwned, IntoDeserializer};
use toml_edit::{InlineTable, Value};

use super::path::{Path, Segment};
use super::source::Source;
use crate::scenario::expect::Expectations;
use crate::scenario::model::{
    Agent, Blob, FleetSpec, Grant, Group, Harness, Hub, Live, Release, Scenario, SchemaVersion, Script,
};
use crate::scenario::near;
use crate::scenario::quantity::TimeOfDay;
use crate::scenario::step::Step;

/// The scenario, or `None` if `source` was told what is wrong.
pub(super) fn decode(root: &InlineTable, source: &mut Source) -> Option<Scenario> {
    for (key, value) in root {
        let path = Path::default().key(key);
        match key {
            "schema" => piece::<SchemaVersion>(value, &path, source),
            "name" | "description" => piece::<String>(value, &path, source),
            "seed" => piece::<u64>(value, &path, source),
            "clock" => piece::<TimeOfDay>(value, &path, source),
            "fleet" => fleet(value, &path, source),
            "release" => members::<Release>(value, &path, source),
            "agent" => piece::<Agent>(value, &path, source),
            "hub" => piece::<Hub>(value, &path, source),
            "grant" => piece::<Grant>(value, &path, source),
            "blob" => piece::<Blob>(value, &path, source),
            "live" => piece::<Live>(value, &path, source),
            "script" => piece::<Script>(value, &path, source),
            "harness" => piece::<Harness>(value, &path, source),
            "step" => members::<Step>(value, &path, source),
            "expect" => piece::<Expectations>(value, &path, source),
            _ => {}
        }
    }
    if source.failed() {
        return None;
    }
    let whole = Value::InlineTable(root.clone());
    match serde_path_to_error::deserialize(whole.into_deserializer()) {
        Ok(scenario) => Some(scenario),
        Err(error) => {
            let (message, help) = readable(error.inner().message());
            source.error(&Path::from(error.path()), message, help);
            None
        }
    }
}

/// The fleet without its groups, and each group by itself.
fn fleet(value: &Value, path: &Path, source: &mut Source) {
    let mut value = value.clone();
    if let Some(groups) = value.as_inline_table_mut().and_then(|table| table.remove("group")) {
        members::<Group>(&groups, &path.key("group"), source);
    }
    piece::<FleetSpec>(&value, path, source);
}

/// Each member of an array by itself.
fn members<T: DeserializeOwned>(value: &Value, path: &Path, source: &mut Source) {
    let Some(array) = value.as_array() else {
        let help = format!("write [[{path}]], with two brackets: there can be several");
        source.error(path, format!("`{path}` is one table and should be an array of tables"), Some(help));
        return;
    };
    for (index, member) in array.iter().enumerate() {
        piece::<T>(member, &path.index(index), source);
    }
}

/// Reports what keeps `value` from being a `T`: takes each offending value out and tries again.
fn piece<T: DeserializeOwned>(value: &Value, path: &Path, source: &mut Source) {
    let mut value = value.clone();
    while let Err(error) = serde_path_to_error::deserialize::<_, T>(value.clone().into_deserializer()) {
        let inner = Path::from(error.path());
        let at = path.join(&inner);
        // What lacks something only because it was just taken out is no second mistake.
        let known = source.is_wrong(&at);
        if !known {
            let (message, help) = readable(error.inner().message());
            source.error(&at, message, help);
        }
        if known || !remove(&mut value, &inner.0) {
            return;
        }
    }
}

/// Serde's words as a user of TOML would say them, and the nearest of the words that would have been right.
fn readable(message: &str) -> (String, Option<String>) {
    let split = |kind: &str| message.strip_prefix(kind)?.split_once(", expected ");
    if let Some((found, expected)) = split("unknown variant ") {
        let given = found.trim_matches('`');
        let nearest = near::nearest(given, expected.split('`').skip(1).step_by(2));
        let expected = expected.strip_prefix("one of ").unwrap_or(expected);
        let help = nearest.map(|name| format!("did you mean `{name}`?"));
        return (format!("{found} is not possible here; it takes {expected}"), help);
    }
    if let Some((found, expected)) = split("invalid type: ").or_else(|| split("invalid value: ")) {
        let found = found.replace("map", "a table").replace("sequence", "an array");
        let expected = match expected {
            "u64" => "a whole number from 0".to_owned(),
            "u32" => format!("a whole number from 0 to {}", u32::MAX),
            "u16" => format!("a whole number from 0 to {}", u16::MAX),
            "u8" => format!("a whole number from 0 to {}", u8::MAX),
            other => other.replace("struct ", "a table of ").replace("a sequence", "an array"),
        };
        return (format!("{found} stands where {expected} belongs"), None);
    }
    (message.to_owned(), None)
}

/// Takes the value at `path` out of its table. False if it is not in one.
fn remove(value: &mut Value, path: &[Segment]) -> bool {
    match (path, value) {
        ([Segment::Key(key)], Value::InlineTable(table)) => table.remove(key).is_some(),
        ([Segment::Key(key), rest @ ..], Value::InlineTable(table)) => {
            table.get_mut(key).is_some_and(|inner| {
                // A member of an array cannot go without moving the others: its whole array goes.
                if matches!(rest, [Segment::Index(_)]) { remove_array(inner) } else { remove(inner, rest) }
            })
        }
        ([Segment::Index(index), rest @ ..], Value::Array(array)) => {
            array.get_mut(*index).is_some_and(|inner| remove(inner, rest))
        }
        _ => false,
    }
}

fn remove_array(value: &mut Value) -> bool {
    value.as_array_mut().is_some_and(|array| {
        let some = !array.is_empty();
        array.clear();
        some
    })
}
