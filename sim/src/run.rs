//! One run: what is to be run, the engines that can, and the verdict on what came out.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fleetwave_report::record::{self, Engine, Expectation, RunRecord, ScenarioRef, Transport, Verdict};

use crate::measure::EngineOutcome;
use crate::progress::Progress;
use crate::remote::Remote;
use crate::scenario::expect;
use crate::scenario::fleet::{Fleet, PlannedGroup};
use crate::scenario::model::{Driver, Scenario};
use crate::timeline::End;

/// Everything that decides how a run goes.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// What happens, with every change of the command line applied, the seed among them.
    pub scenario: Scenario,
    /// SHA-256 of the scenario's text and changes, in hexadecimal.
    pub sha256: String,
    /// The changes of the command line, `KEY=VALUE` each.
    pub overrides: Vec<String>,
    /// Which engine runs it.
    pub engine: Engine,
    /// What the devices connect to.
    pub target: Target,
    /// What carries their messages.
    pub transport: Transport,
    /// Threads of the virtual engine; as many as there are cores if left out.
    pub threads: Option<NonZeroUsize>,
    /// The command that runs the same again.
    pub replay: String,
}

impl RunPlan {
    /// How many devices a real agent runs.
    #[must_use]
    pub fn real_agents(&self) -> u64 {
        if self.scenario.fleet.groups.iter().all(|group| group.driver == Driver::Simulated) {
            return 0;
        }
        let fleet = Fleet::plan(&self.scenario);
        let real = fleet.groups().iter().filter(|group| group.spec.driver == Driver::Agent);
        real.map(PlannedGroup::devices).sum()
    }

    /// Whether the devices can be run in this way.
    ///
    /// # Errors
    /// If some are to have a real agent where there can be none.
    pub fn check_drivers(&self) -> Result<(), EngineError> {
        let Some(group) = self.scenario.fleet.groups.iter().find(|group| group.driver == Driver::Agent)
        else {
            return Ok(());
        };
        let (problem, fix) = match (self.engine, &self.target, self.transport) {
            (Engine::Virtual, ..) => ("the virtual engine has no", "add --engine live"),
            (_, _, Transport::Memory) => ("--transport memory reaches no", "use --transport tcp"),
            (Engine::Live, Target::Hub, _) => return Ok(()),
            (Engine::Live, ..) => ("only the embedded hub is one for", "leave --target out"),
        };
        Err(EngineError::Unfit {
            problem: format!("{problem} real agents, and group `{}` has driver = \"agent\"", group.name),
            fix: format!("{fix}, or --set fleet.group.{}.driver=simulated", group.name),
        })
    }
}

/// What devices connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The embedded hub.
    Hub,
    /// An embedded rumqttd, with the hub core attached to it.
    Rumqttd,
    /// An MQTT broker.
    Broker {
        /// Its name or address; an IPv6 address without brackets.
        host: String,
        /// Its port.
        port: u16,
    },
    /// A hub that is not ours.
    Remote(Arc<Remote>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub => f.write_str("hub"),
            Self::Rumqttd => f.write_str("rumqttd"),
            Self::Remote(remote) => remote.fmt(f),
            Self::Broker { host, port } if host.contains(':') => write!(f, "mqtt://[{host}]:{port}"),
            Self::Broker { host, port } => write!(f, "mqtt://{host}:{port}"),
        }
    }
}

/// The text names no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `hub`, `rumqttd` or an address such as `mqtt://127.0.0.1:1883`{hint}")]
pub struct TargetError {
    hint: &'static str,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let wrong = |hint| TargetError { hint };
        match text {
            "hub" => return Ok(Self::Hub),
            "rumqttd" => return Ok(Self::Rumqttd),
            _ => {}
        }
        let Some((scheme, address)) = text.split_once("://") else { return Err(wrong("")) };
        match scheme {
            "mqtt" | "tcp" => {}
            "mqtts" | "ssl" | "ws" | "wss" => return Err(wrong("; only plain TCP is supported")),
            _ => return Err(wrong("")),
        }
        let address = address.strip_suffix('/').unwrap_or(address);
        let (host, port) = match address.strip_prefix('[') {
            Some(v6) => v6.split_once(']').ok_or(wrong("; the `]` is missing"))?,
            None => address.split_at(address.find(':').unwrap_or(address.len())),
        };
        if host.is_empty() || host.contains(['/', '@', '?', '#']) {
            return Err(wrong("; the part between `://` and the port has to be a host"));
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => 1883,
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or(wrong("; the port has to be a number from 1 to 65535"))?,
            None => return Err(wrong("")),
        };
        Ok(Self::Broker { host: host.to_owned(), port })
    }
}

/// Runs a plan to its end, or until `stop` is set; then the outcome is what there is so far, without an
/// [`end`](EngineOutcome::end).
pub type EngineFn = fn(&RunPlan, &Progress, &AtomicBool) -> Result<EngineOutcome, EngineError>;

/// Why an engine could not run a plan.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// This build does not have the engine.
    #[error("this build of fleetwave has no {0} engine")]
    Unavailable(&'static str),
    /// The plan asks for what the engine or this machine cannot do.
    #[error("{problem}; {fix}")]
    Unfit {
        /// What it cannot do.
        problem: String,
        /// What to change.
        fix: String,
    },
    /// It was stopped before there was anything to measure.
    #[error("interrupted before the run began")]
    Interrupted,
    /// Something that the run needs could not be set up, or broke.
    #[error("{what}")]
    Failed {
        /// What was tried.
        what: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl EngineError {
    /// The process's exit code that belongs to it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Unfit { .. } => 2,
            Self::Interrupted => 130,
            Self::Unavailable(_) | Self::Failed { .. } => 1,
        }
    }
}

/// The engine's entry.
#[must_use]
pub fn engine(engine: Engine) -> EngineFn {
    match engine {
        Engine::Virtual => crate::virtual_engine::run,
        Engine::Live => crate::live::run,
    }
}

/// Judges an outcome: the run's record, with its verdict.
#[must_use]
pub fn judge(plan: &RunPlan, outcome: &EngineOutcome) -> RunRecord {
    let meter = &outcome.meter;
    let traffic = meter.traffic_totals();
    let concurrency = plan.scenario.blob.concurrency;
    let mut record = RunRecord {
        schema_version: record::SCHEMA_VERSION,
        fleetwave_version: env!("CARGO_PKG_VERSION").to_owned(),
        scenario: ScenarioRef {
            name: plan.scenario.name.clone(),
            sha256: plan.sha256.clone(),
            overrides: plan.overrides.clone(),
        },
        engine: plan.engine,
        target: plan.target.to_string(),
        transport: plan.transport,
        seed: plan.scenario.seed,
        event_hash: outcome.event_hash.map(|hash| format!("{hash:016x}")),
        verdict: Verdict::Passed,
        notes: Vec::new(),
        exit_code: 0,
        replay: plan.replay.clone(),
        duration_seconds: outcome.duration.as_secs_f64(),
        devices: outcome.devices(),
        fan_out_latency: meter.fan_out_latency(),
        twin_convergence: meter.twin_convergence(),
        connect_latency: meter.connect_latency(),
        grant_latency: meter.grant_latency(),
        fleet_convergence: meter.fleet_convergence(),
        blob: meter.blob((concurrency > 0).then_some(u64::from(concurrency))),
        rates: outcome.rates(),
        messages_per_device: outcome.per_device(traffic.messages_up + traffic.messages_down),
        bytes_per_device: outcome.per_device(traffic.bytes_up + traffic.bytes_down),
        traffic,
        failures: meter.failures(),
        expectations: Vec::new(),
        harness: outcome.harness(plan.scenario.harness.max_lag.duration()),
    };
    record.expectations = plan.scenario.expect.0.iter().map(|want| evaluate(want, &record)).collect();
    (record.verdict, record.notes) = verdict(&record, outcome);
    record.exit_code = record.verdict.exit_code();
    record
}

fn evaluate(want: &expect::Expectation, record: &RunRecord) -> Expectation {
    let value = want.metric.value(record);
    Expectation {
        metric: want.metric.name.to_owned(),
        want: want.want.clone(),
        got: value.and_then(fleetwave_report::metric::MetricValue::finite),
        // What was not measured meets no expectation: a run in which nothing happened has not passed.
        passed: value.is_some_and(|value| want.accepts(value)),
        note: value.is_none().then(|| "not measured: nothing to measure it on".to_owned()),
    }
}

/// The verdict, and what the reader has to know about it. An interruption explains everything else, and a harness
/// that was in the way makes everything else meaningless.
fn verdict(record: &RunRecord, outcome: &EngineOutcome) -> (Verdict, Vec<String>) {
    let mut notes = Vec::new();
    let interrupted = outcome.end.is_none();
    if interrupted {
        notes.push("interrupted: the figures are those until then".to_owned());
    }

    let before = notes.len();
    let harness = &record.harness;
    if harness.lag_max > harness.lag_limit {
        notes.push(format!(
            "invalid: the harness's own timers ran up to {:.0} ms late, more than harness.max_lag of {:.0} ms",
            harness.lag_max * 1e3,
            harness.lag_limit * 1e3,
        ));
    }
    notes.extend(outcome.disturbances.iter().map(|disturbance| format!("invalid: {disturbance}")));
    let invalid = notes.len() > before;

    let before = notes.len();
    notes.extend(outcome.violations.iter().map(|violation| format!("failed: invariant broken: {violation}")));
    match &outcome.end {
        Some(End::TimedOut { step, condition }) => {
            notes.push(format!("failed: step \"{step}\" timed out before {condition}"));
        }
        Some(End::OutOfTime { step }) => notes.push(format!(
            "failed: harness.max_duration was over at step \"{step}\"; the steps after it were skipped"
        )),
        Some(End::Completed | End::Aborted { .. }) | None => {}
    }
    let missed = record.expectations.iter().filter(|expectation| !expectation.passed).count();
    if missed > 0 {
        notes.push(format!("failed: {missed} of {} expectations missed", record.expectations.len()));
    }
    let failed = notes.len() > before;

    if let Some(End::Aborted { step, condition }) = &outcome.end {
        notes.push(format!("the rollout was aborted at step \"{step}\": {condition}"));
    }
    notes.extend(outcome.notes.iter().cloned());
    let verdict = match (interrupted, invalid, failed) {
        (true, ..) => Verdict::Interrupted,
        (_, true, _) => Verdict::Invalid,
        (_, _, true) => Verdict::Failed,
        _ => Verdict::Passed,
    };
    (verdict, notes)
}

#[cfg(test)]
pub(crate) mod tests;
