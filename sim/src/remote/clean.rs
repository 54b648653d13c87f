//! What runs have left on a hub, and its removal.

use std::collections::BTreeMap;

use fleetwave_hub::Clock;
use serde_json::Value;

use super::client::ServiceError;
use super::service::{BATCH, Service};
use super::{PREFIX, Remote, limits_of};
use crate::scenario::model::Tier;

/// What one run has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    /// Ids of its devices.
    pub devices: Vec<String>,
    /// Ids of its configurations.
    pub configurations: Vec<String>,
}

/// What runs have left, by their ids.
pub type Leftovers = BTreeMap<String, Leftover>;

/// Removes what runs have left.
#[derive(Debug)]
pub struct Cleaner {
    service: Service,
    runtime: tokio::runtime::Runtime,
}

impl Cleaner {
    /// For the hub of `remote`; its run plays no part.
    ///
    /// # Errors
    /// If no server could be trusted.
    pub fn new(remote: &Remote) -> Result<Self, ServiceError> {
        let (tier, units) = remote.limits.unwrap_or((Tier::S1, 1));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a process that has done nothing yet has descriptors left");
        let service =
            Service::new(remote.access.clone(), remote.ca.as_deref(), limits_of(tier), units, &Clock::new())?;
        Ok(Self { service, runtime })
    }

    /// Finds what is left, of all runs or of one. A device counts if both its tag and its id say whose it is.
    ///
    /// # Errors
    /// If the hub cannot be asked.
    pub fn find(&self, run: Option<&str>) -> Result<Leftovers, ServiceError> {
        self.runtime.block_on(async {
            let mut found = Leftovers::new();
            for id in self.service.configurations().await? {
                if let Some(owner) = run_of(&id) {
                    found.entry(owner.to_owned()).or_default().configurations.push(id);
                }
            }
            let which = match run {
                Some(run) => format!("tags.{PREFIX}.run = '{run}'"),
                None => format!("IS_DEFINED(tags.{PREFIX}.run)"),
            };
            let query = format!("SELECT deviceId, tags.{PREFIX}.run AS run FROM devices WHERE {which}");
            for row in self.service.query(&query).await? {
                let text = |name| row.get(name).and_then(Value::as_str);
                if let (Some(id), Some(owner)) = (text("deviceId"), text("run"))
                    && run_of(id) == Some(owner)
                {
                    found.entry(owner.to_owned()).or_default().devices.push(id.to_owned());
                }
            }
            found.retain(|owner, _| run.is_none_or(|run| run == owner));
            Ok(found)
        })
    }

    /// Removes it; `told` hears how many devices are gone.
    ///
    /// # Errors
    /// If the hub refuses; what was removed until then is gone.
    pub fn remove(&self, leftover: &Leftover, mut told: impl FnMut(usize)) -> Result<(), ServiceError> {
        self.runtime.block_on(async {
            for id in &leftover.configurations {
                self.service.delete_configuration(id).await?;
            }
            let mut gone = 0;
            for ids in leftover.devices.chunks(BATCH) {
                self.service.delete_devices(ids).await?;
                gone += ids.len();
                told(gone);
            }
            Ok(())
        })
    }
}

/// The run in an id that a run has made: `fleetwave-RUN-…`.
fn run_of(id: &str) -> Option<&str> {
    let (run, _) = id.strip_prefix(PREFIX)?.strip_prefix('-')?.split_once('-')?;
    is_run(run).then_some(run)
}

/// Whether a text can be a run's id.
#[must_use]
pub fn is_run(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_the_form_that_runs_make_are_theirs() {
        assert_eq!(run_of("fleetwave-1a2b3c4d-0000001"), Some("1a2b3c4d"));
        for other in [
            "fleetwave-agent-7",
            "fleetwave-1a2b3c4d",
            "dev-1a2b3c4d-1",
            "fleetwave--1",
            "fleetwave-1A2B3C4D-1",
        ] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }
}
