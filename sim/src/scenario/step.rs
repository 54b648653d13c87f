//! The timeline: what happens to the fleet, and when.

use core::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::progress::ProgressCondition;
use super::quantity::{Rate, Span};

/// One step of the timeline.
///
/// A `connect` step ends when the last device has been told to connect; a `wait` step when what it waits for has
/// come; the others at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RawStep", into = "RawStep")]
pub struct Step {
    /// For messages, progress display and `--set`.
    pub name: Option<String>,
    /// When the step starts, from the start of the run; when the step before it has ended, if left out.
    pub at: Option<Span>,
    /// What it does.
    pub action: Action,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Devices connect.
    Connect(Connect),
    /// The operator puts a configuration.
    Configure(Configure),
    /// The run waits.
    Wait(Wait),
    /// Something breaks.
    Fault(Fault),
    /// The operator cancels a configuration.
    Cancel(Cancel),
}

/// One step of the timeline. It has exactly one of `connect`, `configure`, `wait`, `fault` and `cancel`.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "StepFields")]
struct RawStep {
    /// For messages, progress display and `--set`.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// When the step starts, from the start of the run; when the step before it has ended, if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Span>,
    /// Devices connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<Connect>,
    /// The operator puts a configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    configure: Option<Configure>,
    /// The run waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<Wait>,
    /// Something breaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<Fault>,
    /// The operator cancels a configuration: devices that have not staged its release yet stop and stay on what
    /// they run.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel: Option<Cancel>,
}

impl TryFrom<RawStep> for Step {
    type Error = String;

    fn try_from(raw: RawStep) -> Result<Self, String> {
        let RawStep { name, at, connect, configure, wait, fault, cancel } = raw;
        let mut actions = [
            connect.map(|x| ("connect", Action::Connect(x))),
            configure.map(|x| ("configure", Action::Configure(x))),
            wait.map(|x| ("wait", Action::Wait(x))),
            fault.map(|x| ("fault", Action::Fault(x))),
            cancel.map(|x| ("cancel", Action::Cancel(x))),
        ]
        .into_iter()
        .flatten();
        let Some((first, action)) = actions.next() else {
            return Err("the step does nothing: give it one of `connect`, `configure`, `wait`, `fault` or \
                        `cancel`"
                .to_owned());
        };
        if let Some((second, _)) = actions.next() {
            return Err(format!("the step does two things, `{first}` and `{second}`: make it two steps"));
        }
        Ok(Self { name, at, action })
    }
}

impl From<Step> for RawStep {
    fn from(step: Step) -> Self {
        let mut raw = Self { name: step.name, at: step.at, ..Self::default() };
        match step.action {
            Action::Connect(x) => raw.connect = Some(x),
            Action::Configure(x) => raw.configure = Some(x),
            Action::Wait(x) => raw.wait = Some(x),
            Action::Fault(x) => raw.fault = Some(x),
            Action::Cancel(x) => raw.cancel = Some(x),
        }
        raw
    }
}

/// Devices connect: evenly over a time, evenly at a rate, or all at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RawConnect", into = "RawConnect")]
pub struct Connect {
    /// When each device starts.
    pub arrival: Arrival,
    /// Only this group's devices; the whole fleet if left out.
    pub group: Option<String>,
}

/// How devices arrive. Which device comes when is drawn from the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Evenly, the last one this long after the first.
    Over(Span),
    /// Evenly, so many at a time.
    At(Rate),
    /// All at the same instant.
    Storm,
}

impl Arrival {
    /// When the `rank`-th of `count` devices arrives, after the start of the step.
    #[must_use]
    pub fn offset(self, rank: u64, count: u64) -> Duration {
        match self {
            Self::Storm => Duration::ZERO,
            Self::At(rate) => rate.nth(rank),
            Self::Over(span) => {
                let gaps = u128::from(count.saturating_sub(1).max(1));
                let micros = u128::from(span.as_micros()) * u128::from(rank) / gaps;
                Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
            }
        }
    }
}

/// Devices connect. It has exactly one of `over`, `rate` and `storm`.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "ConnectFields")]
struct RawConnect {
    /// Evenly over this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    over: Option<Span>,
    /// Evenly at this rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<Rate>,
    /// All at the same instant.
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    storm: bool,
    /// Only this group's devices; the whole fleet if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
}

impl TryFrom<RawConnect> for Connect {
    type Error = &'static str;

    fn try_from(raw: RawConnect) -> Result<Self, Self::Error> {
        let arrival = match (raw.over, raw.rate, raw.storm) {
            (Some(span), None, false) => Arrival::Over(span),
            (None, Some(rate), false) => Arrival::At(rate),
            (None, None, true) => Arrival::Storm,
            _ => {
                return Err(
                    "say how devices arrive with exactly one of over = \"10s\", rate = \"1000/s\" or \
                            storm = true",
                );
            }
        };
        Ok(Self { arrival, group: raw.group })
    }
}

impl From<Connect> for RawConnect {
    fn from(connect: Connect) -> Self {
        let mut raw = Self { group: connect.group, ..Self::default() };
        match connect.arrival {
            Arrival::Over(span) => raw.over = Some(span),
            Arrival::At(rate) => raw.rate = Some(rate),
            Arrival::Storm => raw.storm = true,
        }
        raw
    }
}

/// The operator puts a configuration that gives a release to the devices of a target condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Configure {
    /// The configuration's id, for `cancel` steps. A second configuration of the same id takes the first one's place.
    pub id: String,
    /// Which devices it is for: a target condition over `tags` and `properties.reported`, or `*` for all.
    #[serde(default = "all_devices")]
    pub target: String,
    /// The id of the release that they get.
    pub release: String,
    /// Where several configurations are for one device, the highest priority wins, and of equal ones the newest.
    #[serde(default = "usual_priority")]
    pub priority: u32,
    /// Permit devices to go to a release whose sequence number does not rise.
    #[serde(default)]
    pub downgrade: bool,
}

fn all_devices() -> String {
    "*".to_owned()
}

const fn usual_priority() -> u32 {
    10
}

/// The run waits: for the fleet to get somewhere, or for a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RawWait", into = "RawWait")]
pub struct Wait {
    /// What for.
    pub what: WaitFor,
    /// While it waits, and this becomes true, the rollout is aborted: every configuration of the timeline is
    /// cancelled, the steps that are left are skipped, and the run ends when the devices under way have reported,
    /// after `harness.settle` at the latest.
    pub abort_if: Option<ProgressCondition>,
}

/// What a wait step waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum WaitFor {
    /// This long.
    Time(Span),
    /// For the fleet to get somewhere.
    Progress {
        /// Where to.
        until: ProgressCondition,
        /// At most this long; as long as the run may take if left out.
        timeout: Option<Span>,
        /// What happens then.
        on_timeout: OnTimeout,
    },
}

/// What follows a wait that timed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The run ends, and the steps that are left are skipped.
    #[default]
    Stop,
    /// The next step starts.
    Continue,
}

/// The run waits. It has exactly one of `until` and `for`.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "WaitFields")]
struct RawWait {
    /// Wait until this is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<ProgressCondition>,
    /// Wait for so long.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    span: Option<Span>,
    /// Wait at most so long; as long as the run may take if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<Span>,
    /// What follows when the time is over: `"stop"` ends the run, `"continue"` goes on with the next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_timeout: Option<OnTimeout>,
    /// When this becomes true meanwhile, the rollout is aborted: every configuration of the timeline is cancelled, the
    /// steps that are left are skipped, and the run ends when the devices under way have reported, after
    /// `harness.settle` at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    abort_if: Option<ProgressCondition>,
}

impl TryFrom<RawWait> for Wait {
    type Error = &'static str;

    fn try_from(raw: RawWait) -> Result<Self, Self::Error> {
        let RawWait { until, span, timeout, on_timeout, abort_if } = raw;
        let what = match (until, span, timeout, on_timeout) {
            (Some(until), None, timeout, on_timeout) => {
                WaitFor::Progress { until, timeout, on_timeout: on_timeout.unwrap_or_default() }
            }
            (None, Some(span), None, None) => WaitFor::Time(span),
            (None, Some(_), ..) => {
                return Err("`timeout` and `on_timeout` go with `until`; a wait `for` a time always ends");
            }
            _ => {
                return Err(
                    "say what to wait for with exactly one of until = \"converged >= 99%\" or for = \
                            \"10s\"",
                );
            }
        };
        Ok(Self { what, abort_if })
    }
}

impl From<Wait> for RawWait {
    fn from(wait: Wait) -> Self {
        let raw = Self { abort_if: wait.abort_if, ..Self::default() };
        match wait.what {
            WaitFor::Time(span) => Self { span: Some(span), ..raw },
            WaitFor::Progress { until, timeout, on_timeout } => {
                Self { until: Some(until), timeout, on_timeout: Some(on_timeout), ..raw }
            }
        }
    }
}

/// The operator cancels a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// The id of a configuration that a step before this one put.
    pub configuration: String,
}
