//! What all devices of a run share: the scenario, the fleet's plan, the releases, and the agents' policies.

use std::time::Duration;

use fleetwave_agent_core::{Agent, Policy, ReleaseId, Releases};

use super::Who;
use crate::rollout::{self, Catalogue};
use crate::scenario::fleet::{Fleet, Purpose};
use crate::scenario::model::{Group, Release, Scenario};

/// What all devices of a run share.
#[derive(Clone, Debug)]
pub struct World {
    scenario: Scenario,
    fleet: Fleet,
    catalogue: Catalogue,
    policies: Vec<Policy>,
}

impl World {
    /// The world of `scenario`. `digest` gives the SHA-256 of the payload that a release stands for (not of what a
    /// corrupt store holds).
    #[must_use]
    pub fn new(scenario: Scenario, digest: impl Fn(&Release) -> [u8; 32]) -> Self {
        let fleet = Fleet::plan(&scenario);
        let catalogue = Catalogue::of(&scenario, digest);
        let policies =
            fleet.groups().iter().map(|group| rollout::policy(&scenario.agent, &group.spec)).collect();
        Self { scenario, fleet, catalogue, policies }
    }

    /// The same world, whose devices' ids begin with `prefix`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.fleet = self.fleet.with_prefix(prefix);
        self
    }

    /// What happens.
    #[must_use]
    pub const fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// The fleet's plan.
    #[must_use]
    pub const fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The releases and configurations.
    #[must_use]
    pub const fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The releases that agents know. A thread whose agents read twins clones them: the ids stay the same.
    #[must_use]
    pub const fn releases(&self) -> &Releases {
        &self.catalogue.releases
    }

    /// What the scenario says of a release; `None` for one that no configuration of it gives.
    #[must_use]
    pub fn spec_of(&self, release: ReleaseId) -> Option<&Release> {
        self.catalogue.spec(&self.scenario, release)
    }

    /// The policy of a group's agents.
    #[must_use]
    pub fn policy(&self, group: usize) -> &Policy {
        &self.policies[group]
    }

    /// What the scenario says of a device's group.
    #[must_use]
    pub fn group(&self, who: Who) -> &Group {
        &self.fleet.groups()[who.group].spec
    }

    /// Who a device is.
    #[must_use]
    pub fn who(&self, number: u64) -> Who {
        Who { number, group: self.fleet.group_of(number) }
    }

    /// The agent of a device, switched off.
    #[must_use]
    pub fn agent(&self, number: u64) -> Agent {
        Agent::new(self.fleet.rng(number, Purpose::Agent).next_u64(), self.catalogue.initial)
    }

    /// How long a device hashes a payload of `size` bytes.
    #[must_use]
    pub fn verify_time(&self, who: Who, size: u64) -> Duration {
        let rate = self.group(who).verify.bytes_per_second();
        if rate > 0.0 { Duration::from_secs_f64(size as f64 / rate) } else { Duration::ZERO }
    }
}
