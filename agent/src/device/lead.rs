//! The machine that leads the connection. It is the same as the units', and wants no update: what it has is when to
//! connect, when to give up, and when to read the twin again.

use std::collections::VecDeque;

use fleetwave_agent_core::twin::Desired;
use fleetwave_agent_core::{Agent, Boot, Context, Durable, Effect, Event, Policy, Releases};
use fleetwave_protocol::{Instant, Now};

pub(super) struct Lead {
    agent: Agent,
    policy: Policy,
    releases: Releases,
    events: VecDeque<Event>,
    wake: Option<Instant>,
}

impl Lead {
    pub(super) fn new(policy: Policy, seed: u64) -> Self {
        let mut releases = Releases::default();
        let none = releases.preinstalled("none", 0);
        let boot = Boot { durable: Durable::new(none), running: none, committed: none, partial: 0 };
        let events = VecDeque::from([Event::Booted(boot)]);
        Self { agent: Agent::new(seed, none), policy, releases, events, wake: None }
    }

    pub(super) fn hear(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// A twin asks nothing of it, and says all that it would report.
    pub(super) fn hear_twin(&mut self, version: u64) {
        let reported = Some(self.agent.status());
        self.hear(Event::Twin { version, desired: Desired::Nothing, reported });
    }

    pub(super) fn wake(&self) -> Option<Instant> {
        self.wake
    }

    pub(super) fn ring(&mut self, now: Instant) {
        if self.wake.is_some_and(|wake| wake <= now) {
            self.wake = None;
            self.hear(Event::Timer);
        }
    }

    /// Gives the machine its next event; false if there is none.
    pub(super) fn turn(&mut self, now: Now, effects: &mut Vec<Effect>) -> bool {
        let Some(event) = self.events.pop_front() else { return false };
        let cx = Context { policy: &self.policy, releases: &self.releases };
        self.agent.handle(&cx, now, event, effects);
        for effect in &*effects {
            if let Effect::Wake(at) = effect {
                self.wake = Some(*at);
            }
        }
        true
    }
}
