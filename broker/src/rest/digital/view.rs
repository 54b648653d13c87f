//! A twin as a digital twin.

use serde_json::{Map, Value, json};

/// What marks an object in a twin as a component, and is none of its properties.
pub(super) const MARK: &str = "__t";

/// Whether a value of a twin is a component.
pub(super) fn is_component(value: Option<&Value>) -> bool {
    value.and_then(|value| value.get(MARK)).is_some_and(|mark| mark == "c")
}

/// The digital twin of a twin, as the back end reads that.
pub(super) fn digital_twin(twin: &Value) -> Value {
    let side = |name: &str| Side {
        values: &twin["properties"][name],
        metadata: &twin["properties"][name]["$metadata"],
    };
    let (desired, reported) = (side("desired"), side("reported"));
    let mut root = Map::new();
    let mut metadata = Map::new();
    metadata.insert("$model".into(), twin["modelId"].clone());
    for name in names(&desired, &reported) {
        let (wanted, is) = (desired.get(&name), reported.get(&name));
        if is_component(wanted.as_ref().map(|(value, _)| *value))
            || is_component(is.as_ref().map(|(value, _)| *value))
        {
            root.insert(name.clone(), component(&desired.below(&name), &reported.below(&name)));
        } else {
            property(&name, wanted, is, &mut root, &mut metadata);
        }
    }
    let mut whole = Map::new();
    whole.insert("$dtId".into(), twin["deviceId"].clone());
    whole.insert("$metadata".into(), metadata.into());
    whole.extend(root);
    whole.into()
}

/// Desired or reported properties, of the root or of a component.
struct Side<'a> {
    values: &'a Value,
    metadata: &'a Value,
}

impl<'a> Side<'a> {
    fn below(&self, name: &str) -> Self {
        Self { values: &self.values[name], metadata: &self.metadata[name] }
    }

    /// A property's value and what the twin says of it.
    fn get(&self, name: &str) -> Option<(&'a Value, &'a Value)> {
        Some((self.values.get(name)?, &self.metadata[name]))
    }
}

/// The names of the properties on both sides, each once.
fn names(desired: &Side<'_>, reported: &Side<'_>) -> Vec<String> {
    let of = |side: &Side<'_>| -> Vec<String> {
        side.values.as_object().into_iter().flat_map(Map::keys).cloned().collect()
    };
    let mut names = of(desired);
    names.extend(of(reported));
    names.sort();
    names.dedup();
    names.retain(|name| !name.starts_with('$') && name != MARK);
    names
}

fn component(desired: &Side<'_>, reported: &Side<'_>) -> Value {
    let (mut values, mut metadata) = (Map::new(), Map::new());
    for name in names(desired, reported) {
        property(&name, desired.get(&name), reported.get(&name), &mut values, &mut metadata);
    }
    values.insert("$metadata".into(), metadata.into());
    values.into()
}

/// Writes a property: its value is what the device reported; beside it stands what is wanted and was acknowledged.
fn property(
    name: &str,
    desired: Option<(&Value, &Value)>,
    reported: Option<(&Value, &Value)>,
    values: &mut Map<String, Value>,
    metadata: &mut Map<String, Value>,
) {
    let mut about = Map::new();
    let mut time = None;
    if let Some((value, said)) = desired {
        about.insert("desiredValue".into(), value.clone());
        about.insert("desiredVersion".into(), said["$lastUpdatedVersion"].clone());
        time = said.get("$lastUpdated");
    }
    if let Some((value, said)) = reported {
        time = said.get("$lastUpdated").or(time);
        match acknowledgement(value) {
            Some([value, version, code, description]) => {
                values.insert(name.into(), value.clone());
                for (name, value) in
                    [("ackVersion", version), ("ackCode", code), ("ackDescription", description)]
                {
                    if !value.is_null() {
                        about.insert(name.into(), value.clone());
                    }
                }
            }
            None => {
                values.insert(name.into(), value.clone());
            }
        }
    }
    if let Some(time) = time {
        about.insert("lastUpdateTime".into(), time.clone());
    }
    metadata.insert(name.into(), json!(about));
}

/// The value, version, code and description of an acknowledgement; `None` for any other value.
fn acknowledgement(value: &Value) -> Option<[&Value; 4]> {
    value.get("ac")?;
    Some([value.get("value")?, &value["av"], &value["ac"], &value["ad"]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_and_acknowledgements_are_told_by_their_form() {
        let at =
            |version: u32| json!({ "$lastUpdated": format!("t{version}"), "$lastUpdatedVersion": version });
        let mut thermostat = json!({ "targetTemperature": at(4) });
        thermostat["maxTemp"] = at(5);
        let twin = json!({
            "deviceId": "d", "modelId": "dtmi:com:example:TemperatureController;1",
            "properties": {
                "desired": {
                    "thermostat1": { "__t": "c", "targetTemperature": 20.4 },
                    "interval": 7,
                    "$metadata": { "thermostat1": { "targetTemperature": at(4) }, "interval": at(6) }, "$version": 6,
                },
                "reported": {
                    "serial": "x",
                    "thermostat1": {
                        "__t": "c", "maxTemp": 25.3,
                        "targetTemperature": { "value": 20.4, "ac": 200, "av": 4, "ad": "done" },
                    },
                    "$metadata": { "serial": at(2), "thermostat1": thermostat }, "$version": 5,
                },
            },
        });
        assert_eq!(
            digital_twin(&twin),
            json!({
                "$dtId": "d",
                "$metadata": {
                    "$model": "dtmi:com:example:TemperatureController;1",
                    "serial": { "lastUpdateTime": "t2" },
                    "interval": { "desiredValue": 7, "desiredVersion": 6, "lastUpdateTime": "t6" },
                },
                "serial": "x",
                "thermostat1": {
                    "maxTemp": 25.3,
                    "targetTemperature": 20.4,
                    "$metadata": {
                        "maxTemp": { "lastUpdateTime": "t5" },
                        "targetTemperature": {
                            "desiredValue": 20.4, "desiredVersion": 4, "ackVersion": 4, "ackCode": 200,
                            "ackDescription": "done", "lastUpdateTime": "t4",
                        },
                    },
                },
            })
        );
    }
}
