//! What is on disk, told to people and to programs. Reads only, also while an agent runs.

use std::fmt::Write as _;

use fleetwave_agent_core::{Durable, Pending, Phase, ReleaseId, Releases};
use serde_json::{Map, Value, json};

use crate::StateError;
use crate::config::{Config, TargetConfig};
use crate::fetch::{self, LedgerRead};
use crate::install::Standing;
use crate::journal::{DAMAGED, Replay};
use crate::local::Wish;
use crate::unit;
use crate::units::Bytes;

/// Some lines about each target and its last update.
///
/// # Errors
/// If the state directory cannot be read.
pub fn status(config: &Config) -> Result<String, StateError> {
    let costs = costs(config)?;
    let mut out = String::new();
    let mut line = |label: &str, text: &str| {
        writeln!(out, "{}", format!("{label:<11}{text}").trim_end()).expect("a String never fails to grow");
    };
    for target in &config.targets {
        if config.targets.len() > 1 {
            line(target.target.as_str(), "");
        }
        if let Some(problem) = unit::kept_problem(&target.target.dir(&config.state)) {
            let text = |member: &str| problem[member].as_str().unwrap_or_default().to_owned();
            line("broken", &format!("{}: {}", text("code"), text("detail")));
        }
        match Found::read(config, target)? {
            None => {
                let dir = target.target.dir(&config.state);
                line("committed", &format!("not known: no agent has run in {} yet", dir.display()));
            }
            Some(found) => found.describe(costs.as_ref(), &mut line),
        }
        if let Some(wish) = Wish::read(&target.target.dir(&config.state)) {
            line("asked here", &wish.source.to_string_lossy());
        }
    }
    if let Some(costs) = costs {
        line("downloads", &costs.to_string());
    }
    Ok(out)
}

/// The same for programs: what the direct method `status` answers, as far as it can be known without a running agent.
///
/// # Errors
/// If the state directory cannot be read.
pub fn status_json(config: &Config) -> Result<Value, StateError> {
    let costs = costs(config)?;
    let mut targets = Map::new();
    for target in &config.targets {
        let found = Found::read(config, target)?;
        let mut told = found.map_or(Value::Null, |found| found.told(costs.as_ref()));
        if let Some(problem) = unit::kept_problem(&target.target.dir(&config.state)) {
            told["problem"] = problem;
        }
        if let Some(wish) = Wish::read(&target.target.dir(&config.state)) {
            told["asked_here"] = wish.source.to_string_lossy().into();
        }
        targets.insert(target.target.to_string(), told);
    }
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "targets": targets,
        "downloads": costs.map(|costs| costs.told()),
    }))
}

fn costs(config: &Config) -> Result<Option<LedgerRead>, StateError> {
    fetch::costs(&config.state, &config.ledger).map_err(StateError::io(&config.state))
}

fn times(count: u8) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// What lies in a target's directory.
struct Found {
    releases: Releases,
    running: ReleaseId,
    durable: Durable,
    /// Of the payload of the update in flight.
    stored: u64,
    torn: u64,
    damaged: bool,
    /// Why the last update failed.
    cause: Option<String>,
}

impl Found {
    /// `None` if no agent has run there yet.
    fn read(config: &Config, target: &TargetConfig) -> Result<Option<Self>, StateError> {
        let dir = target.target.dir(&config.state);
        let Some(standing) = Standing::read(&dir).map_err(StateError::io(&dir))? else { return Ok(None) };
        let mut releases = Releases::new(config.trust.0.clone());
        let replay = Replay::read(&dir, &mut releases).map_err(StateError::io(&dir))?;
        let (committed, running) = (releases.intern(&standing.committed), releases.intern(&standing.running));
        let mut durable = Durable::new(committed);
        replay.records.iter().for_each(|record| durable.apply(*record));
        // What the installer said is newer than the journal's last record.
        durable.committed = committed;
        let stored = durable.pending.map_or(0, |pending| fetch::recorded(&dir, &releases[pending.release]));
        let Replay { torn, damaged, .. } = replay;
        let damaged = damaged || dir.join(DAMAGED).exists();
        let cause = durable.last.and_then(|(release, code)| unit::kept_cause(&dir, &releases[release], code));
        Ok(Some(Self { releases, running, durable, stored, torn, damaged, cause }))
    }

    fn name(&self, release: ReleaseId) -> String {
        format!("{} (seq {})", self.releases[release].id, self.releases[release].sequence)
    }

    fn describe(&self, costs: Option<&LedgerRead>, line: &mut impl FnMut(&str, &str)) {
        let Durable { committed, pending, last, .. } = self.durable;
        line("committed", &self.name(committed));
        if self.running != committed && pending.is_some() {
            line("on trial", &self.name(self.running));
        }
        let in_flight = match pending {
            None => "nothing".to_owned(),
            Some(Pending { release, phase }) => {
                let how_far = match phase {
                    Phase::Started { starts } => {
                        let (stored, size) = (self.stored, self.releases[release].size);
                        let spent = costs.map(|costs| costs.spent(&self.releases[release]));
                        let spent = spent.map(|spent| format!(", which took {}", Bytes(spent.bytes)));
                        let spent = spent.unwrap_or_default();
                        format!("started {}, {stored} of {size} bytes{spent}", times(starts))
                    }
                    Phase::Staged { boots } => format!("staged, booted {}", times(boots)),
                    Phase::Reverting(code) => format!("failed its trial: {}", code.name()),
                };
                format!("{}: {how_far}", self.name(release))
            }
        };
        line("in flight", &in_flight);
        let last = last.map(|(release, code)| format!("{}: {}", self.name(release), code.name()));
        line("last", last.as_deref().unwrap_or("no update yet"));
        if let Some(cause) = &self.cause {
            line("because", cause);
        }
        if self.damaged {
            line("journal", "damaged: records that had been durable were lost");
        } else if self.torn > 0 {
            line(
                "journal",
                &format!("{} bytes at its end are torn; the next start cuts them off", self.torn),
            );
        }
    }

    fn told(&self, costs: Option<&LedgerRead>) -> Value {
        let name = |release: ReleaseId| {
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence})
        };
        let updating = self.durable.pending.map(|Pending { release, phase }| {
            let mut updating = name(release);
            updating["bytes"] = self.stored.into();
            updating["size"] = self.releases[release].size.into();
            updating["spent"] = costs.map(|costs| unit::cost(&costs.spent(&self.releases[release]))).into();
            updating["phase"] = match phase {
                Phase::Started { .. } => "started",
                Phase::Staged { .. } => "staged",
                Phase::Reverting(_) => "reverting",
            }
            .into();
            updating
        });
        let last = self.durable.last.map(|(release, code)| {
            let mut last = name(release);
            last["code"] = code.name().into();
            if let Some(cause) = &self.cause {
                last["cause"] = cause.as_str().into();
            }
            last
        });
        json!({
            "running": name(self.running),
            "committed": name(self.durable.committed),
            "updating": updating,
            "last": last,
            "journal_damaged": self.damaged,
        })
    }
}
