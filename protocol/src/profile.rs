//! Connection profiles: how messages stand in MQTT topics. Pure functions, both directions, both sides.
//!
//! * [`iothub`]: IoT Hub's classic profile (MQTT 3.1.1, fixed topics, the same for every device).
//! * [`plain`]: the same messages on any MQTT broker, each device under its own topics.
//!
//! Payloads are not copied: a message's body *is* the packet's payload, so encoding writes a topic only.

pub mod iothub;
pub mod plain;

use crate::message::{Down, Up};

/// The qualities of service that the profiles use. Nothing uses 2: IoT Hub closes the connection on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QoS {
    /// At most once.
    AtMostOnce,
    /// At least once: the receiver acknowledges.
    AtLeastOnce,
}

/// A packet to publish; its topic is in the buffer that was passed to the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The payload: the message's own body.
    pub payload: &'a [u8],
    /// How it is sent.
    pub qos: QoS,
}

/// What a device subscribes to, independent of how a profile names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Answers to twin reads and reports.
    TwinAnswers,
    /// Changes of desired properties.
    Desired,
    /// Direct methods.
    Methods,
    /// Cloud-to-device messages.
    CloudToDevice,
    /// A module's inputs: accepted, since modules subscribe to them, and silent outside an edge hub.
    Inputs,
}

/// The topic is none of the profile's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a topic of this connection profile")]
pub struct UnknownTopic;

/// A connection profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// IoT Hub's classic topics.
    #[default]
    IotHub,
    /// Topics of the device's own on any broker.
    Plain,
}

impl Profile {
    /// The filters that the update agent subscribes to, all in one SUBSCRIBE.
    #[must_use]
    pub fn filters(self, client: &str) -> Vec<(String, QoS)> {
        match self {
            Self::IotHub => iothub::filters(client),
            Self::Plain => vec![(plain::down_filter(client), QoS::AtLeastOnce)],
        }
    }

    /// Writes the topic of a message from device `client` into `topic` (cleared first).
    pub fn encode_up<'a>(self, client: &str, message: &Up<'a>, topic: &mut String) -> Packet<'a> {
        topic.clear();
        match self {
            Self::IotHub => iothub::encode_up(client, message, topic),
            Self::Plain => plain::encode_up(client, message, topic),
        }
    }

    /// Reads a message that the device `client` published.
    ///
    /// # Errors
    /// [`UnknownTopic`], also for a topic of another device.
    pub fn decode_up<'a>(
        self,
        client: &str,
        topic: &'a str,
        payload: &'a [u8],
    ) -> Result<Up<'a>, UnknownTopic> {
        match self {
            Self::IotHub => iothub::decode_up(client, topic, payload),
            Self::Plain => match plain::decode_up(topic, payload)? {
                (device, plain::FromDevice::Message(message)) if device == client => Ok(message),
                _ => Err(UnknownTopic),
            },
        }
    }

    /// Writes the topic of a message to device `client` into `topic` (cleared first).
    pub fn encode_down<'a>(self, client: &str, message: &'a Down<'_>, topic: &mut String) -> Packet<'a> {
        topic.clear();
        match self {
            Self::IotHub => iothub::encode_down(client, message, topic),
            Self::Plain => plain::encode_down(client, message, topic),
        }
    }

    /// Reads a message that reached the device `client`.
    ///
    /// # Errors
    /// [`UnknownTopic`], also for a topic of another device.
    pub fn decode_down<'a>(
        self,
        client: &str,
        topic: &'a str,
        payload: &'a [u8],
    ) -> Result<Down<'a>, UnknownTopic> {
        match self {
            Self::IotHub => iothub::decode_down(client, topic, payload),
            Self::Plain => plain::decode_down(client, topic, payload),
        }
    }
}

/// The payload of a message from a device.
fn up_payload<'a>(message: &Up<'a>) -> &'a [u8] {
    match *message {
        Up::TwinGet { .. } => b"",
        Up::Report { patch, .. } => patch,
        Up::Telemetry { body, .. } | Up::MethodResponse { body, .. } => body,
    }
}

/// The payload of a message to a device, and how it is sent: only queued messages are acknowledged.
fn down_packet<'a>(message: &'a Down<'_>) -> Packet<'a> {
    let (payload, qos) = match message {
        Down::TwinAnswer { body, .. } | Down::Desired { body, .. } | Down::Method { body, .. } => {
            (body, QoS::AtMostOnce)
        }
        Down::CloudToDevice { body, .. } => (body, QoS::AtLeastOnce),
    };
    Packet { payload, qos }
}

#[cfg(test)]
mod tests;
