//! A job, and what became of each device in it.

use std::collections::BTreeMap;

use fleetwave_hub_core::{HubError, Iso8601, MethodAnswer};
use fleetwave_protocol::WallTime;
use serde_json::{Value, json};

use super::request::{JobRequest, Work};

/// How far a job, or a device in it, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// A job waits for its time, or for other jobs.
    Queued,
    /// A device waits for its turn.
    Scheduled,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl Status {
    const ALL: [Self; 6] =
        [Self::Queued, Self::Scheduled, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// How it ended for a device.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// The twin was written.
    Written,
    /// The device answered the method.
    Answered(MethodAnswer),
    /// It failed, with one of the hub's codes.
    Refused { code: u32, message: String },
    /// The job ended before the device had its turn.
    Dropped(Status),
}

impl From<Box<HubError>> for Outcome {
    fn from(error: Box<HubError>) -> Self {
        Self::Refused { code: error.code.number(), message: error.message.into_owned() }
    }
}

/// One device, or `device/module`, of a job.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) started: Option<WallTime>,
    pub(super) updated: WallTime,
    pub(super) outcome: Option<Outcome>,
}

/// A job.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) request: JobRequest,
    pub(crate) status: Status,
    pub(crate) created: WallTime,
    pub(super) started: WallTime,
    pub(super) ended: Option<WallTime>,
    pub(super) failure: Option<String>,
    pub(super) targets: BTreeMap<String, Target>,
}

impl Job {
    pub(crate) fn new(id: &str, request: JobRequest, now: WallTime) -> Self {
        let start = request.start.unwrap_or(now).max(now);
        let targets = BTreeMap::new();
        Self {
            id: id.to_owned(),
            request,
            status: Status::Queued,
            created: now,
            started: start,
            ended: None,
            failure: None,
            targets,
        }
    }

    /// When it is to begin.
    pub(crate) fn start(&self) -> WallTime {
        self.started
    }

    /// It begins, with these devices; false if it has been cancelled.
    pub(crate) fn begin(&mut self, targets: Vec<String>, now: WallTime) -> bool {
        if self.status.has_ended() {
            return false;
        }
        self.status = Status::Running;
        self.started = now;
        let target = Target { started: None, updated: now, outcome: None };
        self.targets = targets.into_iter().map(|id| (id, target.clone())).collect();
        true
    }

    /// A device has its turn; false if the job has ended meanwhile.
    pub(crate) fn turn(&mut self, id: &str, now: WallTime) -> bool {
        if self.status.has_ended() {
            return false;
        }
        if let Some(target) = self.targets.get_mut(id) {
            (target.started, target.updated) = (Some(now), now);
        }
        true
    }

    /// How it ended for a device. What was decided before stands.
    pub(crate) fn done(&mut self, id: &str, outcome: Outcome, now: WallTime) {
        if let Some(target) = self.targets.get_mut(id).filter(|target| target.outcome.is_none()) {
            (target.updated, target.outcome) = (now, Some(outcome));
        }
    }

    /// The job ends; devices that have not had their turn share its fate.
    pub(crate) fn end(&mut self, status: Status, failure: Option<String>, now: WallTime) {
        if self.status.has_ended() {
            return;
        }
        (self.status, self.failure, self.ended) = (status, failure, Some(now));
        for target in self.targets.values_mut().filter(|target| target.outcome.is_none()) {
            (target.updated, target.outcome) = (now, Some(Outcome::Dropped(status)));
        }
    }

    /// The job as the back end reads it.
    pub(crate) fn write(&self) -> Value {
        let mut job = json!({
            "jobId": self.id,
            "queryCondition": self.request.condition,
            "createdTime": Iso8601(self.created).to_string(),
            "startTime": Iso8601(self.started).to_string(),
            "maxExecutionTimeInSeconds": self.request.max_execution.as_secs(),
            "type": self.request.kind(),
            "status": self.status.name(),
        });
        let given = match self.request.work {
            Work::Update { .. } => "updateTwin",
            Work::Method(_) => "cloudToDeviceMethod",
        };
        job[given] = self.request.given.clone();
        if let Some(ended) = self.ended {
            job["endTime"] = json!(Iso8601(ended).to_string());
        }
        if let Some(failure) = &self.failure {
            job["failureReason"] = json!(failure);
        }
        let count = |is: &dyn Fn(&Target) -> bool| self.targets.values().filter(|target| is(target)).count();
        let good = |target: &Target| matches!(target.outcome, Some(Outcome::Written | Outcome::Answered(_)));
        let open = |target: &Target| target.outcome.is_none();
        job["deviceJobStatistics"] = json!({
            "deviceCount": self.targets.len(),
            "failedCount": count(&|target| !open(target) && !good(target)),
            "succeededCount": count(&good),
            "runningCount": count(&|target| open(target) && target.started.is_some()),
            "pendingCount": count(&|target| open(target) && target.started.is_none()),
        });
        job
    }

    /// A row of `devices.jobs` for each device.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Value> {
        self.targets.iter().map(|(id, target)| self.row(id, target))
    }

    fn row(&self, id: &str, target: &Target) -> Value {
        let (device, module) =
            id.split_once('/').map_or((id, None), |(device, module)| (device, Some(module)));
        let status = match &target.outcome {
            None if target.started.is_some() => Status::Running,
            None => Status::Scheduled,
            Some(Outcome::Written | Outcome::Answered(_)) => Status::Completed,
            Some(Outcome::Refused { .. }) => Status::Failed,
            Some(Outcome::Dropped(status)) => *status,
        };
        let mut row = json!({
            "jobId": self.id,
            "jobType": self.request.kind(),
            "deviceId": device,
            "status": status.name(),
            "createdDateTimeUtc": Iso8601(self.created).to_string(),
            "lastUpdatedDateTimeUtc": Iso8601(target.updated).to_string(),
            "startTimeUtc": Iso8601(target.started.unwrap_or(self.started)).to_string(),
            // One SDK reads a member of it without looking.
            "outcome": { "deviceMethodResponse": null },
        });
        if let Some(module) = module {
            row["moduleId"] = json!(module);
        }
        if target.outcome.is_some() {
            row["endTimeUtc"] = json!(Iso8601(target.updated).to_string());
        }
        match &target.outcome {
            Some(Outcome::Answered(answer)) => {
                let payload = serde_json::from_slice(&answer.payload).unwrap_or(Value::Null);
                row["outcome"] = json!({
                    "deviceMethodResponse": { "status": answer.status, "payload": payload },
                });
            }
            Some(Outcome::Refused { code, message }) => {
                row["error"] = json!({ "code": code.to_string(), "description": message });
            }
            _ => {}
        }
        row
    }
}
