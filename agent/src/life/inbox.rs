//! What comes from the hub, and the event that the machine makes of it.

use fleetwave_agent_core::grant::{self, Answer, Outcome};
use fleetwave_agent_core::{Event, GrantAnswer, twin};
use fleetwave_protocol::{Down, Profile, Up, bag};
use rumqttc::Publish;

use super::{Life, Offer};
use crate::link::Arrival;
use crate::payload;

impl Life<'_> {
    pub(super) fn arrived(&mut self, arrival: Arrival) -> Option<Event> {
        match arrival {
            Arrival::Connected { session_present } => Some(Event::Connected { session_present }),
            Arrival::Lost(why) => {
                tracing::warn!(why, "not connected");
                self.reporting = false;
                self.link = None;
                Some(Event::Disconnected)
            }
            Arrival::Message(message) => self.message(&message),
        }
    }

    fn message(&mut self, message: &Publish) -> Option<Event> {
        let device = &self.config.hub.connection_string.device;
        let Ok(down) = Profile::IotHub.decode_down(device, &message.topic, &message.payload) else {
            tracing::warn!(topic = message.topic, "a message on a topic that the agent does not know");
            return None;
        };
        match down {
            Down::TwinAnswer { rid, status, body, .. } => self.twin_answer(rid.parse().ok()?, status, body),
            Down::Desired { version, body } => {
                let before = self.agent.desired();
                match twin::read_patch(body, before, &mut self.releases) {
                    Ok(change) => Some(Event::Desired { version, desired: change.unwrap_or(before) }),
                    Err(error) => {
                        tracing::warn!(%error, "a change of the desired properties cannot be read");
                        None
                    }
                }
            }
            Down::Method { name, rid, body } if name == grant::METHOD => self.grant(body, Some(rid)),
            Down::Method { name, rid, .. } => {
                tracing::warn!(%name, "a direct method that this version does not have");
                let body = br#"{"message":"this version of the agent has no such method"}"#;
                self.send(&Up::MethodResponse { rid, status: 501, body });
                None
            }
            Down::CloudToDevice { properties, body }
                if bag::get(properties, "kind").as_deref() == Some("grant") =>
            {
                self.grant(body, None)
            }
            Down::CloudToDevice { .. } => {
                tracing::warn!("a cloud-to-device message that is no grant");
                None
            }
        }
    }

    fn twin_answer(&mut self, rid: u32, status: u16, body: &[u8]) -> Option<Event> {
        if rid != self.twin_rid {
            if !(200..300).contains(&status) {
                tracing::warn!(status, "the hub refused a report");
            }
            // One that is refused for now will be repeated, and nothing is settled until then.
            self.reporting = matches!(status, 429 | 500..);
            return Some(Event::Reported { rid, status });
        }
        if status != 200 {
            tracing::warn!(status, "the hub refused the twin");
            return Some(Event::TwinRefused(status));
        }
        match twin::read_twin(body, &mut self.releases) {
            Ok(twin::TwinContent { version, desired, reported }) => {
                Some(Event::Twin { version, desired, reported })
            }
            Err(error) => {
                tracing::warn!(%error, "the twin cannot be read");
                Some(Event::TwinRefused(status))
            }
        }
    }

    fn grant(&mut self, body: &[u8], method: Option<&str>) -> Option<Event> {
        let answer = serde_json::from_slice::<Answer>(body).ok();
        let answer = answer.and_then(|answer| Some((self.releases.find(&answer.id, answer.seq)?, answer)));
        let Some((release, answer)) = answer else {
            tracing::warn!("a grant that is malformed, or for a release that nobody asked for");
            if let Some(rid) = method {
                self.send(&Up::MethodResponse { rid, status: 400, body: b"null" });
            }
            return None;
        };
        let link = match &answer.outcome {
            Outcome::Granted { url, .. } => payload::check_link(url).map(Some),
            Outcome::RetryAfter(_) | Outcome::Refused(_) => Ok(None),
        };
        let (url, decision) = match link {
            Ok(url) => (url, answer.decision()),
            Err(error) => {
                tracing::error!(%error, "the grant counts as refused");
                (None, GrantAnswer::Refused)
            }
        };
        self.offer = Some(Offer { url, method: method.map(str::to_owned) });
        Some(Event::Grant { release, answer: decision })
    }
}
