//! Jobs as the store keeps them.

use fleetwave_hub_core::{HubError, Iso8601, MethodAnswer};
use fleetwave_protocol::WallTime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::job::{Job, Outcome, Status, Target};
use super::request::{JobRequest, Work};

/// A job's row.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    request: Value,
    status: String,
    created: u64,
    started: u64,
    ended: Option<u64>,
    failure: Option<String>,
    targets: Vec<KeptTarget>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptTarget {
    id: String,
    started: Option<u64>,
    updated: u64,
    outcome: Option<KeptOutcome>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptOutcome {
    Written,
    Answered { status: i32, payload: String },
    Refused { code: u32, message: String },
    Dropped(String),
}

const fn millis(time: WallTime) -> u64 {
    time.as_unix_millis()
}

impl Kept {
    pub(super) fn of(job: &Job) -> Self {
        let request = &job.request;
        let given = match request.work {
            Work::Update { .. } => "updateTwin",
            Work::Method(_) => "cloudToDeviceMethod",
        };
        let mut body = json!({
            "type": request.kind(),
            "queryCondition": request.condition,
            "maxExecutionTimeInSeconds": request.max_execution.as_secs(),
        });
        body[given] = request.given.clone();
        if let Some(start) = request.start {
            body["startTime"] = json!(Iso8601(start).to_string());
        }
        let target = |(id, target): (&String, &Target)| KeptTarget {
            id: id.clone(),
            started: target.started.map(millis),
            updated: millis(target.updated),
            outcome: target.outcome.as_ref().map(KeptOutcome::of),
        };
        Self {
            request: body,
            status: job.status.name().to_owned(),
            created: millis(job.created),
            started: millis(job.started),
            ended: job.ended.map(millis),
            failure: job.failure.clone(),
            targets: job.targets.iter().map(target).collect(),
        }
    }

    /// The job again. One that was running when the hub ended has failed.
    pub(super) fn restore(self, id: &str, now: WallTime) -> Result<Job, HubError> {
        let request = JobRequest::read(id, &self.request)?;
        let at = WallTime::from_unix_millis;
        let mut job = Job::new(id, request, at(self.created));
        job.status = Status::of_name(&self.status).unwrap_or(Status::Failed);
        job.started = at(self.started);
        job.ended = self.ended.map(at);
        job.failure = self.failure;
        job.targets = self
            .targets
            .into_iter()
            .map(|target| {
                let outcome = target.outcome.map(KeptOutcome::restore);
                (target.id, Target { started: target.started.map(at), updated: at(target.updated), outcome })
            })
            .collect();
        if job.status == Status::Running {
            job.end(Status::Failed, Some("the hub ended while the job ran".to_owned()), now);
        }
        Ok(job)
    }
}

impl KeptOutcome {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Written => Self::Written,
            Outcome::Answered(answer) => Self::Answered {
                status: answer.status,
                payload: String::from_utf8_lossy(&answer.payload).into_owned(),
            },
            Outcome::Refused { code, message } => Self::Refused { code: *code, message: message.clone() },
            Outcome::Dropped(status) => Self::Dropped(status.name().to_owned()),
        }
    }

    fn restore(self) -> Outcome {
        match self {
            Self::Written => Outcome::Written,
            Self::Answered { status, payload } => {
                Outcome::Answered(MethodAnswer { status, payload: payload.into_bytes() })
            }
            Self::Refused { code, message } => Outcome::Refused { code, message },
            Self::Dropped(status) => Outcome::Dropped(Status::of_name(&status).unwrap_or(Status::Failed)),
        }
    }
}
