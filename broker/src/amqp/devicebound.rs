//! C2D messages: from what a service sends to what a device gets.
//!
//! Source of the order of system properties in a device's topic: topics that people have captured from IoT Hub and that
//! SDKs have in their tests, `%24.exp=…&%24.mid=…&%24.to=…&%24.cid=…&%24.ct=…&%24.ce=…`, and then the application
//! properties, `iothub-ack` among them.

use std::fmt::Write as _;

use fleetwave_hub_core::{C2dMessage, ErrorCode, Feedback, HubError, Iso8601};
use fleetwave_protocol::{WallTime, bag};

use super::message::{Body, Message, plain_text};
use super::performative::Error;
use super::value::Value;

/// A message, and the device that it is for.
#[derive(Debug, PartialEq)]
pub(crate) struct Addressed {
    pub(crate) device: String,
    pub(crate) message: C2dMessage,
}

/// Reads a C2D message.
pub(crate) fn read(message: &Message) -> Result<Addressed, Error> {
    let properties = &message.properties;
    let to = properties.to.text().unwrap_or_default();
    let device = recipient(to)?;
    let id = optional(&properties.message_id, "message-id")?;
    let expires = expiry(&properties.absolute_expiry_time)?;
    let mut bag = String::new();
    if let Some(expires) = expires {
        // Ten-millionths of a second, as .NET writes them.
        let mut text = Iso8601(expires).to_string();
        text.pop();
        text.push_str("0000Z");
        bag::push(&mut bag, "$.exp", &text);
    }
    if let Some(id) = &id {
        bag::push(&mut bag, "$.mid", id);
    }
    bag::push(&mut bag, "$.to", to);
    for (key, name, value) in [
        ("$.cid", "correlation-id", &properties.correlation_id),
        ("$.uid", "user-id", &properties.user_id),
        ("$.ct", "content-type", &properties.content_type),
        ("$.ce", "content-encoding", &properties.content_encoding),
    ] {
        if let Some(text) = optional(value, name)? {
            bag::push(&mut bag, key, &text);
        }
    }
    let mut feedback = Feedback::None;
    for (key, value) in &message.application {
        let key = key.text().ok_or_else(|| invalid("an application property's name is no string"))?;
        let text = plain_text(value)
            .ok_or_else(|| invalid(format!("the application property {key:?} is no simple value")))?;
        if key.eq_ignore_ascii_case("iothub-ack") {
            feedback = ack(&text)?;
        }
        bag::push(&mut bag, key, &text);
    }
    let message = C2dMessage {
        message_id: id.map(Into::into),
        properties: bag.into(),
        body: body(&message.body)?.into(),
        feedback,
        expires,
    };
    Ok(Addressed { device, message })
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new("com.microsoft:argument-error", text)
}

fn optional(value: &Value, name: &str) -> Result<Option<String>, Error> {
    if *value == Value::Null {
        return Ok(None);
    }
    plain_text(value).map(Some).ok_or_else(|| invalid(format!("{name} is no simple value")))
}

/// The device in `/devices/{device}/messages/devicebound`.
fn recipient(to: &str) -> Result<String, Error> {
    let wrong = || invalid(format!("to is {to:?}: /devices/{{device}}/messages/devicebound was expected"));
    let path = match to.split_once("://") {
        Some((_, rest)) => rest.split_once('/').ok_or_else(wrong)?.1,
        None => to.trim_start_matches('/'),
    };
    let segments: Vec<&str> = path.split('/').collect();
    let is = |segment: &str, expected| segment.eq_ignore_ascii_case(expected);
    match segments[..] {
        [devices, device, messages, bound]
            if is(devices, "devices") && is(messages, "messages") && is(bound, "devicebound") =>
        {
            match bag::decode(device) {
                Some(device) if !device.is_empty() && !device.contains('/') => Ok(device.into_owned()),
                _ => Err(wrong()),
            }
        }
        [devices, _, modules, ..] if is(devices, "devices") && is(modules, "modules") => Err(Error::new(
            "amqp:not-implemented",
            "cloud-to-device messages go to devices, not to their modules",
        )),
        _ => Err(wrong()),
    }
}

fn expiry(value: &Value) -> Result<Option<WallTime>, Error> {
    match value {
        Value::Null => Ok(None),
        value => {
            let millis = value.integer().ok_or_else(|| invalid("absolute-expiry-time is no timestamp"))?;
            Ok(u64::try_from(millis).ok().filter(|&millis| millis > 0).map(WallTime::from_unix_millis))
        }
    }
}

fn ack(text: &str) -> Result<Feedback, Error> {
    [
        ("none", Feedback::None),
        ("positive", Feedback::Positive),
        ("negative", Feedback::Negative),
        ("full", Feedback::Full),
    ]
    .into_iter()
    .find(|(name, _)| name.eq_ignore_ascii_case(text))
    .map(|(_, feedback)| feedback)
    .ok_or_else(|| invalid(format!("iothub-ack is {text:?}: none, positive, negative or full was expected")))
}

fn body(body: &Body) -> Result<Vec<u8>, Error> {
    match body {
        Body::Data(bytes) | Body::Value(Value::Binary(bytes)) => Ok(bytes.to_vec()),
        Body::Value(Value::String(text)) => Ok(text.clone().into_bytes()),
        Body::Value(Value::Null) => Ok(Vec::new()),
        Body::Value(_) | Body::Sequence => {
            Err(Error::new("amqp:not-implemented", "a message's body must be data or a string"))
        }
    }
}

/// How the hub's refusals are called in AMQP: the conditions that service SDKs have error classes for.
pub(crate) fn refusal(error: &HubError) -> Error {
    let condition = match error.code {
        ErrorCode::DeviceNotFound => "amqp:not-found",
        ErrorCode::DeviceMaximumQueueDepthExceeded => "amqp:resource-limit-exceeded",
        ErrorCode::MessageTooLarge => "amqp:link:message-size-exceeded",
        ErrorCode::ThrottlingException => "com.microsoft:device-container-throttled",
        ErrorCode::InvalidMessageExpiryTime => "com.microsoft:argument-error",
        _ => "amqp:internal-error",
    };
    let mut text = format!("ErrorCode:{};", error.code.name());
    let _ = write!(text, "{}", error.message);
    Error::new(condition, text)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::amqp::performative::Properties;

    fn message(to: &str) -> Message {
        Message {
            properties: Properties { to: Value::string(to), ..Properties::default() },
            body: Body::Data(Bytes::from_static(b"hello")),
            ..Message::default()
        }
    }

    fn device(to: &str) -> Result<String, String> {
        read(&message(to)).map(|addressed| addressed.device).map_err(|error| error.condition.0)
    }

    #[test]
    fn the_recipient_stands_in_to_and_may_be_encoded() {
        assert_eq!(device("/devices/d/messages/devicebound"), Ok("d".into()));
        assert_eq!(device("/devices/d%23%25/messages/deviceBound"), Ok("d#%".into()));
        assert_eq!(device("amqps://h/devices/d/messages/devicebound"), Ok("d".into()));
        assert_eq!(device("/devices/d/modules/m/messages/devicebound"), Err("amqp:not-implemented".into()));
        for to in ["", "/devices//messages/devicebound", "/devices/a%2Fb/messages/devicebound", "/d"] {
            assert_eq!(device(to), Err("com.microsoft:argument-error".into()), "{to}");
        }
    }

    #[test]
    fn the_device_gets_the_properties_in_the_order_of_iot_hub() {
        let mut message = message("/devices/d/messages/deviceBound");
        message.properties.message_id = Value::Uuid([0x22; 16]);
        message.properties.correlation_id = Value::Ulong(7);
        message.properties.user_id = Value::Binary(Bytes::from_static(b"me"));
        message.properties.content_type = Value::symbol("application/json");
        message.properties.content_encoding = Value::symbol("utf-8");
        message.properties.absolute_expiry_time = Value::Timestamp(1_595_686_465_172);
        message.application =
            vec![(Value::string("iothub-ack"), Value::string("full")), (Value::string("a b"), Value::Int(5))];
        let message = read(&message).unwrap().message;
        let id = "22222222-2222-2222-2222-222222222222";
        assert_eq!(
            &*message.properties,
            format!(
                "%24.exp=2020-07-25T14%3A14%3A25.1720000Z&%24.mid={id}\
                 &%24.to=%2Fdevices%2Fd%2Fmessages%2FdeviceBound&%24.cid=7&%24.uid=me&%24.ct=application%2Fjson\
                 &%24.ce=utf-8&iothub-ack=full&a%20b=5"
            )
        );
        assert_eq!(message.message_id.as_deref(), Some(id));
        assert_eq!((message.feedback, &*message.body), (Feedback::Full, &b"hello"[..]));
        assert_eq!(message.expires, Some(WallTime::from_unix_millis(1_595_686_465_172)));
    }

    #[test]
    fn bodies_are_data_or_text() {
        let mut message = message("/devices/d/messages/devicebound");
        for (body, expected) in [
            (Body::Value(Value::string("text")), Some(&b"text"[..])),
            (Body::Value(Value::Null), Some(b"")),
            (Body::Value(Value::Uint(1)), None),
            (Body::Sequence, None),
        ] {
            message.body = body;
            let read = read(&message);
            assert_eq!(read.ok().map(|read| read.message.body.to_vec()), expected.map(<[u8]>::to_vec));
        }
    }

    #[test]
    fn an_unknown_ack_is_refused() {
        let mut message = message("/devices/d/messages/devicebound");
        message.application = vec![(Value::string("iothub-ack"), Value::string("sometimes"))];
        assert_eq!(read(&message).unwrap_err().condition.0, "com.microsoft:argument-error");
    }
}
