//! What the machines ask for, and what becomes of it: some is for the unit itself, the rest is for the device.

use fleetwave_agent_core::{Effect, Event, ReleaseId, grant};

use serde_json::{Value, json};

use super::Device;
use super::outbox::{Asked, Who};
use crate::link::Link;
use crate::target::Target;
use crate::telemetry;
use crate::unit::{Parked, Unit};
use crate::watch::Seen;

impl Device<'_> {
    /// Lets every machine take what has come, and carries out what they ask for.
    pub(super) fn turn(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        loop {
            let mut quiet = true;
            let now = self.now();
            while self.lead.turn(now, &mut effects) {
                quiet = false;
                effects.drain(..).for_each(|effect| self.lead_performs(effect));
            }
            for index in 0..self.units.len() {
                while self.units[index].turn(now, &mut effects) {
                    quiet = false;
                    for effect in effects.drain(..) {
                        if let Some(effect) = self.units[index].perform(effect) {
                            self.perform(index, effect);
                        }
                    }
                }
            }
            self.let_on();
            if quiet && !self.attend() {
                break;
            }
        }
        self.effects = effects;
        self.host.watch_wanted(&self.units);
        self.tell_problems();
        self.tell_news();
        match &mut self.link {
            Some(link) if self.connected => self.outbox.flush(link, &self.host.counters),
            _ => self.outbox.clear(),
        }
    }

    /// Tells what is wrong with units, and what is not any more, if the hub does not know.
    fn tell_problems(&mut self) {
        for (index, unit) in self.units.iter_mut().enumerate() {
            if let Some(report) = unit.complaint() {
                tracing::info!(report = %serde_json::Value::Object(report.clone()), "reports");
                self.outbox.report(Asked { who: Who::Problem { index }, rid: 0 }, report);
            }
        }
    }

    /// Takes over what ended, and tells it if there is a connection.
    fn tell_news(&mut self) {
        let Some(news) = &mut self.host.news else { return };
        for outcome in self.units.iter_mut().flat_map(|unit| unit.outcomes.drain(..)) {
            news.ended(outcome, &self.host.counters);
        }
        if self.connected {
            while let Some(outcome) = news.next() {
                self.outbox.telemetry(telemetry::OUTCOME, outcome);
            }
        }
    }

    /// Says that the device is alive, if it is time for that and there is a connection.
    pub(super) fn heartbeat(&mut self) {
        let due = self.host.news.as_mut().is_some_and(|news| news.is_due(tokio::time::Instant::now()));
        if due && self.connected {
            let targets = self.units.iter().map(|unit| (unit.target.to_string(), unit.pulse()));
            let pulse = json!({
                "version": env!("CARGO_PKG_VERSION"),
                "uptime_seconds": self.origin.elapsed().as_secs(),
                "targets": Value::Object(targets.collect()),
            });
            self.outbox.telemetry(telemetry::HEARTBEAT, pulse.to_string().into_bytes());
        }
    }

    /// Lets units go on with what only one of them may do at a time: a download, and running what is not committed.
    fn let_on(&mut self) {
        let fetches = |unit: &Unit| matches!(unit.parked, Some(Parked::Fetch { .. }));
        if !self.units.iter().any(Unit::is_fetching)
            && let Some(unit) = self.units.iter_mut().find(|unit| fetches(unit))
        {
            unit.unpark();
        }
        if !self.units.iter().any(Unit::on_trial)
            && let Some(unit) = self.units.iter_mut().find(|unit| unit.parked == Some(Parked::Activate))
        {
            unit.unpark();
        }
    }

    /// The connection is led by a machine of the device's own: no unit's life or death changes it.
    fn lead_performs(&mut self, effect: Effect) {
        match effect {
            Effect::Connect if self.desk.is_alone() => {}
            Effect::Connect => {
                self.host.watched(Seen::Connecting);
                self.link = Some(Link::open(self.access));
            }
            Effect::Disconnect => self.disconnected(),
            Effect::Subscribe => self.subscribe(),
            Effect::GetTwin { rid } => self.outbox.get_twin(Asked { who: Who::Lead, rid }),
            _ => {}
        }
    }

    fn perform(&mut self, index: usize, effect: Effect) {
        let unit = &mut self.units[index];
        let effect = if self.connected { Some(effect) } else { unit.answer_for_hub(effect) };
        let Some(effect) = effect else { return };
        let asked = |rid| Asked { who: Who::Unit { index, life: unit.life }, rid };
        match effect {
            // To a unit that begins its life later than the connection; the others hear of it when it comes.
            Effect::Connect if self.connected => unit.hear(Event::Connected { session_present: true }),
            Effect::Subscribe if self.connected => self.subscribe(),
            Effect::GetTwin { rid } => self.outbox.get_twin(asked(rid)),
            Effect::Report { rid, status } => {
                let asked = asked(rid);
                unit.reporting = true;
                unit.speaks();
                let report = unit.report(&status);
                tracing::info!(report = %serde_json::Value::Object(report.clone()), "reports");
                self.outbox.report(asked, report);
            }
            Effect::RequestGrant { release } => self.request_grant(index, release),
            Effect::AnswerGrant { accepted } => {
                let method = unit.take_offer(accepted);
                if accepted {
                    self.host.watched(Seen::Granted);
                }
                if let Some(rid) = method {
                    self.outbox.answer(rid, if accepted { 200 } else { 409 }, b"null".to_vec());
                }
            }
            Effect::AnswerAbort { taken } => self.cancelled(index, taken),
            Effect::Entered(state) if unit.target == Target::firmware() => {
                self.host.watched(Seen::Entered(state));
            }
            _ => {}
        }
    }

    fn subscribe(&mut self) {
        if !self.subscribed {
            self.subscribed = true;
            self.outbox.subscribe();
        }
    }

    fn request_grant(&mut self, index: usize, release: ReleaseId) {
        self.host.watched(Seen::Asked);
        let unit = &self.units[index];
        let release = &unit.releases[release];
        let target = (unit.target != Target::firmware()).then(|| unit.target.to_string());
        let request = grant::Request { id: release.id.to_string(), seq: release.sequence, target };
        let body = serde_json::to_vec(&request).expect("a request is JSON");
        self.outbox.telemetry(grant::PROPERTIES, body);
    }

    pub(super) fn connected(&mut self, session_present: bool) {
        self.host.counters.connected();
        self.connected = true;
        self.host.watched(Seen::Connected);
        self.subscribed = false;
        // What was on its way on a connection that this one takes the place of stays unanswered.
        self.outbox.forget();
        for unit in &mut self.units {
            unit.offline = None;
            unit.reporting = false;
            unit.hub_forgets();
        }
        self.tell_all(Event::Connected { session_present: session_present && self.heard });
    }

    pub(super) fn disconnected(&mut self) {
        let was_connected = std::mem::take(&mut self.connected);
        self.host.watched(Seen::Lost);
        self.link = None;
        self.outbox.forget();
        for unit in &mut self.units {
            unit.reporting = false;
            unit.hub_forgets();
        }
        self.tell_of_loss(was_connected);
    }

    fn tell_all(&mut self, event: Event) {
        self.lead.hear(event);
        self.units.iter_mut().for_each(|unit| unit.hear(event));
    }
}
