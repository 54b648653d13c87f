//! What comes from the hub.

use bytes::{Bytes, BytesMut};
use fleetwave_agent_core::grant::{self, Answer, Outcome};
use fleetwave_agent_core::{Event, FIRMWARE, GrantAnswer, twin};
use fleetwave_protocol::{Down, Instant, Profile, Up, WallTime};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{ConnectReturnCode, Packet, Publish};
use serde::Deserialize;

use super::slot::flag;
use super::{MOST_MEANINGS, Shard};
use crate::device::Invariant;
use crate::live::codec;
use crate::live::transport::Line;
use crate::measure::Connection;

/// What the method `cancel` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    target: Option<String>,
}

/// A grant on its way to the agent.
#[derive(Clone, Debug)]
pub(super) struct GrantUnderWay {
    /// The link, if there is one.
    pub(super) url: Option<String>,
    /// The request id of the method that carries it; none for a C2D message.
    pub(super) method: Option<String>,
}

impl Shard {
    /// Bytes have come for a device.
    pub(super) fn incoming(&mut self, index: u32, bytes: &[u8]) {
        let mut input = std::mem::take(&mut self.input);
        if let Some(partial) = self.partial.remove(&index) {
            input.unsplit(partial);
        }
        input.extend_from_slice(bytes);
        let line = self.slots[index as usize].line;
        // A device that went down, or gave the connection up, in the middle reads no further.
        while self.slots[index as usize].line == line {
            match codec::read(&mut input) {
                Ok(Some((packet, size))) => {
                    self.meter.traffic(0, 0, 1, size as u64);
                    self.meter.events(1);
                    self.packet(index, packet);
                }
                Ok(None) => {
                    if !input.is_empty() {
                        self.partial.insert(index, BytesMut::from(&input[..]));
                    }
                    break;
                }
                Err(codec::Malformed) => {
                    self.lose_line(index);
                    self.tell(index, Event::Disconnected);
                }
            }
        }
        input.clear();
        self.input = input;
    }

    /// The connection has ended, or could not be made.
    pub(super) fn closed(&mut self, index: u32) {
        self.lose_line(index);
        self.tell(index, Event::Disconnected);
    }

    fn packet(&mut self, index: u32, packet: Packet) {
        self.slots[index as usize].clear(flag::PINGED);
        match packet {
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {
                self.connected(index, ack.session_present);
            }
            Packet::ConnAck(ack) => {
                tracing::debug!(code = ?ack.code, "a device was refused");
                self.closed(index);
            }
            Packet::Publish(publish) => self.publish(index, &publish),
            Packet::PubAck(ack) => self.acknowledged(index, ack.pkid),
            Packet::SubAck(_) | Packet::PingResp => {}
            other => {
                tracing::warn!(?other, "the hub sent what only a device sends");
                self.closed(index);
            }
        }
    }

    fn connected(&mut self, index: u32, session_present: bool) {
        let accepted = self.clock.now().at;
        if !self.link_is_up(index, accepted) {
            return;
        }
        if self.profile == Profile::Plain {
            self.name(index);
            self.writer.hello(&self.id);
        }
        // A life that was cut off between CONNECT and SUBSCRIBE has left a session that hears nothing.
        let heard = self.slots[index as usize].twin_rid != 0;
        self.tell(index, Event::Connected { session_present: session_present && heard });
    }

    /// Counts the connection that the hub has accepted; false if it is known already.
    pub(super) fn link_is_up(&mut self, index: u32, accepted: Instant) -> bool {
        let slot = &mut self.slots[index as usize];
        if slot.has(flag::UP) {
            return false;
        }
        slot.clear(flag::CONNECTING);
        let first = !slot.has(flag::KNOWN);
        slot.set(flag::KNOWN | flag::UP);
        let (intended, started) = (slot.intended, slot.started);
        self.meter.connected(Connection { intended, started, accepted, first });
        self.tally.connected.add(1);
        true
    }

    fn publish(&mut self, index: u32, publish: &Publish) {
        if publish.qos == QoS::AtLeastOnce {
            self.writer.ack(publish.pkid);
        }
        self.name(index);
        let Ok(message) = self.profile.decode_down(&self.id, &publish.topic, &publish.payload) else {
            let number = self.who(index).number;
            self.violations.note(Invariant::OwnMessagesOnly, number);
            return;
        };
        match message {
            Down::TwinAnswer { rid, status, body, .. } => self.twin_answer(index, rid, status, body),
            Down::Desired { version, .. } => self.notification(index, version, &publish.payload),
            Down::Method { name, rid, body } if name == grant::METHOD => {
                let rid = rid.to_owned();
                self.granted(index, Some(rid), body);
            }
            Down::Method { name, rid, body } => match name.as_ref() {
                "cancel" => self.call_off(index, rid, body),
                _ => self.answer(index, rid, 404, b"null"),
            },
            Down::CloudToDevice { properties, body }
                if properties.split('&').any(|p| p == grant::PROPERTIES) =>
            {
                self.granted(index, None, body);
            }
            Down::CloudToDevice { .. } => {}
        }
        // What was written beside what the agent said.
        if self.slots[index as usize].line != Line::NONE {
            let at = self.clock.now().at;
            self.transmit(index, at);
        }
        self.writer.clear();
        self.ask_for_turn(index);
    }

    fn answer(&mut self, index: u32, rid: &str, status: i32, body: &[u8]) {
        self.name(index);
        self.writer.up(&self.id, &Up::MethodResponse { rid, status, body });
    }

    /// Calls the update off, as the real agent does; what refusals tell people is left out.
    fn call_off(&mut self, index: u32, rid: &str, body: &[u8]) {
        let Ok(Cancel { target }) =
            serde_json::from_slice::<Option<Cancel>>(body).map(Option::unwrap_or_default)
        else {
            return self.answer(index, rid, 400, b"null");
        };
        match target.as_deref() {
            Some(FIRMWARE) => {}
            Some(_) => return self.answer(index, rid, 404, b"null"),
            None if self.slots[index as usize].agent.in_flight().is_none() => {
                return self.answer(index, rid, 409, b"null");
            }
            None => {}
        }
        self.calling_off = Some(rid.to_owned());
        self.tell(index, Event::Abort);
        self.calling_off = None;
    }

    /// The agent has said whether the update could be called off.
    pub(super) fn called_off(&mut self, index: u32, taken: bool) {
        let Some(rid) = self.calling_off.take() else { return };
        if taken {
            let body = serde_json::json!({"target": FIRMWARE}).to_string();
            self.answer(index, &rid, 200, body.as_bytes());
        } else {
            self.answer(index, &rid, 409, b"null");
        }
    }

    fn twin_answer(&mut self, index: u32, rid: &str, status: u16, body: &[u8]) {
        let Ok(rid) = rid.parse::<u32>() else { return };
        if rid != self.slots[index as usize].twin_rid {
            self.report_answered(index, rid, status);
            self.tell(index, Event::Reported { rid, status });
            return;
        }
        if status != 200 {
            self.tell(index, Event::TwinRefused(status));
            return;
        }
        let content = match self.twins.get(body) {
            Some(content) => *content,
            None => match twin::read_twin(body, &mut self.releases) {
                Ok(content) => {
                    if self.twins.len() == MOST_MEANINGS {
                        self.twins.clear();
                    }
                    self.twins.insert(Bytes::copy_from_slice(body), content);
                    content
                }
                Err(error) => {
                    tracing::warn!(%error, "a twin that cannot be read");
                    return;
                }
            },
        };
        self.take_version(index, content.version);
        let twin::TwinContent { version, desired, reported } = content;
        self.tell(index, Event::Twin { version, desired, reported });
        self.notice(index);
    }

    /// The desired properties have changed, and the device hears of it now.
    pub(super) fn desired(&mut self, index: u32, version: u64, patch: &Bytes) {
        let before = self.slots[index as usize].agent.desired();
        let key = (patch.clone(), before);
        let meaning = match self.patches.get(&key) {
            Some(meaning) => *meaning,
            None => match twin::read_patch(patch, before, &mut self.releases) {
                Ok(meaning) => {
                    if self.patches.len() == MOST_MEANINGS {
                        self.patches.clear();
                    }
                    self.patches.insert((Bytes::copy_from_slice(patch), before), meaning);
                    meaning
                }
                Err(error) => {
                    tracing::warn!(%error, "a change of desired properties that cannot be read");
                    return;
                }
            },
        };
        self.take_version(index, version);
        self.tell(index, Event::Desired { version, desired: meaning.unwrap_or(before) });
        self.notice(index);
    }

    fn take_version(&mut self, index: u32, version: u64) {
        let who = self.who(index);
        let slot = &mut self.slots[index as usize];
        if slot.has(flag::ON) && version >= slot.agent.desired_version() {
            slot.hardware.saw_version(who, version, &mut self.violations);
        }
    }

    /// The cloud side has answered a grant request.
    fn granted(&mut self, index: u32, method: Option<String>, body: &[u8]) {
        let answer = serde_json::from_slice::<Answer>(body).ok();
        let found = answer.and_then(|answer| Some((self.releases.find(&answer.id, answer.seq)?, answer)));
        let Some((release, answer)) = found else {
            if let Some(rid) = method {
                self.name(index);
                self.writer.up(&self.id, &Up::MethodResponse { rid: &rid, status: 400, body: b"null" });
            }
            return;
        };
        let decision = match answer.decision() {
            GrantAnswer::Granted { expires } => {
                let millis = expires.as_unix_millis().saturating_add(self.calendar_ahead);
                GrantAnswer::Granted { expires: WallTime::from_unix_millis(millis) }
            }
            other => other,
        };
        let url = match answer.outcome {
            Outcome::Granted { url, .. } => Some(url),
            Outcome::RetryAfter(_) | Outcome::Refused(_) => None,
        };
        self.grant = Some(GrantUnderWay { url, method });
        self.tell(index, Event::Grant { release, answer: decision });
        self.grant = None;
    }
}
