//! How long the MQTT packets are that virtual devices would send: the same bindings write one of each kind, once.
//!
//! Ids are of one width in a fleet, so lengths are exact but for the signature in CONNECT, whose percent-encoding
//! varies by a few bytes from device to device; one device's stands for all.

use fleetwave_agent_core::grant::{self, Answer, Outcome, Request};
use fleetwave_agent_core::{ReleaseId, Releases};
use fleetwave_protocol::sas::{self, Key};
use fleetwave_protocol::time::WallTime;
use fleetwave_protocol::{Down, Profile, Up};

use crate::device::World;

/// The host that devices of a virtual run connect to, as long as that of the embedded hub.
const HOST: &str = "localhost";

/// The lengths of packets, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) connect: u64,
    pub(super) connack: u64,
    pub(super) subscribe: u64,
    pub(super) suback: u64,
    pub(super) puback: u64,
    /// Topics without their variable part.
    get_topic: usize,
    report_topic: usize,
    answer_topic: usize,
    desired_topic: usize,
    method_topic: usize,
    response_topic: usize,
    telemetry_topic: usize,
    message_topic: usize,
}

/// The length of a packet with so many bytes after its fixed header.
const fn packet(body: usize) -> u64 {
    let length_digits = if body < 128 {
        1
    } else if body < 16_384 {
        2
    } else {
        3
    };
    (1 + length_digits + body) as u64
}

const fn publish(topic: usize, payload: usize, id: usize) -> u64 {
    packet(2 + topic + id + payload)
}

/// Hexadecimal digits of a request id.
const fn digits16(n: u32) -> usize {
    let bits = 32 - n.leading_zeros() as usize;
    if bits == 0 { 1 } else { bits.div_ceil(4) }
}

const fn digits10(n: u64) -> usize {
    if n == 0 { 1 } else { n.ilog10() as usize + 1 }
}

impl Sizes {
    pub(super) fn new(world: &World) -> Self {
        let client = world.fleet().id(0);
        let mut topic = String::new();
        let mut up = |message: Up<'_>| {
            Profile::IotHub.encode_up(&client, &message, &mut topic);
            topic.len()
        };
        let get_topic = up(Up::TwinGet { rid: "" });
        let report_topic = up(Up::Report { rid: "", base: None, patch: b"" });
        let response_topic = up(Up::MethodResponse { rid: "", status: 200, body: b"" });
        let telemetry_topic = up(Up::Telemetry { properties: grant::PROPERTIES, body: b"" });
        let mut down = |message: Down<'_>| {
            Profile::IotHub.encode_down(&client, &message, &mut topic);
            topic.len()
        };
        let answer_topic = down(Down::TwinAnswer { rid: "", status: 200, version: None, body: b"" });
        let desired_topic = down(Down::Desired { version: 0, body: b"" }) - 1;
        let method_topic = down(Down::Method { name: grant::METHOD.into(), rid: "", body: b"" });
        let message_topic = down(Down::CloudToDevice { properties: grant::PROPERTIES, body: b"" });

        let filters = Profile::IotHub.filters(&client);
        let subscribed: usize = filters.iter().map(|(filter, _)| 2 + filter.len() + 1).sum();
        let resource = format!("{HOST}/devices/{client}");
        let expires = WallTime::from_unix_millis(super::EPOCH.as_unix_millis() + 3_600_000);
        let token = sas::token(&Key::from_bytes([0; 32]), &resource, expires, None);
        let user = format!("{HOST}/{client}/?api-version=2021-04-12");
        Self {
            connect: packet(10 + 2 + client.len() + 2 + user.len() + 2 + token.len()),
            connack: packet(2),
            subscribe: packet(2 + subscribed),
            suback: packet(2 + filters.len()),
            puback: packet(2),
            get_topic,
            report_topic,
            answer_topic,
            desired_topic,
            method_topic,
            response_topic,
            telemetry_topic,
            message_topic,
        }
    }

    pub(super) const fn get(&self, rid: u32) -> u64 {
        publish(self.get_topic + digits16(rid), 0, 0)
    }

    pub(super) const fn twin(&self, rid: u32, body: usize) -> u64 {
        publish(self.answer_topic + digits16(rid), body, 0)
    }

    pub(super) const fn report(&self, rid: u32, body: usize) -> u64 {
        publish(self.report_topic + digits16(rid), body, 0)
    }

    pub(super) const fn reported(&self, rid: u32, version: u64) -> u64 {
        publish(self.answer_topic + digits16(rid) + "&$version=".len() + digits10(version), 0, 0)
    }

    pub(super) const fn desired(&self, version: u64, body: usize) -> u64 {
        publish(self.desired_topic + digits10(version), body, 0)
    }

    pub(super) const fn method(&self, call: u32, body: usize) -> u64 {
        publish(self.method_topic + digits16(call), body, 0)
    }

    pub(super) const fn response(&self, call: u32) -> u64 {
        publish(self.response_topic + digits16(call), 0, 0)
    }

    pub(super) const fn telemetry(&self, body: usize) -> u64 {
        publish(self.telemetry_topic, body, 0)
    }

    pub(super) const fn message(&self, body: usize) -> u64 {
        publish(self.message_topic, body, 2)
    }
}

/// What is said about one release in grant requests and answers.
#[derive(Clone, Debug)]
pub(super) struct GrantTexts {
    pub(super) request: Vec<u8>,
    pub(super) granted: Vec<u8>,
    pub(super) refused: Vec<u8>,
}

impl GrantTexts {
    pub(super) fn new(releases: &Releases, release: ReleaseId) -> Self {
        let (id, seq) = (releases[release].id.to_string(), releases[release].sequence);
        let json = |outcome| {
            serde_json::to_vec(&Answer { id: id.clone(), seq, target: None, outcome })
                .expect("an answer is plain JSON")
        };
        // As long as the links of the embedded blob endpoint: path, expiry, permission, signature.
        let signature = "A".repeat(44);
        let url = format!("http://127.0.0.1:10000/{id}?se=1800000000&sp=r&sig={signature}");
        let archive = format!("http://127.0.0.1:10000/{id}.archive?se=1800000000&sp=r&sig={signature}");
        let delta_url = releases[release].delta.map(|_| archive);
        let request = Request { id: id.clone(), seq, target: None };
        Self {
            request: serde_json::to_vec(&request).expect("a request is plain JSON"),
            granted: json(Outcome::Granted { url, delta_url, expires: 1_800_000_000 }),
            refused: json(Outcome::Refused("the twin does not ask for it".to_owned())),
        }
    }
}
