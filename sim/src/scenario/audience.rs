//! Which devices a target condition is for. The hub core answers, from one device of each group, as it will answer in
//! the run.

use std::sync::Arc;

use fleetwave_hub_core::{Configuration, ConfigurationSpec, DeviceSpec, Hub, HubError, Input, Options};
use fleetwave_protocol::Now;
use serde_json::json;

use super::fleet::{Fleet, PlannedGroup};
use super::model::{RunningRelease, Scenario};

/// A fleet, as far as target conditions tell its devices apart.
pub(super) struct Audience {
    fleet: Fleet,
    running: RunningRelease,
}

impl Audience {
    pub(super) fn of_scenario(scenario: &Scenario) -> Self {
        Self { fleet: Fleet::plan(scenario), running: scenario.fleet.release.clone() }
    }

    /// How many devices a condition is for when the run starts; `None` if that depends on more than their group.
    pub(super) fn of(&self, target: &str) -> Option<u64> {
        if target.contains("deviceId") {
            return None;
        }
        let configuration = Arc::new(configuration("probe", target).ok()?);
        self.fleet
            .groups()
            .iter()
            .try_fold(0, |count, group| Some(count + self.count(group, &configuration)? * group.devices()))
    }

    /// 1 if the configuration `probe` is for a device of the group, else 0.
    fn count(&self, group: &PlannedGroup, configuration: &Arc<Configuration>) -> Option<u64> {
        let mut hub = hub_of(group, &self.running).ok()?;
        let input = Input::PutConfiguration { configuration: Arc::clone(configuration), if_match: None };
        hub.handle(Now::default(), input, &mut Vec::new());
        Some(hub.configuration_counts("probe")?.targeted)
    }

    pub(super) const fn fleet(&self) -> &Fleet {
        &self.fleet
    }
}

/// Which groups a condition is for, if that depends on the group alone for as long as the run lasts.
pub(crate) fn groups(scenario: &Scenario, target: &str) -> Option<Vec<bool>> {
    if ["deviceId", "reported"].iter().any(|name| target.contains(name)) {
        return None;
    }
    let audience = Audience::of_scenario(scenario);
    let configuration = Arc::new(configuration("probe", target).ok()?);
    audience.fleet.groups().iter().map(|group| Some(audience.count(group, &configuration)? > 0)).collect()
}

/// A configuration of that id and target, with some content.
pub(super) fn configuration(id: &str, target: &str) -> Result<Configuration, HubError> {
    Configuration::new(&ConfigurationSpec {
        id,
        target_condition: target,
        device_content: r#"{"properties.desired.firmware":{}}"#,
        ..ConfigurationSpec::default()
    })
}

/// A hub with one device of `group`.
fn hub_of(group: &PlannedGroup, running: &RunningRelease) -> Result<Hub, HubError> {
    let mut hub = Hub::new(Options::default());
    let reported =
        json!({ "firmware": { "running": { "id": running.id, "seq": running.seq }, "state": "idle" } })
            .to_string();
    let spec = DeviceSpec { tags: Some(&group.tags), reported: Some(&reported), ..DeviceSpec::default() };
    hub.create_device(Now::default(), "probe", spec)?;
    Ok(hub)
}

/// The groups whose tags no twin can have, and why.
pub(super) fn bad_tags(scenario: &Scenario) -> Vec<(usize, String)> {
    let groups = Fleet::plan(scenario);
    (0..scenario.fleet.groups.len())
        .filter_map(|i| {
            let error = hub_of(&groups.groups()[i], &RunningRelease::default()).err()?;
            Some((i, format!("a twin cannot have these tags: {}", error.message)))
        })
        .collect()
}
