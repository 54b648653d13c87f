//! What a scripted device does when something comes from the hub, or is due.

use std::sync::atomic::Ordering;

use fleetwave_protocol::{CounterRng, Down, Profile, Up};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{ConnectReturnCode, Packet, Publish};
use serde_json::{Value, json};

use super::agenda::Todo;
use super::{Bytes, Cast, PING};
use crate::live::transport::Line;

/// The request id of the read of the twin; reports have others.
const TWIN: &str = "0";
const REPORT: &str = "1";

/// What a device makes of something that it is asked to do.
enum Mood {
    Does,
    Refuses,
    /// It is gone, without a word.
    Vanishes,
}

impl Cast {
    pub(super) fn packet(&mut self, device: u32, packet: Packet) {
        match packet {
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => self.begin(device),
            Packet::ConnAck(ack) => {
                tracing::debug!(id = self.id(device), code = ?ack.code, "a scripted device was refused");
                self.come_back(device);
            }
            Packet::Publish(publish) => self.heard(device, &publish),
            _ => {}
        }
    }

    /// It is connected.
    fn begin(&mut self, device: u32) {
        let player = &mut self.players[device as usize];
        if !std::mem::replace(&mut player.up, true) {
            self.connected.fetch_add(1, Ordering::Relaxed);
        }
        let line = player.line;
        let id = self.id(device);
        self.writer.subscribe(&id);
        self.writer.up(&id, &Up::TwinGet { rid: TWIN });
        self.send(device);
        let now = self.clock.now().at;
        self.agenda.add(now + PING, device, Todo::Ping { line });
        let every = self.script.telemetry.duration();
        if !every.is_zero() {
            // The fleet does not talk in one voice.
            let first = every.mul_f64(self.draw(device).unit());
            self.agenda.add(now + first, device, Todo::Telemetry { line });
        }
    }

    fn heard(&mut self, device: u32, publish: &Publish) {
        let id = self.id(device);
        if publish.qos == QoS::AtLeastOnce {
            self.writer.ack(publish.pkid);
            self.send(device);
        }
        let line = self.players[device as usize].line;
        let Ok(message) = Profile::IotHub.decode_down(&id, &publish.topic, &publish.payload) else { return };
        let todo = match message {
            Down::TwinAnswer { rid: TWIN, status: 200, body, .. } => {
                let Some(desired) = wanted(body) else { return };
                Todo::Report { line, desired }
            }
            Down::Desired { body, .. } => Todo::Report { line, desired: Bytes::copy_from_slice(body) },
            Down::Method { name, rid, body } => Todo::Answer {
                line,
                rid: rid.into(),
                name: name.into(),
                payload: Bytes::copy_from_slice(body),
            },
            Down::TwinAnswer { .. } | Down::CloudToDevice { .. } => return,
        };
        let mut rng = self.draw(device);
        let delay = self.script.answer.sample(&mut rng);
        self.agenda.add(self.clock.now().at + delay, device, todo);
    }

    /// Something is due.
    pub(super) fn act(&mut self, device: u32, todo: Todo) {
        let current = |cast: &Self, line: Line| cast.players[device as usize].line == line;
        match todo {
            Todo::Connect => self.connect(device),
            Todo::Answer { line, rid, name, payload } if current(self, line) => {
                self.answer(device, &rid, &name, &payload);
            }
            Todo::Report { line, desired } if current(self, line) => self.report(device, &desired),
            Todo::Telemetry { line } if current(self, line) => self.tell(device, line),
            Todo::Ping { line } if current(self, line) => {
                self.writer.ping();
                self.send(device);
                self.agenda.add(self.clock.now().at + PING, device, Todo::Ping { line });
            }
            // The connection is another one, or none.
            Todo::Answer { .. } | Todo::Report { .. } | Todo::Telemetry { .. } | Todo::Ping { .. } => {}
        }
    }

    fn mood(&mut self, device: u32) -> Mood {
        let (vanish, refuse) = (self.script.vanish.fraction(), self.script.refuse.fraction());
        let mut rng = self.draw(device);
        if rng.chance(vanish) {
            Mood::Vanishes
        } else if rng.chance(refuse) {
            Mood::Refuses
        } else {
            Mood::Does
        }
    }

    fn answer(&mut self, device: u32, rid: &str, name: &str, payload: &[u8]) {
        let (status, body) = match self.mood(device) {
            Mood::Vanishes => return self.come_back(device),
            Mood::Refuses => (500, json!({ "method": name, "error": "refused by its script" })),
            Mood::Does => {
                let payload: Value = serde_json::from_slice(payload).unwrap_or_default();
                (200, json!({ "method": name, "payload": payload }))
            }
        };
        let body = body.to_string();
        self.up(device, &Up::MethodResponse { rid, status, body: body.as_bytes() });
    }

    /// Reports what was desired, or that it is refused.
    fn report(&mut self, device: u32, desired: &[u8]) {
        let Ok(Value::Object(mut members)) = serde_json::from_slice(desired) else { return };
        let version = members.remove("$version");
        members.retain(|key, _| !key.starts_with('$'));
        let refused = match self.mood(device) {
            Mood::Vanishes => return self.come_back(device),
            Mood::Refuses => {
                members.clear();
                version.clone().unwrap_or_default()
            }
            Mood::Does => Value::Null,
        };
        let script = json!({ "desiredVersion": version, "refusedVersion": refused });
        members.insert("script".to_owned(), script);
        let patch = Value::Object(members).to_string();
        self.up(device, &Up::Report { rid: REPORT, base: None, patch: patch.as_bytes() });
    }

    fn tell(&mut self, device: u32, line: Line) {
        let player = &mut self.players[device as usize];
        player.told = player.told.wrapping_add(1);
        let body =
            json!({ "count": player.told, "temperature": reading(&mut self.draw(device)) }).to_string();
        let properties = "%24.ct=application%2Fjson&%24.ce=utf-8";
        self.up(device, &Up::Telemetry { properties, body: body.as_bytes() });
        let next = self.clock.now().at + self.script.telemetry.duration();
        self.agenda.add(next, device, Todo::Telemetry { line });
    }
}

/// The desired properties of a twin, if there is something to take over.
fn wanted(twin: &[u8]) -> Option<Bytes> {
    let twin: Value = serde_json::from_slice(twin).ok()?;
    let desired = twin.get("desired")?;
    let version = desired.get("$version")?;
    if twin.pointer("/reported/script/desiredVersion") == Some(version) {
        return None;
    }
    let mut members = desired.as_object()?.keys().filter(|key| !key.starts_with('$'));
    members.next()?;
    Some(desired.to_string().into())
}

/// Some degrees.
fn reading(rng: &mut CounterRng) -> f64 {
    (200.0 + rng.unit() * 50.0).round() / 10.0
}
