//! IoT Hub's classic profile: MQTT 3.1.1, client-scoped `$iothub/…` topics.
//!
//! Source: the IoT Hub guide "Communicate with an IoT hub using the MQTT protocol", and what the device SDKs
//! send. A client is `{device}` or `{device}/{module}`.

use std::fmt::Write as _;

use super::{Channel, Packet, QoS, UnknownTopic, down_packet, up_payload};
use crate::bag;
use crate::message::{Down, Up};

const TWIN_ANSWERS: &str = "$iothub/twin/res/";
const TWIN_GET: &str = "$iothub/twin/GET/";
const REPORT: &str = "$iothub/twin/PATCH/properties/reported/";
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/";
const METHODS: &str = "$iothub/methods/POST/";
const METHOD_ANSWERS: &str = "$iothub/methods/res/";

const WRITABLE: &str = "a String never fails to grow";

/// Appends `devices/{device}` or `devices/{device}/modules/{module}`.
fn push_client(client: &str, topic: &mut String) {
    topic.push_str("devices/");
    match client.split_once('/') {
        Some((device, module)) => {
            topic.push_str(device);
            topic.push_str("/modules/");
            topic.push_str(module);
        }
        None => topic.push_str(client),
    }
}

/// What follows `devices/{client}` in a topic.
fn strip_client<'a>(client: &str, topic: &'a str) -> Option<&'a str> {
    let rest = topic.strip_prefix("devices/")?;
    match client.split_once('/') {
        Some((device, module)) => {
            rest.strip_prefix(device)?.strip_prefix("/modules/")?.strip_prefix(module)?.strip_prefix('/')
        }
        None => rest.strip_prefix(client)?.strip_prefix('/'),
    }
}

/// The filters that the update agent subscribes to.
pub(super) fn filters(client: &str) -> Vec<(String, QoS)> {
    let mut c2d = String::new();
    push_client(client, &mut c2d);
    c2d.push_str("/messages/devicebound/#");
    vec![
        (format!("{TWIN_ANSWERS}#"), QoS::AtMostOnce),
        (format!("{DESIRED}#"), QoS::AtMostOnce),
        (format!("{METHODS}#"), QoS::AtMostOnce),
        (c2d, QoS::AtLeastOnce),
    ]
}

/// The channel that a SUBSCRIBE of `client` names, or `None` for a filter that IoT Hub refuses.
#[must_use]
pub fn channel(client: &str, filter: &str) -> Option<Channel> {
    let prefix = filter.strip_suffix('#')?;
    match prefix {
        TWIN_ANSWERS => Some(Channel::TwinAnswers),
        DESIRED => Some(Channel::Desired),
        METHODS => Some(Channel::Methods),
        _ => match strip_client(client, prefix)? {
            "messages/devicebound/" => Some(Channel::CloudToDevice),
            "inputs/" if client.contains('/') => Some(Channel::Inputs),
            _ => None,
        },
    }
}

pub(super) fn encode_up<'a>(client: &str, message: &Up<'a>, topic: &mut String) -> Packet<'a> {
    match message {
        Up::TwinGet { rid } => write!(topic, "{TWIN_GET}?$rid={rid}"),
        Up::Report { rid, base: None, .. } => write!(topic, "{REPORT}?$rid={rid}"),
        Up::Report { rid, base: Some(base), .. } => write!(topic, "{REPORT}?$rid={rid}&$version={base}"),
        Up::Telemetry { properties, .. } => {
            push_client(client, topic);
            write!(topic, "/messages/events/{properties}")
        }
        Up::MethodResponse { rid, status, .. } => write!(topic, "{METHOD_ANSWERS}{status}/?$rid={rid}"),
    }
    .expect(WRITABLE);
    Packet { payload: up_payload(message), qos: QoS::AtMostOnce }
}

pub(super) fn decode_up<'a>(client: &str, topic: &'a str, payload: &'a [u8]) -> Result<Up<'a>, UnknownTopic> {
    if let Some(query) = topic.strip_prefix(TWIN_GET) {
        return Ok(Up::TwinGet { rid: member(query, "$rid").ok_or(UnknownTopic)? });
    }
    if let Some(query) = topic.strip_prefix(REPORT) {
        let base = match member(query, "$version") {
            Some(version) => Some(version.parse().map_err(|_| UnknownTopic)?),
            None => None,
        };
        return Ok(Up::Report { rid: member(query, "$rid").ok_or(UnknownTopic)?, base, patch: payload });
    }
    if let Some(rest) = topic.strip_prefix(METHOD_ANSWERS) {
        let (status, query) = rest.split_once('/').ok_or(UnknownTopic)?;
        return Ok(Up::MethodResponse {
            rid: member(query, "$rid").ok_or(UnknownTopic)?,
            status: status.parse().map_err(|_| UnknownTopic)?,
            body: payload,
        });
    }
    let rest = strip_client(client, topic).ok_or(UnknownTopic)?;
    // Module SDKs put a slash after the bag.
    let properties = match rest.strip_prefix("messages/events") {
        Some("") => "",
        Some(bag) => bag.strip_prefix('/').ok_or(UnknownTopic)?.trim_end_matches('/'),
        None => return Err(UnknownTopic),
    };
    Ok(Up::Telemetry { properties, body: payload })
}

pub(super) fn encode_down<'a>(client: &str, message: &'a Down<'_>, topic: &mut String) -> Packet<'a> {
    match message {
        Down::TwinAnswer { rid, status, version: None, .. } => {
            write!(topic, "{TWIN_ANSWERS}{status}/?$rid={rid}")
        }
        Down::TwinAnswer { rid, status, version: Some(version), .. } => {
            write!(topic, "{TWIN_ANSWERS}{status}/?$rid={rid}&$version={version}")
        }
        Down::Desired { version, .. } => write!(topic, "{DESIRED}?$version={version}"),
        Down::Method { name, rid, .. } => {
            topic.push_str(METHODS);
            bag::encode_into(name, topic);
            write!(topic, "/?$rid={rid}")
        }
        Down::CloudToDevice { properties, .. } => {
            push_client(client, topic);
            write!(topic, "/messages/devicebound/{properties}")
        }
    }
    .expect(WRITABLE);
    down_packet(message)
}

pub(super) fn decode_down<'a>(
    client: &str,
    topic: &'a str,
    payload: &'a [u8],
) -> Result<Down<'a>, UnknownTopic> {
    if let Some(rest) = topic.strip_prefix(TWIN_ANSWERS) {
        let (status, query) = rest.split_once('/').ok_or(UnknownTopic)?;
        let version = match member(query, "$version") {
            Some(version) => Some(version.parse().map_err(|_| UnknownTopic)?),
            None => None,
        };
        return Ok(Down::TwinAnswer {
            rid: member(query, "$rid").ok_or(UnknownTopic)?,
            status: status.parse().map_err(|_| UnknownTopic)?,
            version,
            body: payload,
        });
    }
    if let Some(query) = topic.strip_prefix(DESIRED) {
        let version = member(query, "$version").and_then(|v| v.parse().ok()).ok_or(UnknownTopic)?;
        return Ok(Down::Desired { version, body: payload });
    }
    if let Some(rest) = topic.strip_prefix(METHODS) {
        let (name, query) = rest.split_once('/').ok_or(UnknownTopic)?;
        return Ok(Down::Method {
            name: bag::decode(name).ok_or(UnknownTopic)?,
            rid: member(query, "$rid").ok_or(UnknownTopic)?,
            body: payload,
        });
    }
    let properties = strip_client(client, topic)
        .and_then(|rest| rest.strip_prefix("messages/devicebound/"))
        .ok_or(UnknownTopic)?;
    Ok(Down::CloudToDevice { properties, body: payload })
}

/// The raw value of `key` in the `?key=value&…` at the end of a topic.
fn member<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.strip_prefix('?')?.split('&').find_map(|member| {
        let (name, value) = member.split_once('=')?;
        (name == key || name.strip_prefix("%24").is_some_and(|name| key.strip_prefix('$') == Some(name)))
            .then_some(value)
    })
}
