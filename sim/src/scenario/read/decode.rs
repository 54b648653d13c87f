//! From a tree of TOML to the scenario's types, piece by piece, so that one mistake does not hide the others.

use serde::de::{DeserializeOwned, IntoDeserializer};
use toml_edit::{InlineTable, Value};

use super::path::{Path, Segment};
use super::source::Source;
use crate::scenario::expect::Expectations;
use crate::scenario::model::{
    Agent, Blob, FleetSpec, Grant, Group, Harness, Hub, Live, Release, Scenario, SchemaVersion,
};
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
            source.error(&Path::from(error.path()), error.inner().message().to_owned(), None);
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
    let mut removed: Vec<Path> = Vec::new();
    while let Err(error) = serde_path_to_error::deserialize::<_, T>(value.clone().into_deserializer()) {
        let inner = Path::from(error.path());
        let message = error.inner().message();
        // What lacks something only because it was just taken out, or because it was reported as missing before,
        // is no second mistake.
        let known =
            message.starts_with("missing field") || removed.iter().any(|gone| inner.is_prefix_of(gone));
        if !(known && source.failed()) {
            source.error(&path.join(&inner), readable(message), None);
        }
        if known || !remove(&mut value, &inner.0) {
            return;
        }
        removed.push(inner);
    }
}

/// Serde's words as a user of TOML would say them.
fn readable(message: &str) -> String {
    match message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
        Some((found, expected)) => {
            let found = found.replace("map", "a table").replace("sequence", "an array");
            let expected = expected.replace("struct ", "a table of ").replace("a sequence", "an array");
            format!("{found} stands where {expected} is expected")
        }
        None => message.to_owned(),
    }
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
