//! What an event becomes on its way to the back end: IoT Hub's source, properties and body.

use bytes::Bytes;
use fleetwave_hub_core::Iso8601;
use fleetwave_protocol::{Now, bag};
use serde_json::{Value, json};

use super::log::{Event, Source};
use super::{EventKind, HubEvent};

/// What kind of event it is; `None` for feedback, which has a way of its own.
pub(crate) fn source(kind: &EventKind<'_>) -> Option<Source> {
    match kind {
        EventKind::Telemetry { .. } => Some(Source::Telemetry),
        EventKind::Reported { .. } | EventKind::TwinWritten { .. } => Some(Source::TwinChanges),
        EventKind::Created { .. } | EventKind::Deleted { .. } => Some(Source::Lifecycle),
        EventKind::Connected { .. } | EventKind::Disconnected { .. } => Some(Source::ConnectionState),
        EventKind::Feedback { .. } => None,
    }
}

/// The event as the hub called `hub` hands it on.
pub(crate) fn routed(hub: &str, now: Now, event: &HubEvent<'_>) -> Option<Event> {
    let source = source(&event.kind)?;
    let is_module = event.id.contains('/');
    let made = |properties: &str, body: Bytes| Event {
        id: event.id.into(),
        generation: event.generation.into(),
        authentication: event.authentication,
        model: event.model.map(Into::into),
        source,
        properties: properties.into(),
        body,
    };
    let told = |operation: &str, body: Vec<u8>| {
        made(&told_properties(hub, now, event.id, source, operation), body.into())
    };
    Some(match event.kind {
        EventKind::Telemetry { properties, body } => made(properties, Bytes::copy_from_slice(body)),
        EventKind::Reported { version, patch } => {
            let body = json!({ "properties": { "reported": section(patch, Some(version)) } });
            told("updateTwin", body.to_string().into())
        }
        EventKind::TwinWritten { tags, desired, version, replaced } => {
            let mut body = json!({});
            if let Some(tags) = tags {
                body["tags"] = section(tags, None);
            }
            if let Some(desired) = desired {
                body["properties"] = json!({ "desired": section(desired, Some(version)) });
            }
            told(if replaced { "replaceTwin" } else { "updateTwin" }, body.to_string().into())
        }
        EventKind::Created { twin } => {
            told(if is_module { "createModuleIdentity" } else { "createDeviceIdentity" }, twin.into())
        }
        EventKind::Deleted { twin } => {
            told(if is_module { "deleteModuleIdentity" } else { "deleteDeviceIdentity" }, twin.into())
        }
        EventKind::Connected { sequence } | EventKind::Disconnected { sequence } => {
            let operation = match (is_module, matches!(event.kind, EventKind::Connected { .. })) {
                (false, true) => "deviceConnected",
                (false, false) => "deviceDisconnected",
                (true, true) => "moduleConnected",
                (true, false) => "moduleDisconnected",
            };
            told(operation, json!({ "sequenceNumber": format!("{sequence:064X}") }).to_string().into())
        }
        EventKind::Feedback { .. } => return None,
    })
}

/// The properties of an event that is not a device's own message.
fn told_properties(hub: &str, now: Now, id: &str, source: Source, operation: &str) -> String {
    let schema = match source {
        Source::Lifecycle => "deviceLifecycleNotification",
        Source::ConnectionState => "deviceConnectionStateNotification",
        Source::TwinChanges | Source::Telemetry => "twinChangeNotification",
    };
    let (device, module) = match id.split_once('/') {
        Some((device, module)) => (device, Some(module)),
        None => (id, None),
    };
    let mut properties = String::new();
    let mut push = |key, value: &str| bag::push(&mut properties, key, value);
    push("$.ct", "application/json");
    push("$.ce", "utf-8");
    push("hubName", hub);
    push("deviceId", device);
    if let Some(module) = module {
        push("moduleId", module);
    }
    push("operationTimestamp", &Iso8601(now.wall).to_string());
    push("iothub-message-schema", schema);
    push("opType", operation);
    properties
}

/// A section of a twin after a change: the patch, with the section's version if it is known.
fn section(patch: &[u8], version: Option<u64>) -> Value {
    let mut section: Value = serde_json::from_slice(patch).unwrap_or_default();
    if let (Value::Object(members), Some(version)) = (&mut section, version) {
        members.insert("$version".to_owned(), version.into());
    }
    section
}
