//! What the run does at the hub on its back end's side: at ours by its handle, elsewhere by its REST operations.

use std::sync::Arc;
use std::time::Duration;

use fleetwave_hub::HubControl;
use fleetwave_protocol::Instant;

use super::stage::failed;
use crate::device::World;
use crate::remote::Tenancy;
use crate::run::EngineError;
use crate::scenario::step::Configure;

/// The hub's back end side.
#[derive(Clone)]
pub(super) enum Operator {
    Ours(HubControl),
    Elsewhere(Arc<Tenancy>),
}

impl Operator {
    /// The handle of a hub that is ours.
    pub(super) fn control(&self) -> Option<HubControl> {
        match self {
            Self::Ours(control) => Some(control.clone()),
            Self::Elsewhere(_) => None,
        }
    }

    /// Puts a configuration; says when the hub accepted it. Elsewhere that does not show: devices may hear of it before
    /// the answer is here, so it counts from when the request was sent.
    pub(super) fn put(&self, world: &World, configure: &Configure) -> Result<Instant, EngineError> {
        let what = || format!("putting configuration {}", configure.id);
        match self {
            Self::Ours(control) => {
                let configuration =
                    world.catalogue().configuration(configure).map_err(|error| failed(what(), error))?;
                let configuration = Arc::into_inner(configuration).expect("nobody else has it yet");
                let done = control.put_configuration(configuration).map_err(|error| failed(what(), error))?;
                Ok(done.at)
            }
            Self::Elsewhere(tenancy) => {
                let content = world.catalogue().content(configure);
                tenancy.put(configure, &content).map_err(|error| failed(what(), error))
            }
        }
    }

    /// How many devices a configuration that was put is for now.
    pub(super) fn targeted(&self, configure: &Configure) -> Result<u64, EngineError> {
        let what = || format!("counting the devices of configuration {}", configure.id);
        match self {
            Self::Ours(control) => {
                let counts = control.counts(&configure.id).map_err(|error| failed(what(), error))?;
                Ok(counts.map_or(0, |counts| counts.targeted))
            }
            Self::Elsewhere(tenancy) => {
                let condition = tenancy.condition(&configure.target);
                tenancy.wait(tenancy.service().count(&condition)).map_err(|error| failed(what(), error))
            }
        }
    }

    /// Removes a configuration. One that was cancelled before is gone already.
    pub(super) fn cancel(&self, configuration: &str) -> Result<(), EngineError> {
        match self {
            Self::Ours(control) => {
                if let Err(error) = control.delete_configuration(configuration) {
                    tracing::debug!(%error, configuration, "a configuration could not be removed");
                }
                Ok(())
            }
            Self::Elsewhere(tenancy) => tenancy
                .cancel(configuration)
                .map_err(|error| failed(format!("removing configuration {configuration}"), error)),
        }
    }

    /// Restarts the hub.
    pub(super) fn restart(&self, down_for: Duration) -> Result<(), EngineError> {
        match self {
            Self::Ours(control) => {
                control.restart(down_for).map_err(|error| failed("restarting the hub", error)).map(drop)
            }
            Self::Elsewhere(..) => unreachable!("a scenario that restarts a hub elsewhere was refused"),
        }
    }
}
