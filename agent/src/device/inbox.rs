//! What comes from the hub, and the events that the machines make of it.

use std::time::Duration;

use fleetwave_agent_core::grant::{self, Answer, Outcome};
use fleetwave_agent_core::twin::{self, Desired};
use fleetwave_agent_core::{Event, GrantAnswer, ResultCode, State};
use fleetwave_protocol::{Down, WallTime, bag};
use rumqttc::Publish;
use serde_json::{Map, Value};

use super::Device;
use super::outbox::{Asked, Question, Who};
use crate::link::Arrival;
use crate::unit::{Offer, Unit};

impl Device<'_> {
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Connected { device, session_present } => {
                tracing::info!(device = &*device, "connected");
                self.connected(session_present);
            }
            Arrival::Lost(error) => {
                tracing::warn!(%error, "not connected");
                self.host.counters.lost();
                self.units.iter_mut().for_each(|unit| unit.offline = Some(error.to_string()));
                self.disconnected();
            }
            Arrival::Message(message) => {
                self.heard = true;
                self.message(&message);
            }
        }
    }

    fn message(&mut self, message: &Publish) {
        let Some(link) = &self.link else { return };
        let Ok(down) = link.decode(message) else {
            tracing::warn!(topic = message.topic, "a message on a topic that the agent does not know");
            return;
        };
        match down {
            Down::TwinAnswer { rid, status, body, .. } => {
                match rid.parse().ok().and_then(|rid| self.outbox.answered(rid)) {
                    None => {
                        tracing::debug!(rid, status, "an answer to nothing that was asked");
                    }
                    Some(Question::Report(all)) => self.reported(&all, status),
                    Some(Question::Twin(all)) => self.twin(&all, status, body),
                }
            }
            Down::Desired { version, body } => self.desired(version, body),
            Down::Method { name, rid, body } if name == grant::METHOD => self.grant(body, Some(rid)),
            Down::Method { name, rid, body } => self.method(&name, rid, body),
            Down::CloudToDevice { properties, body }
                if bag::get(properties, "kind").as_deref() == Some("grant") =>
            {
                self.grant(body, None);
            }
            Down::CloudToDevice { .. } => tracing::warn!("a cloud-to-device message that is no grant"),
        }
    }

    /// The unit that asked, if it still lives the life in which it did.
    fn asking(&mut self, asked: Asked) -> Option<&mut Unit> {
        let Who::Unit { index, life } = asked.who else { return None };
        self.units.get_mut(index).filter(|unit| unit.life == life)
    }

    fn reported(&mut self, all: &[Asked], status: u16) {
        if !(200..300).contains(&status) {
            tracing::warn!(status, "the hub refused a report");
        }
        let now = self.now().at;
        for asked in all {
            if let Who::Problem { index } = asked.who {
                self.units[index].complained(status, now);
            } else if let Some(unit) = self.asking(*asked) {
                // One that is refused for now will be repeated, and nothing is settled until then.
                unit.reporting = matches!(status, 429 | 500..);
                unit.hear(Event::Reported { rid: asked.rid, status });
            }
        }
    }

    fn twin(&mut self, all: &[Asked], status: u16, body: &[u8]) {
        let read = if status == 200 { read_twin(body) } else { Err(format!("status {status}")) };
        let (version, desired, reported) = match read {
            Ok(read) => read,
            Err(why) => {
                tracing::warn!(why, "the twin was refused, or cannot be read");
                for asked in all {
                    match asked.who {
                        Who::Lead => self.lead.hear(Event::TwinRefused(status)),
                        Who::Unit { .. } | Who::Problem { .. } => {
                            if let Some(unit) = self.asking(*asked) {
                                unit.hear(Event::TwinRefused(status));
                            }
                        }
                    }
                }
                return;
            }
        };
        for asked in all {
            if asked.who == Who::Lead {
                self.lead.hear_twin(version);
                self.units.iter_mut().for_each(|unit| unit.hub_knows(reported.as_ref()));
            } else if let Some(unit) = self.asking(*asked) {
                // What is desired is read first: what was reported may name releases that only it tells.
                let section = unit.target.as_str();
                let desired = twin::read_section(&desired, section, &mut unit.releases);
                let reported = reported.as_ref();
                let reported = reported
                    .and_then(|reported| twin::read_section_status(reported, section, &unit.releases));
                let desired = unit.wanted(desired);
                unit.hear(Event::Twin { version, desired, reported });
            }
        }
    }

    fn desired(&mut self, version: u64, body: &[u8]) {
        let patch: Map<String, Value> = match serde_json::from_slice(body) {
            Ok(patch) => patch,
            Err(error) => {
                // The next change, or the next connection, shows that this one is missing.
                tracing::warn!(%error, "a change of the desired properties cannot be read");
                return;
            }
        };
        self.lead.hear(Event::Desired { version, desired: Desired::Nothing });
        for unit in &mut self.units {
            let Some(before) = unit.hub_desired() else { continue };
            let after = twin::patch_section(&patch, unit.target.as_str(), before, &mut unit.releases);
            let desired = unit.wanted(after.unwrap_or(before));
            unit.hear(Event::Desired { version, desired });
        }
    }

    fn grant(&mut self, body: &[u8], method: Option<&str>) {
        let found = serde_json::from_slice::<Answer>(body).ok().and_then(|answer| {
            // An answer that names no target may be to any: from a cloud side that knows of one alone.
            let meant = |unit: &&mut Unit| {
                answer.target.as_deref().is_none_or(|target| target == unit.target.as_str())
                    && unit.releases.find(&answer.id, answer.seq).is_some()
            };
            let mut meant: Vec<_> = self.units.iter_mut().filter(meant).collect();
            let waiting = meant.iter().position(|unit| unit.state() == Some(State::Granting));
            // The first that knows the release says that it waits for nothing, if none does.
            let unit = if meant.is_empty() { None } else { Some(meant.swap_remove(waiting.unwrap_or(0))) };
            Some((unit?, answer))
        });
        let Some((unit, answer)) = found else {
            tracing::warn!("a grant that is malformed, or for a release that nobody asked for");
            if let Some(rid) = method {
                self.outbox.answer(rid.to_owned(), 400, b"null".to_vec());
            }
            return;
        };
        let Some(release) = unit.releases.find(&answer.id, answer.seq) else { return };
        let links = match &answer.outcome {
            Outcome::Granted { url, delta_url, .. } => {
                self.fetcher.check_links(url, delta_url.as_deref()).map(Some)
            }
            Outcome::RetryAfter(_) => Ok(None),
            Outcome::Refused(why) => {
                unit.note(ResultCode::GrantRefused, why);
                Ok(None)
            }
        };
        let (links, decision) = match links {
            Ok(links) => (links, later(answer.decision(), self.host.ahead())),
            Err(error) => {
                tracing::error!(%error, "the grant counts as refused");
                unit.note(ResultCode::GrantRefused, error);
                (None, GrantAnswer::Refused)
            }
        };
        unit.offer = Some(Offer { links, method: method.map(str::to_owned) });
        unit.hear(Event::Grant { release, answer: decision });
    }
}

/// The end of a link, by a calendar that is so much ahead.
fn later(answer: GrantAnswer, ahead: Duration) -> GrantAnswer {
    match answer {
        GrantAnswer::Granted { expires } if !ahead.is_zero() => {
            let ahead = u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX);
            let expires = WallTime::from_unix_millis(expires.as_unix_millis().saturating_add(ahead));
            GrantAnswer::Granted { expires }
        }
        answer => answer,
    }
}

/// Version, desired and reported properties of a twin.
type Read = (u64, Map<String, Value>, Option<Value>);

fn read_twin(body: &[u8]) -> Result<Read, String> {
    let mut twin: Map<String, Value> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let Some(Value::Object(desired)) = twin.remove("desired") else {
        return Err("no desired properties".into());
    };
    let version = desired.get("$version").and_then(Value::as_u64).ok_or("no version")?;
    Ok((version, desired, twin.remove("reported")))
}
