//! A JSON patch of a digital twin as a merge patch of desired properties.

use fleetwave_hub_core::ErrorCode;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::ApiError;
use super::view::{MARK, is_component};

/// One operation of a patch.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Change {
    op: String,
    path: String,
    #[serde(default, deserialize_with = "present")]
    value: Option<Value>,
}

/// Tells a null that is there from a value that is not.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Reads a patch.
pub(super) fn read(body: &[u8]) -> Result<Vec<Change>, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(ErrorCode::InvalidDigitalTwinJsonPatch, format!("the body is no JSON patch: {error}"))
    })
}

/// The merge patch of the desired properties that does what the operations say.
pub(super) fn desired(changes: &[Change], twin: &Value) -> Result<Value, ApiError> {
    let mut merge = Map::new();
    for change in changes {
        let value = change.new_value()?;
        let keys = change.keys()?;
        match keys.as_slice() {
            [name] => {
                merge.insert(name.clone(), whole(value));
            }
            [name, property] => {
                let object = merge.entry(name).or_insert_with(|| Value::Object(Map::new()));
                // A component that was taken away by an operation before is one again.
                if !object.is_object() {
                    *object = Value::Object(Map::new());
                }
                if stands_for_component(twin, name) {
                    object[MARK] = "c".into();
                }
                object[property.as_str()] = value;
            }
            _ => return Err(change.bad_path("has to be /PROPERTY, /COMPONENT or /COMPONENT/PROPERTY")),
        }
    }
    Ok(merge.into())
}

/// Whether a name is a component's in the twin, or could be one.
fn stands_for_component(twin: &Value, name: &str) -> bool {
    let [desired, reported] = ["desired", "reported"].map(|side| twin["properties"][side].get(name));
    is_component(desired) || is_component(reported) || (desired.is_none() && reported.is_none())
}

/// A value at the root: an object with `$metadata` is a component.
fn whole(value: Value) -> Value {
    match value {
        Value::Object(mut members) if members.contains_key("$metadata") => {
            members.remove("$metadata");
            members.insert(MARK.into(), "c".into());
            members.into()
        }
        value => value,
    }
}

impl Change {
    /// What the operation puts there; null takes away.
    fn new_value(&self) -> Result<Value, ApiError> {
        let bad = |why: String| ApiError::new(ErrorCode::InvalidDigitalTwinPatch, why);
        match (self.op.as_str(), &self.value) {
            ("add" | "replace", Some(value)) => Ok(value.clone()),
            ("add" | "replace", None) => Err(bad(format!("{:?} at {:?} has no value", self.op, self.path))),
            ("remove", _) => Ok(Value::Null),
            (other, _) => Err(bad(format!(
                "the operation {other:?} can't be done: \"add\", \"replace\" or \"remove\" can"
            ))),
        }
    }

    fn bad_path(&self, why: &str) -> ApiError {
        ApiError::new(ErrorCode::InvalidDigitalTwinPatchPath, format!("the path {:?} {why}", self.path))
    }

    /// The keys of the path.
    fn keys(&self) -> Result<Vec<String>, ApiError> {
        let path = self.path.strip_prefix('/').ok_or_else(|| self.bad_path("has to begin with a slash"))?;
        let keys: Vec<_> = path.split('/').map(|key| key.replace("~1", "/").replace("~0", "~")).collect();
        if keys.iter().any(|key| key.is_empty() || key.starts_with('$') || key == MARK) {
            return Err(self.bad_path("has a key that is empty or the hub's own"));
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(patch: Value, twin: Value) -> Result<Value, u32> {
        read(patch.to_string().as_bytes()).and_then(|changes| desired(&changes, &twin)).map_err(|error| {
            match error {
                ApiError::Hub(error) => error.code.number(),
                other => panic!("{other:?}"),
            }
        })
    }

    #[test]
    fn operations_become_one_merge_patch() {
        let twin = json!({ "properties": { "desired": {}, "reported": { "plain": { "x": 1 }, "t": { "__t": "c" } } } });
        let patch = json!([
            { "op": "add", "path": "/interval", "value": 7 },
            { "op": "remove", "path": "/old" },
            { "op": "replace", "path": "/t/target", "value": { "low": 1 } },
            { "op": "remove", "path": "/t/other" },
            { "op": "add", "path": "/new/a~1b", "value": null },
            { "op": "add", "path": "/plain/x", "value": 2 },
            { "op": "add", "path": "/whole", "value": { "$metadata": {}, "a": 1 } },
        ]);
        assert_eq!(
            merged(patch, twin),
            Ok(json!({
                "interval": 7, "old": null, "t": { "__t": "c", "target": { "low": 1 }, "other": null },
                "new": { "__t": "c", "a/b": null }, "plain": { "x": 2 }, "whole": { "__t": "c", "a": 1 },
            }))
        );
    }

    #[test]
    fn what_is_no_patch_has_its_own_code() {
        for (patch, code) in [
            (json!({ "op": "add" }), 400_505),
            (json!([{ "op": "add", "path": "/a" }]), 400_507),
            (json!([{ "op": "move", "path": "/a", "from": "/b" }]), 400_507),
            (json!([{ "op": "remove", "path": "a" }]), 400_508),
            (json!([{ "op": "remove", "path": "/a/b/c" }]), 400_508),
            (json!([{ "op": "remove", "path": "/$metadata/$model" }]), 400_508),
        ] {
            assert_eq!(merged(patch.clone(), json!({})), Err(code), "{patch}");
        }
    }
}
