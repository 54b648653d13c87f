//! A run on a hub that is not ours: Azure IoT Hub, or `fleetwave hub` as a process of its own.
//!
//! The harness uses what everybody has: REST operations for devices and configurations, MQTT over TLS for the devices,
//! direct methods for grants. What it creates carries the run's id, target conditions are held to that, and all of
//! it is removed when the run is over. The parts: who may do what there ([`Access`]), the operations (`service`),
//! its limits (`pace`), what a run has there (`tenancy`), what it will do ([`estimate`]), and what earlier runs
//! left ([`clean`]).

mod access;
pub mod clean;
mod client;
mod estimate;
mod fit;
mod pace;
mod service;
mod tenancy;
mod trust;

use std::fmt;
use std::path::PathBuf;

use fleetwave_agent_core::grant::Request;
use fleetwave_hub::Clock;
use fleetwave_hub_core::throttle;

use crate::scenario::model::{Scenario, Tier};

pub use access::{Access, AccessError, is_connection_string};
pub use client::ServiceError;
pub use estimate::estimate;
pub use fit::fit;
pub(crate) use pace::Pacer;
pub(crate) use service::Service;
pub(crate) use tenancy::Tenancy;
pub use trust::TrustError;
pub(crate) use trust::client_config;

/// What ids of everything that runs create begin with.
const PREFIX: &str = "fleetwave";
/// The port of MQTT over TLS.
pub const MQTT_PORT: u16 = 8883;

/// A hub that is not ours, and a run on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// How to reach it.
    pub access: Access,
    /// The port of MQTT over TLS.
    pub mqtt_port: u16,
    /// A file with the authority to be trusted, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The tier and its units whose limits are kept; the scenario's if left out.
    pub limits: Option<(Tier, u32)>,
    /// The run's id, in the ids of all that it creates.
    pub run: String,
    /// The arguments that reach the same hub again, for messages.
    pub arguments: String,
}

impl Remote {
    /// A run on the hub of `access`, with an id of its own.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self {
            access,
            mqtt_port: MQTT_PORT,
            ca: None,
            limits: None,
            run: format!("{:08x}", rand::random::<u32>()),
            arguments: "--target-file FILE".to_owned(),
        }
    }

    /// What the ids of this run's devices and configurations begin with.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("{PREFIX}-{}", self.run)
    }

    /// The condition that only this run's devices meet.
    #[must_use]
    pub fn condition(&self) -> String {
        format!("tags.{PREFIX}.run = '{}'", self.run)
    }

    /// The tier and its units whose limits are kept: the smallest one's if nobody says another.
    #[must_use]
    pub fn limits(&self, scenario: &Scenario) -> (Tier, u32) {
        match (self.limits, scenario.hub.tier) {
            (Some(limits), _) => limits,
            (None, Tier::None) => (Tier::S1, 1),
            (None, tier) => (tier, scenario.hub.units),
        }
    }

    /// The service side of the hub, within its limits.
    ///
    /// # Errors
    /// If no server could be trusted.
    pub(crate) fn service(&self, scenario: &Scenario, clock: &Clock) -> Result<Service, ServiceError> {
        let (tier, units) = self.limits(scenario);
        Service::new(self.access.clone(), self.ca.as_deref(), limits_of(tier), units, clock)
    }

    /// The command that removes what is left of this run.
    #[must_use]
    pub fn clean_command(&self) -> String {
        format!("fleetwave clean {} --run {}", self.arguments, self.run)
    }
}

/// Without anything that is secret.
impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hub {}", self.access.host())?;
        match self.access.reach() {
            reach if reach == self.access.host() => Ok(()),
            gateway => write!(f, " by {gateway}"),
        }
    }
}

/// The hub core's name of a tier.
pub(crate) const fn limits_of(tier: Tier) -> throttle::Tier {
    match tier {
        Tier::None => throttle::Tier::None,
        Tier::S1 => throttle::Tier::S1,
        Tier::S2 => throttle::Tier::S2,
        Tier::S3 => throttle::Tier::S3,
    }
}

/// A device has asked for a grant, and the hub has acknowledged that.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The device's number in the fleet.
    pub(crate) device: u64,
    /// What for.
    pub(crate) request: Request,
}
