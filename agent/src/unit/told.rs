//! What a unit says of itself.

use fleetwave_agent_core::{Agent, ReleaseId, State};
use serde_json::{Value, json};

use super::{Parked, Unit};
use crate::command::About;
use crate::install::Reference;

impl Unit {
    /// What the programs of the operator are told.
    pub(super) fn about(&self) -> About {
        let release =
            self.agent().and_then(Agent::in_flight).map(|release| self.releases[release].reference());
        About::reference(self.target.as_str(), release.unwrap_or(&Reference::new()))
    }

    /// For the service manager: what it does, if anything.
    pub(crate) fn doing(&self) -> Option<String> {
        let Some(agent) = self.agent() else { return Some(format!("{}: starting", self.target)) };
        let release = agent.in_flight()?;
        Some(format!("{}: {} {}", self.target, agent.state().name(), self.releases[release].id))
    }

    /// For people, and for programs of the back end.
    pub(crate) fn status(&self) -> Value {
        let Some(agent) = self.agent() else { return json!({"state": "starting"}) };
        let name = |release: ReleaseId| {
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence})
        };
        let updating = agent.in_flight().map(|release| {
            let bytes = self.durable(release);
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence, "bytes": bytes, "size": release.size})
        });
        let last = self.last.map(|(release, code)| {
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence, "code": code.name()})
        });
        json!({
            "state": agent.state().name(),
            "online": agent.is_online(),
            "running": self.running.map(name),
            "committed": name(agent.committed()),
            "updating": updating,
            "last": last,
        })
    }

    /// Whether a download of this unit is under way.
    pub(crate) fn is_fetching(&self) -> bool {
        self.fetching
    }

    /// Whether something runs, or is about to, that is not committed.
    pub(crate) fn on_trial(&self) -> bool {
        match self.state() {
            None => self.unsettled,
            Some(State::Rebooting) => self.parked != Some(Parked::Activate),
            Some(state) => matches!(state, State::Probation | State::Committing | State::RollingBack),
        }
    }
}
