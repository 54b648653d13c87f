//! What a unit says of itself.

use fleetwave_agent_core::{Agent, ReleaseId, ResultCode, State};
use serde_json::{Value, json};

use super::{Parked, Unit};
use crate::command::About;
use crate::fetch::{Spent, unix_now};
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
        let Some(agent) = self.agent() else {
            return Some(format!("{}: {}", self.target, self.state_name()));
        };
        let release = agent.in_flight()?;
        Some(format!("{}: {} {}", self.target, agent.state().name(), self.releases[release].id))
    }

    /// For people, and for programs of the back end.
    pub(crate) fn status(&self) -> Value {
        let problem = self.problem();
        let Some(agent) = self.agent() else {
            return json!({"state": self.state_name(), "problem": problem});
        };
        let name = |release: ReleaseId| {
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence})
        };
        let updating = agent.in_flight().map(|release| {
            let bytes = self.durable(release);
            let release = &self.releases[release];
            let spent = self.fetcher.ledger().spent(release);
            json!({
                "id": &*release.id,
                "seq": release.sequence,
                "bytes": bytes,
                "size": release.size,
                // What the rest was going to cost when that was planned.
                "cost": self.plan.map(|plan| json!({"bytes": plan.bytes, "requests": plan.requests})),
                "spent": cost(&spent),
            })
        });
        let last = self.last.map(|(release, code)| {
            let cause = self.cause(release, code);
            let release = &self.releases[release];
            let mut last = json!({"id": &*release.id, "seq": release.sequence, "code": code.name()});
            if let Some(cause) = cause {
                last["cause"] = cause.into();
            }
            last
        });
        let mut status = json!({
            "state": agent.state().name(),
            "online": agent.is_online(),
            "running": self.running.map(name),
            "committed": name(agent.committed()),
            "updating": updating,
            "last": last,
            "problem": problem,
        });
        if let Some(source) = self.source() {
            status["asked_here"] = source.to_string_lossy().into();
        }
        status
    }

    /// For a message: how an update ended, and what it took.
    pub(super) fn outcome(&self, release: ReleaseId, code: ResultCode, spent: &Spent) -> Value {
        let cause = self.cause(release, code);
        let release = &self.releases[release];
        let mut outcome = cost(spent);
        if let Some(cause) = cause {
            outcome["cause"] = cause.into();
        }
        outcome["target"] = self.target.as_str().into();
        outcome["release"] = (&*release.id).into();
        outcome["seq"] = release.sequence.into();
        outcome["code"] = code.name().into();
        // Of wall time, which goes on while a device is off; none if nothing was fetched, or the clock was set back.
        outcome["seconds"] = match spent.since {
            0 => Value::Null,
            since => unix_now().checked_sub(since).into(),
        };
        outcome
    }

    /// For a heartbeat: little.
    pub(crate) fn pulse(&self) -> Value {
        let running = self.running.map(|release| {
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence})
        });
        json!({"state": self.state_name(), "running": running})
    }

    fn state_name(&self) -> &'static str {
        let unknown = if self.is_broken() { "broken" } else { "starting" };
        self.state().map_or(unknown, State::name)
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

/// What an update has cost so far.
pub(crate) fn cost(spent: &Spent) -> Value {
    json!({"bytes": spent.bytes, "requests": spent.requests, "attempts": spent.tries})
}
