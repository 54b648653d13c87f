//! The form of an event on the bus: CloudEvents 1.0, structured, JSON.
//!
//! Types and data are those of Azure Event Grid's IoT Hub events (`Microsoft.Devices.DeviceTelemetry`, …), which
//! consumers know; Event Grid has none for twins, so that theirs is Fleetwave's own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetwave_hub_core::Iso8601;
use fleetwave_protocol::{WallTime, bag};
use serde_json::{Map, Value, json};

use crate::events::{Event, Source};

/// System properties as they stand in a bag, and as the back end calls them.
const SYSTEM: [(&str, &str); 8] = [
    ("$.mid", "message-id"),
    ("$.cid", "correlation-id"),
    ("$.uid", "user-id"),
    ("$.ct", "iothub-content-type"),
    ("$.ce", "iothub-content-encoding"),
    ("$.on", "iothub-output-name"),
    ("$.ifid", "iothub-interface-id"),
    ("$.sub", "dt-subject"),
];

/// The topic of an event. What an id may have and a topic not is percent-encoded.
pub(super) fn topic(event: &Event) -> String {
    let kind = match event.source {
        Source::Telemetry => "telemetry",
        Source::TwinChanges => "twin",
        Source::Lifecycle => "lifecycle",
        Source::ConnectionState => "connection",
    };
    let mut topic = format!("fleetwave/events/{kind}/");
    for char in event.id.chars() {
        match char {
            '+' | '#' | '%' => bag::encode_into(char.encode_utf8(&mut [0; 4]), &mut topic),
            other => topic.push(other),
        }
    }
    topic
}

/// What all envelopes of a hub share.
pub(super) struct Envelope {
    hub: String,
    source: String,
    /// Tells the events of this start from those of others.
    start: String,
}

impl Envelope {
    pub(super) fn new(hub: &str) -> Self {
        let start = uuid::Uuid::new_v4().simple().to_string();
        Self { hub: hub.to_owned(), source: format!("/hubs/{}", bag::encode(hub)), start }
    }

    /// The event of this number in its envelope.
    pub(super) fn write(&self, number: u64, at: WallTime, event: &Event) -> Vec<u8> {
        let (device, module) = match event.id.split_once('/') {
            Some((device, module)) => (device, Some(module)),
            None => (&*event.id, None),
        };
        let subject = match module {
            Some(module) => format!("devices/{device}/modules/{module}"),
            None => format!("devices/{device}"),
        };
        let operation = bag::get(&event.properties, "opType").unwrap_or_default();
        let (kind, data) = match event.source {
            Source::Telemetry => ("Microsoft.Devices.DeviceTelemetry", telemetry(at, event, device, module)),
            _ => {
                let mut data = json!({ "hubName": self.hub, "deviceId": device });
                if let Some(module) = module {
                    data["moduleId"] = module.into();
                }
                let body: Value = serde_json::from_slice(&event.body).unwrap_or_default();
                let kind = match (event.source, &*operation) {
                    (Source::Lifecycle, "createDeviceIdentity" | "createModuleIdentity") => {
                        data["twin"] = body;
                        "Microsoft.Devices.DeviceCreated"
                    }
                    (Source::Lifecycle, _) => {
                        data["twin"] = body;
                        "Microsoft.Devices.DeviceDeleted"
                    }
                    (Source::ConnectionState, operation) => {
                        data["deviceConnectionStateEventInfo"] = body;
                        if operation.ends_with("Disconnected") {
                            "Microsoft.Devices.DeviceDisconnected"
                        } else {
                            "Microsoft.Devices.DeviceConnected"
                        }
                    }
                    _ => {
                        data["operation"] = (&*operation).into();
                        data["change"] = body;
                        "Fleetwave.Devices.TwinChanged"
                    }
                };
                (kind, data)
            }
        };
        let envelope = json!({
            "specversion": "1.0",
            "id": format!("{}-{number}", self.start),
            "source": self.source,
            "type": kind,
            "subject": subject,
            "time": Iso8601(at).to_string(),
            "datacontenttype": "application/json",
            "data": data,
        });
        envelope.to_string().into_bytes()
    }
}

fn telemetry(at: WallTime, event: &Event, device: &str, module: Option<&str>) -> Value {
    let (mut properties, mut system) = (Map::new(), Map::new());
    for (key, value) in bag::members(&event.properties).flatten() {
        let known = SYSTEM.iter().find(|(short, _)| *short == key);
        match (known, key.strip_prefix("$.")) {
            (Some((_, name)), _) => system.insert((*name).to_owned(), value.into()),
            (None, Some(name)) => system.insert(name.to_owned(), value.into()),
            (None, None) => properties.insert(key.into_owned(), value.into()),
        };
    }
    let body = body(&system, &event.body);
    let mut add = |name: &str, value: &str| system.insert(name.to_owned(), value.into());
    add("iothub-connection-device-id", device);
    if let Some(module) = module {
        add("iothub-connection-module-id", module);
    }
    add("iothub-connection-auth-generation-id", &event.generation);
    add("iothub-enqueuedtime", &Iso8601(at).to_string());
    add("iothub-message-source", event.source.name());
    json!({ "properties": properties, "systemProperties": system, "body": body })
}

/// JSON as it is if the message says that it is JSON in UTF-8, everything else in base64: Event Grid's rule.
fn body(system: &Map<String, Value>, bytes: &[u8]) -> Value {
    let says = |name: &str, expected: &str| {
        let value = system.get(name).and_then(Value::as_str).unwrap_or_default();
        value.split(';').next().is_some_and(|value| value.trim().eq_ignore_ascii_case(expected))
    };
    let is_json = says("iothub-content-type", "application/json") && says("iothub-content-encoding", "utf-8");
    match serde_json::from_slice(bytes) {
        Ok(value) if is_json => value,
        _ => STANDARD.encode(bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, source: Source, properties: &str, body: &'static [u8]) -> Event {
        Event {
            id: id.into(),
            generation: "g".into(),
            authentication: "sas",
            model: None,
            source,
            properties: properties.into(),
            body: body.into(),
        }
    }

    fn written(event: &Event) -> Value {
        let at = WallTime::from_unix_millis(1_456_789_012_345);
        serde_json::from_slice(&Envelope::new("my hub").write(7, at, event)).expect("it is JSON")
    }

    #[test]
    fn ids_become_topics_that_no_filter_can_be() {
        let topic = |id, source| topic(&event(id, source, "", b""));
        assert_eq!(topic("d", Source::Telemetry), "fleetwave/events/telemetry/d");
        assert_eq!(topic("d/m", Source::TwinChanges), "fleetwave/events/twin/d/m");
        assert_eq!(topic("a+b#c%d$", Source::Lifecycle), "fleetwave/events/lifecycle/a%2Bb%23c%25d$");
    }

    #[test]
    fn telemetry_keeps_its_properties_and_json_its_shape() {
        let bag = "%24.ct=application%2Fjson%3Bcharset%3Dutf-8&%24.ce=UTF-8&%24.mid=m1&room=1&$.x=y";
        let value = written(&event("d/m", Source::Telemetry, bag, br#"{"t":21.5}"#));
        assert_eq!(value["specversion"], "1.0");
        assert!(value["id"].as_str().is_some_and(|id| id.ends_with("-7")));
        assert_eq!(value["source"], "/hubs/my%20hub");
        assert_eq!(value["type"], "Microsoft.Devices.DeviceTelemetry");
        assert_eq!(value["subject"], "devices/d/modules/m");
        assert_eq!(value["time"], "2016-02-29T23:36:52.345Z");
        let data = json!({
            "properties": { "room": "1" },
            "systemProperties": {
                "iothub-content-type": "application/json;charset=utf-8",
                "iothub-content-encoding": "UTF-8",
                "message-id": "m1",
                "x": "y",
                "iothub-connection-device-id": "d",
                "iothub-connection-module-id": "m",
                "iothub-connection-auth-generation-id": "g",
                "iothub-enqueuedtime": "2016-02-29T23:36:52.345Z",
                "iothub-message-source": "Telemetry",
            },
            "body": { "t": 21.5 },
        });
        assert_eq!(value["data"], data);
    }

    #[test]
    fn what_does_not_say_that_it_is_json_is_base64() {
        for (bag, body) in [
            ("", &br#"{"t":1}"#[..]),
            ("$.ct=application%2Fjson", br#"{"t":1}"#),
            ("$.ct=application%2Fjson&$.ce=utf-8", b"\xff"),
        ] {
            let value = written(&event("d", Source::Telemetry, bag, body));
            assert_eq!(value["data"]["body"], STANDARD.encode(body), "{bag}");
        }
    }

    #[test]
    fn what_the_hub_itself_tells_is_named_as_event_grid_does() {
        let told = |source, operation: &str, body| {
            let value = written(&event("d", source, &format!("opType={operation}"), body));
            (value["type"].as_str().unwrap_or_default().to_owned(), value["data"].clone())
        };
        let (kind, data) = told(Source::ConnectionState, "deviceDisconnected", br#"{"sequenceNumber":"1"}"#);
        assert_eq!(kind, "Microsoft.Devices.DeviceDisconnected");
        let info = json!({ "sequenceNumber": "1" });
        assert_eq!(
            data,
            json!({ "hubName": "my hub", "deviceId": "d", "deviceConnectionStateEventInfo": info })
        );
        let (kind, data) = told(Source::Lifecycle, "createDeviceIdentity", br#"{"deviceId":"d"}"#);
        assert_eq!(kind, "Microsoft.Devices.DeviceCreated");
        assert_eq!(data["twin"], json!({ "deviceId": "d" }));
        let change = br#"{"properties":{"reported":{"a":1}}}"#;
        let (kind, data) = told(Source::TwinChanges, "updateTwin", change);
        assert_eq!(kind, "Fleetwave.Devices.TwinChanged");
        assert_eq!(data["operation"], "updateTwin");
        assert_eq!(data["change"]["properties"]["reported"]["a"], 1);
    }
}
