//! Scheduled jobs: twin updates and direct methods for all devices that a condition selects.
//!
//! A [`Job`] is a record that knows no clock; [`Jobs::spawn`] has it walk through its devices on the hub's tokio thread. Source:
//! "Schedule jobs on multiple devices" and "Query jobs" in MicrosoftDocs/azure-docs, `articles/iot-hub`.

mod job;
mod kept;
mod request;
mod run;

pub(crate) use job::{Job, Outcome, Status};
pub(crate) use request::JobRequest;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use fleetwave_hub_core::query::{JsonRow, Query};
use fleetwave_hub_core::throttle::Tier;
use fleetwave_hub_core::{ErrorCode, HubError};
use fleetwave_protocol::WallTime;
use kept::Kept;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::HubControl;
use crate::store::{Store, StoreError, Table, TableError};

/// Jobs that are kept; the oldest that have ended make room.
const MOST: usize = 1000;

/// A hub's jobs.
pub(crate) struct Jobs {
    jobs: Mutex<BTreeMap<String, Job>>,
    /// Running at once, as many as the tier lets.
    places: Arc<Semaphore>,
    table: Table<Kept>,
    /// The tasks that walk through them.
    tasks: Mutex<Vec<AbortHandle>>,
}

fn error(code: ErrorCode, message: String) -> HubError {
    HubError { code, message: message.into() }
}

impl Jobs {
    /// The jobs that the store has; those that have not begun are [waiting](Jobs::waiting).
    pub(crate) fn load(tier: Tier, store: &Store, now: WallTime) -> Result<Self, TableError> {
        let places = match tier {
            Tier::S1 | Tier::S2 => 1,
            Tier::S3 => 10,
            Tier::None => 100,
        };
        let table: Table<Kept> = store.table("jobs");
        let mut jobs = BTreeMap::new();
        for (id, kept) in table.load_all()? {
            match kept.restore(&id, now) {
                Ok(job) => drop(jobs.insert(id, job)),
                Err(error) => tracing::warn!(job = id, %error, "a job that was kept is no job any more"),
            }
        }
        Ok(Self {
            jobs: Mutex::new(jobs),
            places: Arc::new(Semaphore::new(places)),
            table,
            tasks: Mutex::default(),
        })
    }

    /// Runs a job beside everything else.
    pub(crate) fn spawn(self: &Arc<Self>, control: HubControl, id: String) {
        let task = tokio::spawn(run::run(self.clone(), control, id));
        let mut tasks = self.tasks.lock().expect("nothing panics under this lock");
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
    }

    /// Lets go of all jobs where they are: the hub ends.
    pub(crate) fn stop(&self) {
        for task in self.tasks.lock().expect("nothing panics under this lock").drain(..) {
            task.abort();
        }
    }

    /// The jobs that are to be run.
    pub(crate) fn waiting(&self) -> Vec<String> {
        self.lock().values().filter(|job| !job.status.has_ended()).map(|job| job.id.clone()).collect()
    }

    /// Returns once what is known of a job is durable.
    pub(crate) async fn keep(&self, id: &str) -> Result<(), StoreError> {
        let pending = {
            let jobs = self.lock();
            let kept = jobs.get(id).map(Kept::of);
            self.table.begin([(id, kept.as_ref())])
        };
        match pending {
            Some(pending) => pending.wait().await,
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Job>> {
        self.jobs.lock().expect("nothing panics under this lock")
    }

    /// Takes a job up; the caller runs it.
    pub(crate) fn add(&self, id: &str, request: JobRequest, now: WallTime) -> Result<Value, HubError> {
        let mut jobs = self.lock();
        if jobs.contains_key(id) {
            return Err(error(ErrorCode::JobAlreadyExists, format!("there is a job {id:?}")));
        }
        if jobs.len() >= MOST {
            let oldest = jobs.values().filter(|job| job.status.has_ended()).min_by_key(|job| job.created);
            let Some(oldest) = oldest.map(|job| job.id.clone()) else {
                return Err(error(ErrorCode::JobQuotaExceeded, format!("{MOST} jobs wait or run")));
            };
            jobs.remove(&oldest);
        }
        let job = Job::new(id, request, now);
        let written = job.write();
        jobs.insert(id.to_owned(), job);
        Ok(written)
    }

    /// Reads or changes a job.
    pub(crate) fn with<T>(&self, id: &str, what: impl FnOnce(&mut Job) -> T) -> Result<T, HubError> {
        let mut jobs = self.lock();
        let job = jobs.get_mut(id);
        job.map(what).ok_or_else(|| error(ErrorCode::JobNotFound, format!("no job {id:?} in this hub")))
    }

    /// A page of the jobs of a type and status, and where the next begins.
    pub(crate) fn list(
        &self,
        kind: Option<&str>,
        status: Option<&str>,
        after: Option<&str>,
        max: usize,
    ) -> (Vec<Value>, Option<String>) {
        let jobs = self.lock();
        // A job that has not begun is queued, by whichever of its names it is asked for.
        let status = status.map(|status| {
            let waits = ["scheduled", "enqueued"].iter().any(|name| name.eq_ignore_ascii_case(status));
            if waits { Status::Queued.name() } else { status }
        });
        let is = |wanted: Option<&str>, actual: &str| {
            wanted.is_none_or(|wanted| wanted.is_empty() || wanted.eq_ignore_ascii_case(actual))
        };
        let mut rest = jobs
            .values()
            .filter(|job| after.is_none_or(|after| job.id.as_str() > after))
            .filter(|job| is(kind, job.request.kind()) && is(status, job.status.name()))
            .peekable();
        let page: Vec<&Job> = rest.by_ref().take(max).collect();
        let next = rest.peek().and_then(|_| page.last().map(|job| job.id.clone()));
        (page.into_iter().map(Job::write).collect(), next)
    }

    /// Rows of `devices.jobs` that a query selects: as many as `max` after `skip` of them, and whether there are more.
    pub(crate) fn query(&self, query: &Query, skip: usize, max: usize) -> (Vec<Value>, bool) {
        let jobs = self.lock();
        let mut rows =
            jobs.values().flat_map(Job::rows).filter(|row| query.matches(&JsonRow(row))).skip(skip);
        let page = rows.by_ref().take(max).collect();
        (page, rows.next().is_some())
    }
}
