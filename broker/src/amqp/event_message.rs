//! Events as messages, the way IoT Hub's Event-Hub-compatible endpoint shows them.
//!
//! Source: the IoT Hub guide "Read device-to-cloud messages from the built-in endpoint" for the annotations, "Create and
//! read IoT Hub messages" for the system properties.

use bytes::Bytes;
use fleetwave_protocol::{WallTime, bag};

use super::message::{Body, Message};
use super::value::Value;
use crate::events::{Entry, PartitionInfo, Source};

/// How the sender showed who it is, in the form that IoT Hub has for it.
fn auth_method(scope: &str, authentication: &str) -> String {
    let issuer = if authentication == "sas" { "iothub" } else { "external" };
    format!(
        r#"{{"scope":"{scope}","type":"{authentication}","issuer":"{issuer}","acceptingIpFilterRule":null}}"#
    )
}

/// A calendar time as AMQP has it.
pub(crate) fn timestamp(time: WallTime) -> Value {
    Value::Timestamp(i64::try_from(time.as_unix_millis()).unwrap_or(i64::MAX))
}

/// A number as the annotations have it.
pub(crate) fn long(number: u64) -> Value {
    Value::Long(i64::try_from(number).unwrap_or(i64::MAX))
}

/// The message of an event. `newest` is told along if the reader asked for it.
pub(crate) fn message(entry: &Entry, newest: Option<(PartitionInfo, WallTime)>) -> Message {
    let event = &entry.event;
    let (device, module) = match event.id.split_once('/') {
        Some((device, module)) => (device, Some(module)),
        None => (&*event.id, None),
    };
    let mut message = Message { body: Body::Data(event.body.clone()), ..Message::default() };
    let mut annotate = |key: &str, value: Value| message.annotations.push((Value::symbol(key), value));
    annotate("x-opt-sequence-number", long(entry.sequence));
    annotate("x-opt-offset", Value::string(entry.offset.to_string()));
    annotate("x-opt-enqueued-time", timestamp(entry.enqueued));
    annotate("x-opt-partition-key", Value::string(device));
    annotate("iothub-connection-device-id", Value::string(device));
    if let Some(module) = module {
        annotate("iothub-connection-module-id", Value::string(module));
    }
    if event.source == Source::Telemetry {
        let scope = if module.is_some() { "module" } else { "device" };
        let method = auth_method(scope, event.authentication);
        annotate("iothub-connection-auth-method", Value::String(method));
        annotate("iothub-connection-auth-generation-id", Value::string(&*event.generation));
    }
    if let Some(model) = &event.model {
        annotate("dt-dataschema", Value::string(&**model));
    }
    annotate("iothub-enqueuedtime", timestamp(entry.enqueued));
    annotate("iothub-message-source", Value::string(event.source.name()));
    // A message that says nothing of itself has no properties at all: the vendor's own readers count on it.
    let properties = &mut message.properties;
    for (key, value) in bag::members(&event.properties).flatten() {
        let text = Value::string(value.as_ref());
        match key.as_ref() {
            "$.mid" => properties.message_id = text,
            "$.cid" => properties.correlation_id = text,
            "$.uid" => properties.user_id = Value::Binary(Bytes::copy_from_slice(value.as_bytes())),
            "$.ct" => properties.content_type = Value::symbol(&value),
            "$.ce" => properties.content_encoding = Value::symbol(&value),
            "$.ifid" => message.annotations.push((Value::symbol("iothub-interface-id"), text)),
            "$.sub" => message.annotations.push((Value::symbol("dt-subject"), text)),
            "$.ctime" => message.application.push((Value::string("iothub-creation-time-utc"), text)),
            "$.on" => message.annotations.push((Value::symbol("iothub-outputname"), text)),
            // Of the message's way, not of the message.
            "$.to" | "$.exp" => {}
            _ => message.application.push((Value::String(key.into_owned()), text)),
        }
    }
    if let Some((info, now)) = newest {
        let mut tell =
            |key: &str, value: Value| message.delivery_annotations.push((Value::symbol(key), value));
        let (offset, time) = info.last.unwrap_or_default();
        tell("last_enqueued_sequence_number", long(info.next.saturating_sub(1)));
        tell("last_enqueued_offset", Value::string(offset.to_string()));
        tell("last_enqueued_time_utc", timestamp(time));
        tell("runtime_info_retrieval_time_utc", timestamp(now));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::performative::Properties;
    use crate::events::Event;

    fn entry(id: &str, properties: &str) -> Entry {
        Entry {
            sequence: 3,
            offset: 400,
            enqueued: WallTime::from_unix_millis(5000),
            event: Event {
                id: id.into(),
                generation: "g".into(),
                authentication: "x509Certificate",
                model: Some("dtmi:a;1".into()),
                source: Source::Telemetry,
                properties: properties.into(),
                body: Bytes::from_static(b"hello"),
            },
        }
    }

    fn annotation<'a>(message: &'a Message, key: &str) -> Option<&'a Value> {
        message.annotations.iter().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
    }

    #[test]
    fn system_and_application_properties_go_to_their_places() {
        let message =
            message(&entry("d", "%24.mid=m&%24.ct=application%2Fjson&%24.uid=u&level=hi%20gh"), None);
        assert_eq!(message.properties.message_id, Value::string("m"));
        assert_eq!(message.properties.content_type, Value::symbol("application/json"));
        assert_eq!(message.properties.user_id, Value::Binary(Bytes::from_static(b"u")));
        assert_eq!(message.properties.to, Value::Null);
        let nothing = super::message(&entry("d", "k=v"), None).properties;
        assert_eq!(nothing, Properties::default());
        assert_eq!(message.application, [(Value::string("level"), Value::string("hi gh"))]);
        assert_eq!(message.body, Body::Data(Bytes::from_static(b"hello")));
        for (key, value) in [
            ("x-opt-sequence-number", Value::Long(3)),
            ("x-opt-offset", Value::string("400")),
            ("x-opt-enqueued-time", Value::Timestamp(5000)),
            ("iothub-connection-device-id", Value::string("d")),
            ("iothub-connection-auth-generation-id", Value::string("g")),
            ("iothub-message-source", Value::string("Telemetry")),
            ("dt-dataschema", Value::string("dtmi:a;1")),
            (
                "iothub-connection-auth-method",
                Value::string(concat!(
                    r#"{"scope":"device","type":"x509Certificate","issuer":"external","#,
                    r#""acceptingIpFilterRule":null}"#
                )),
            ),
        ] {
            assert_eq!(annotation(&message, key), Some(&value), "{key}");
        }
        assert_eq!(annotation(&message, "iothub-connection-module-id"), None);
    }

    #[test]
    fn a_modules_event_names_both() {
        let message = message(&entry("d/m", ""), None);
        assert_eq!(annotation(&message, "iothub-connection-device-id"), Some(&Value::string("d")));
        assert_eq!(annotation(&message, "iothub-connection-module-id"), Some(&Value::string("m")));
    }
}
