//! The hub of the small world: one twin as JSON.

use serde_json::{Map, Value, json};

#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) version: u64,
    pub(crate) desired: Map<String, Value>,
    pub(crate) reported: Value,
    /// Reports that were accepted, in order.
    pub(crate) reports: Vec<Value>,
    pub(crate) connected: bool,
    /// Connections are refused.
    pub(crate) away: bool,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            version: 1,
            desired: Map::new(),
            reported: json!({}),
            reports: Vec::new(),
            connected: false,
            away: false,
        }
    }
}

impl Hub {
    pub(crate) fn patch(&mut self, patch: &Value) -> Vec<u8> {
        self.version += 1;
        let mut desired = Value::Object(std::mem::take(&mut self.desired));
        merged(&mut desired, patch);
        let Value::Object(desired) = desired else { panic!("a patch of desired properties is an object") };
        self.desired = desired;
        let mut body = patch.clone();
        body["$version"] = self.version.into();
        body.to_string().into_bytes()
    }

    pub(crate) fn twin(&self) -> Vec<u8> {
        let mut desired = self.desired.clone();
        desired.insert("$version".into(), self.version.into());
        json!({"desired": desired, "reported": self.reported}).to_string().into_bytes()
    }

    pub(crate) fn report(&mut self, body: &str) {
        let patch: Value = serde_json::from_str(body).expect("a report is JSON");
        merged(&mut self.reported, &patch);
        self.reports.push(patch);
    }

    pub(crate) fn wants_firmware(&self) -> bool {
        self.desired
            .get("firmware")
            .is_some_and(|firmware| firmware.get("cancel") != Some(&Value::Bool(true)))
    }
}

/// JSON merge patch as RFC 7396 writes it down.
pub(crate) fn merged(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("just made one");
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merged(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}
