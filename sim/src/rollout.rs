//! What a scenario's releases and configurations are to agents and hub: signed references, policies, desired
//! properties. Both engines take them from here, so that they roll out the same.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use fleetwave_agent_core::{
    Archive, AtDeadline, Backoff, Caps, Days, FIRMWARE, Locks, Policy, ReleaseId, Releases, TrustRoot,
    Unsigned, Window,
};
use fleetwave_hub_core::{Configuration, ConfigurationSpec, HubError};
use serde_json::{Map, Value};

use crate::scenario::model::{self, Group, Release, Scenario, Signature, StepWindow};
use crate::scenario::step::{Action, Configure};

/// The keys that sign the releases of a run. They protect nothing: they make devices check what they check.
const KEYS: [(&str, [u8; 32]); 2] = [("release-1", [0x51; 32]), ("release-2", [0x52; 32])];

/// How many of them have to sign.
pub(crate) const THRESHOLD: usize = 2;

/// A key that no device trusts.
const FORGER: [u8; 32] = [0x66; 32];

/// The keys that devices trust, as lines of an agent's `[trust.keys]`.
pub(crate) fn trusted_keys() -> String {
    let line = |(id, key): (&str, [u8; 32])| {
        let public = STANDARD.encode(SigningKey::from_bytes(&key).verifying_key().as_bytes());
        format!("{id} = \"{public}\"\n")
    };
    KEYS.map(line).concat()
}

/// A reference that all devices of a run trust, beside those of its scenario.
#[must_use]
pub fn sign_for_all(release: &Unsigned<'_>) -> Map<String, Value> {
    let keys = KEYS.map(|(id, key)| (id, SigningKey::from_bytes(&key)));
    let keys: Vec<(&str, &SigningKey)> = keys.iter().map(|(id, key)| (*id, key)).collect();
    release.sign(&keys)
}

/// The releases of a run: what agents know of them, and what the scenario says of them.
#[derive(Clone, Debug)]
pub struct Catalogue {
    /// What agents know: each release that a configuration gives, checked once.
    pub releases: Releases,
    /// What every device runs at the start.
    pub initial: ReleaseId,
    /// The scenario's release behind each entry of `releases`, by place; none for the initial one.
    specs: Vec<Option<usize>>,
    references: Vec<(String, bool, ReleaseId)>,
}

impl Catalogue {
    /// The releases that the configurations of `scenario` give, with `digest` as each one's payload digest.
    #[must_use]
    pub fn of(scenario: &Scenario, digest: impl Fn(&Release) -> [u8; 32]) -> Self {
        let keys = KEYS.map(|(id, key)| (id.to_owned(), SigningKey::from_bytes(&key).verifying_key()));
        let releases = Releases::new(TrustRoot::new(keys.to_vec(), THRESHOLD));
        let mut releases = releases.fitting(FIRMWARE, None);
        let initial = releases.preinstalled(&scenario.fleet.release.id, scenario.fleet.release.seq);
        let mut catalogue = Self { releases, initial, specs: vec![None], references: Vec::new() };
        for step in &scenario.steps {
            let Action::Configure(configure) = &step.action else { continue };
            let known = |(id, downgrade, _): &(String, bool, _)| {
                *id == configure.release && *downgrade == configure.downgrade
            };
            let spec = scenario.releases.iter().position(|release| release.id == configure.release);
            if let (Some(spec), false) = (spec, catalogue.references.iter().any(known)) {
                let release = &scenario.releases[spec];
                let reference = reference(release, &digest(release), configure.downgrade);
                let id = catalogue.releases.intern(&reference);
                catalogue.specs.resize(id.index() + 1, None);
                catalogue.specs[id.index()] = Some(spec);
                catalogue.references.push((configure.release.clone(), configure.downgrade, id));
            }
        }
        catalogue
    }

    /// What the scenario says of a release; `None` for the one from before the run.
    #[must_use]
    pub fn spec<'s>(&self, scenario: &'s Scenario, release: ReleaseId) -> Option<&'s Release> {
        self.place(release).map(|index| &scenario.releases[index])
    }

    /// The place in the scenario of the release behind one that agents know; `None` for the one from before the run.
    #[must_use]
    pub fn place(&self, release: ReleaseId) -> Option<usize> {
        self.specs.get(release.index()).copied().flatten()
    }

    /// The release that a configuration gives.
    ///
    /// # Panics
    /// If the scenario has no such release; a loaded scenario has been checked for that.
    #[must_use]
    pub fn given(&self, configure: &Configure) -> ReleaseId {
        let found = self
            .references
            .iter()
            .find(|(id, downgrade, _)| *id == configure.release && *downgrade == configure.downgrade);
        found.expect("a checked scenario names only releases that it has").2
    }

    /// The configuration that the hub gets.
    ///
    /// # Errors
    /// What the hub says of the id or the target condition.
    pub fn configuration(&self, configure: &Configure) -> Result<Arc<Configuration>, HubError> {
        let content = self.content(configure);
        let spec = ConfigurationSpec {
            id: &configure.id,
            priority: configure.priority,
            target_condition: &configure.target,
            device_content: &content,
            ..ConfigurationSpec::default()
        };
        Configuration::new(&spec).map(Arc::new)
    }

    /// The configuration's `deviceContent`, as JSON text.
    #[must_use]
    pub fn content(&self, configure: &Configure) -> String {
        let reference = self.releases[self.given(configure)].reference().clone();
        Value::from(Map::from_iter([("properties.desired.firmware".to_owned(), Value::Object(reference))]))
            .to_string()
    }
}

fn reference(release: &Release, digest: &[u8; 32], downgrade: bool) -> Map<String, Value> {
    let keys = KEYS.map(|(id, key)| {
        let key = if release.signature == Signature::Bad { FORGER } else { key };
        (id, SigningKey::from_bytes(&key))
    });
    let keys: Vec<(&str, &SigningKey)> = keys.iter().map(|(id, key)| (*id, key)).collect();
    let delta = release.delta.map(|delta| Archive {
        size: delta.archive.bytes(),
        header_size: delta.header.bytes(),
        header_digest: *digest,
    });
    let unsigned = Unsigned::new(&release.id, release.seq, release.size.bytes(), *digest);
    Unsigned { downgrade, delta, ..unsigned }.sign(&keys)
}

fn window(window: &StepWindow) -> Window {
    let names = window.days.iter().map(|day| Days::NAMES[*day as usize]);
    Window {
        days: names.filter_map(|name| Days::NONE.and(name)).fold(Days::NONE, |days, day| days | day),
        grace: window.grace.duration(),
        ..Window::daily(Duration::from_millis(window.opens.millis()), window.lasts.duration())
    }
}

/// The policy of a group's agents.
#[must_use]
pub fn policy(agent: &model::Agent, group: &Group) -> Policy {
    let backoff =
        |backoff: model::Backoff| Backoff { first: backoff.first.duration(), max: backoff.max.duration() };
    let both = group
        .window
        .map(|window| Window::daily(Duration::from_millis(window.opens.millis()), window.lasts.duration()));
    // What was begun in the window is fetched to its end, and waits for the next one with its reboot.
    let to_the_end = both.map(|window| Window { grace: Duration::MAX, ..window });
    let locks = agent.locks.map(|locks| Locks {
        retry: locks.retry.duration(),
        deadline: locks.deadline.duration(),
        at_deadline: match locks.at_deadline {
            model::AtDeadline::Proceed => AtDeadline::Proceed,
            model::AtDeadline::GiveUp => AtDeadline::GiveUp,
        },
    });
    Policy {
        splay: agent.splay.duration(),
        request_timeout: agent.request_timeout.duration(),
        grant_timeout: agent.grant_timeout.duration(),
        retry: backoff(agent.backoff),
        reconnect: backoff(agent.reconnect),
        attempts: agent.attempts,
        verify_attempts: agent.verify_attempts,
        boot_attempts: agent.boot_attempts,
        start_attempts: agent.start_attempts,
        probation_timeout: agent.probation_timeout.duration(),
        probation_needs_hub: agent.probation_needs_hub,
        download_window: group.download_window.as_ref().map(window).or(to_the_end),
        install_window: group.install_window.as_ref().map(window).or(both),
        utc_offset: group.utc_offset_minutes * 60,
        locks,
        caps: agent.update_cap.map(|cap| Caps {
            per_update: cap.bytes(),
            per_window: u64::MAX,
            window: Duration::MAX,
        }),
        report_plan: agent.report_plan,
        ..Policy::default()
    }
}
