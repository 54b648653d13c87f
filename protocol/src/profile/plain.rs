//! The plain profile: the same messages on any MQTT 3.1.1 broker, with topics of the device's own.
//!
//! | direction | topic |
//! |---|---|
//! | twin read | `fleetwave/{id}/up/get/{rid}` |
//! | report | `fleetwave/{id}/up/report/{rid}` or `…/{rid}/{base version}` |
//! | telemetry | `fleetwave/{id}/up/event/{bag}` |
//! | method answer | `fleetwave/{id}/up/method/{status}/{rid}` |
//! | presence | `fleetwave/{id}/up/hello`, `fleetwave/{id}/up/bye` (the device's will) |
//! | twin answer | `fleetwave/{id}/down/twin/{status}/{rid}` or `…/{rid}/{version}` |
//! | desired change | `fleetwave/{id}/down/desired/{version}` |
//! | method | `fleetwave/{id}/down/method/{name}/{rid}` |
//! | C2D | `fleetwave/{id}/down/c2d/{bag}` |
//!
//! A broker tells nobody who is connected, hence the presence messages; and it keeps no device from another's
//! topics unless its access control does: allow `fleetwave/%u/#` to each user.

use std::fmt::Write as _;

use super::{Packet, QoS, UnknownTopic, down_packet, up_payload};
use crate::bag;
use crate::message::{Down, Up};

const ROOT: &str = "fleetwave/";
const WRITABLE: &str = "a String never fails to grow";

/// The filter by which a hub hears every device.
pub const UP_FILTER: &str = "fleetwave/+/up/#";

/// What a hub hears from a device on a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromDevice<'a> {
    /// The device has connected.
    Hello,
    /// The device has gone: its will.
    Bye,
    /// A message.
    Message(Up<'a>),
}

/// The filter by which the device `id` hears its hub.
#[must_use]
pub fn down_filter(id: &str) -> String {
    format!("{ROOT}{id}/down/#")
}

/// The topic on which the device `id` says that it has connected.
#[must_use]
pub fn hello_topic(id: &str) -> String {
    format!("{ROOT}{id}/up/hello")
}

/// The topic of the will of the device `id`.
#[must_use]
pub fn bye_topic(id: &str) -> String {
    format!("{ROOT}{id}/up/bye")
}

pub(super) fn encode_up<'a>(id: &str, message: &Up<'a>, topic: &mut String) -> Packet<'a> {
    match message {
        Up::TwinGet { rid } => write!(topic, "{ROOT}{id}/up/get/{rid}"),
        Up::Report { rid, base: None, .. } => write!(topic, "{ROOT}{id}/up/report/{rid}"),
        Up::Report { rid, base: Some(base), .. } => write!(topic, "{ROOT}{id}/up/report/{rid}/{base}"),
        Up::Telemetry { properties, .. } => write!(topic, "{ROOT}{id}/up/event/{properties}"),
        Up::MethodResponse { rid, status, .. } => write!(topic, "{ROOT}{id}/up/method/{status}/{rid}"),
    }
    .expect(WRITABLE);
    Packet { payload: up_payload(message), qos: QoS::AtMostOnce }
}

/// Reads what some device published: which one, and what.
///
/// # Errors
/// [`UnknownTopic`].
pub fn decode_up<'a>(topic: &'a str, payload: &'a [u8]) -> Result<(&'a str, FromDevice<'a>), UnknownTopic> {
    let (id, rest) = topic.strip_prefix(ROOT).and_then(|rest| rest.split_once("/up/")).ok_or(UnknownTopic)?;
    let (kind, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let message = match kind {
        "hello" => return Ok((id, FromDevice::Hello)),
        "bye" => return Ok((id, FromDevice::Bye)),
        "get" => Up::TwinGet { rid: rest },
        "report" => match rest.split_once('/') {
            Some((rid, base)) => {
                Up::Report { rid, base: Some(base.parse().map_err(|_| UnknownTopic)?), patch: payload }
            }
            None => Up::Report { rid: rest, base: None, patch: payload },
        },
        "event" => Up::Telemetry { properties: rest, body: payload },
        "method" => {
            let (status, rid) = rest.split_once('/').ok_or(UnknownTopic)?;
            Up::MethodResponse { rid, status: status.parse().map_err(|_| UnknownTopic)?, body: payload }
        }
        _ => return Err(UnknownTopic),
    };
    Ok((id, FromDevice::Message(message)))
}

pub(super) fn encode_down<'a>(id: &str, message: &'a Down<'_>, topic: &mut String) -> Packet<'a> {
    match message {
        Down::TwinAnswer { rid, status, version: None, .. } => {
            write!(topic, "{ROOT}{id}/down/twin/{status}/{rid}")
        }
        Down::TwinAnswer { rid, status, version: Some(version), .. } => {
            write!(topic, "{ROOT}{id}/down/twin/{status}/{rid}/{version}")
        }
        Down::Desired { version, .. } => write!(topic, "{ROOT}{id}/down/desired/{version}"),
        Down::Method { name, rid, .. } => {
            write!(topic, "{ROOT}{id}/down/method/").expect(WRITABLE);
            bag::encode_into(name, topic);
            write!(topic, "/{rid}")
        }
        Down::CloudToDevice { properties, .. } => write!(topic, "{ROOT}{id}/down/c2d/{properties}"),
    }
    .expect(WRITABLE);
    down_packet(message)
}

pub(super) fn decode_down<'a>(id: &str, topic: &'a str, payload: &'a [u8]) -> Result<Down<'a>, UnknownTopic> {
    let rest = topic
        .strip_prefix(ROOT)
        .and_then(|rest| rest.strip_prefix(id))
        .and_then(|rest| rest.strip_prefix("/down/"))
        .ok_or(UnknownTopic)?;
    let (kind, rest) = rest.split_once('/').ok_or(UnknownTopic)?;
    match kind {
        "twin" => {
            let (status, rest) = rest.split_once('/').ok_or(UnknownTopic)?;
            let (rid, version) = match rest.split_once('/') {
                Some((rid, version)) => (rid, Some(version.parse().map_err(|_| UnknownTopic)?)),
                None => (rest, None),
            };
            let status = status.parse().map_err(|_| UnknownTopic)?;
            Ok(Down::TwinAnswer { rid, status, version, body: payload })
        }
        "desired" => Ok(Down::Desired { version: rest.parse().map_err(|_| UnknownTopic)?, body: payload }),
        "method" => {
            let (name, rid) = rest.split_once('/').ok_or(UnknownTopic)?;
            Ok(Down::Method { name: bag::decode(name).ok_or(UnknownTopic)?, rid, body: payload })
        }
        "c2d" => Ok(Down::CloudToDevice { properties: rest, body: payload }),
        _ => Err(UnknownTopic),
    }
}
